#!/usr/bin/env bash
# Builds the kernels for aarch64 and runs their tests, on another machine under an emulator.
# Debian: apt-get install qemu-user g++-aarch64-linux-gnu
set -euo pipefail
cd "$(dirname "$0")/.."

compiler=${CXX:-aarch64-linux-gnu-g++}
emulator=${EMULATOR-qemu-aarch64}
build=$(mktemp -d)
trap 'wait; rm -rf "$build"' EXIT
flags=(-std=c++20 -O3 -ffp-contract=off -Wall -Wextra -Werror)

export BUDWOOD_NO_FORK=1  # QEMU cannot fork a process that has threads

source tests/compile.sh
compile_kernels neon plain
compile_runtime
compiled
for test in kernels_test plan_test training_conv_test training_maps_test; do run_test "$test" -static -pthread; done
