#!/usr/bin/env bash
# Runs the tests of the kernels on x86-64 processors that lack some instruction sets, under an emulator: an instruction
# that one of them does not know ends the test. Debian: apt-get install qemu-user
set -euo pipefail
cd "$(dirname "$0")/.."

compiler=${CXX:-g++}
build=$(mktemp -d)
trap 'wait; rm -rf "$build"' EXIT
flags=(-std=c++20 -O3 -Wall -Wextra)

export BUDWOOD_NO_FORK=1  # QEMU cannot fork a process that has threads

source tests/compile.sh
compile_kernels avx512 avx2 plain
compile_runtime
compiled
for processor in Haswell Nehalem; do  # AVX2 without AVX-512; neither
  emulator="${EMULATOR:-qemu-x86_64} -cpu $processor"
  echo "$emulator"
  for test in kernels_test plan_test training_conv_test training_maps_test; do run_test "$test" -static -pthread; done
done
