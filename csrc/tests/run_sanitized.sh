#!/usr/bin/env bash
# Builds kernels, runtime and their tests with the sanitizers of memory and undefined behaviour, then with that of
# threads, and runs them.
set -euo pipefail
cd "$(dirname "$0")/.."

compiler=${CXX:-g++}
case $(uname -m) in
  x86_64) sets=(avx512 avx2 plain) ;;
  *) sets=(neon plain) ;;
esac
build=$(mktemp -d)
trap 'wait; rm -rf "$build"' EXIT
source tests/compile.sh

# sanitized SANITIZERS TEST...
sanitized() {
  echo "-fsanitize=$1"
  flags=(-std=c++20 -O1 -g -Wall -Wextra "-fsanitize=$1" -fno-sanitize-recover=all)
  shift
  objects=()
  compile_kernels "${sets[@]}"
  compile_runtime
  compiled
  for test in "$@"; do run_test "$test" -pthread; done
}

sanitized address,undefined kernels_test plan_test training_conv_test training_maps_test
sanitized thread plan_test training_conv_test training_maps_test
