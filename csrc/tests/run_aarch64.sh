#!/usr/bin/env bash
# Builds the kernels for aarch64 and runs their test, on another machine under an emulator.
# Debian: apt-get install qemu-user g++-aarch64-linux-gnu
set -euo pipefail
cd "$(dirname "$0")/.."

compiler=${CXX:-aarch64-linux-gnu-g++}
emulator=${EMULATOR-qemu-aarch64}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

flags=(-std=c++20 -O3 -ffp-contract=off -Wall -Wextra -Werror -I.)
objects=()
for isa in neon plain; do
  for kernel in kernels/*/*.cpp; do
    object="$build/$isa-$(basename "$kernel" .cpp).o"
    "$compiler" "${flags[@]}" -fno-exceptions -fno-rtti "-DBUDWOOD_ISA=$isa" "-DBUDWOOD_SIMD=\"simd/$isa.hpp\"" \
      -c "$kernel" -o "$object"
    objects+=("$object")
  done
done
"$compiler" "${flags[@]}" -static tests/spmm_test.cpp runtime/instruction_sets.cpp "${objects[@]}" -o "$build/test"
$emulator "$build/test"
