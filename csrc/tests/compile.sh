# Sourced by run_*.sh, in csrc/. They set: compiler, build (a folder), flags (an array).
objects=()

# compile OBJECT ARGUMENT...: in the background, as many at a time as there are processors.
compile() {
  local object="$build/$1.o"
  shift
  while (($(jobs -rp | wc -l) >= $(getconf _NPROCESSORS_ONLN))); do sleep 0.1; done
  "$compiler" "${flags[@]}" -I. -c "$@" -o "$object" &
  objects+=("$object")
}

# compile_kernels SET...: every kernel for these instruction sets, with the flags that CMakeLists.txt gives them.
compile_kernels() {
  local isa kernel options
  for isa in "$@"; do
    options=$(sed -n "s/.*budwood_instruction_set($isa *\(.*\))/\1/p" ../CMakeLists.txt)
    for kernel in kernels/*/*.cpp; do
      # shellcheck disable=SC2086
      compile "$isa-$(basename "$kernel" .cpp)" $options -ffp-contract=off -fno-exceptions -fno-rtti \
        "-DBUDWOOD_ISA=$isa" "-DBUDWOOD_SIMD=\"simd/$isa.hpp\"" "$kernel"
    done
  done
}

compile_runtime() {
  local source
  for source in runtime/*.cpp runtime/steps/*.cpp; do compile "runtime-$(basename "$source" .cpp)" "$source"; done
}

# Waits for all that was begun; fails if one of them did.
compiled() {
  local job
  for job in $(jobs -p); do wait "$job"; done
}

# run_test NAME LINK_OPTION...: tests/NAME.cpp with everything compiled so far.
run_test() {
  local name=$1
  shift
  "$compiler" "${flags[@]}" -I. "tests/$name.cpp" "${objects[@]}" "$@" -o "$build/$name"
  ${emulator:-} "$build/$name"
}
