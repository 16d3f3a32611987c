#include "runtime/instruction_sets.hpp"

namespace budwood {
namespace {

bool always() { return true; }

#if defined(__x86_64__)

// The builtins read CPUID and also XCR0, which says whether the operating system saves the wide registers.
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

constexpr InstructionSet kTable[] = {
    {"avx512", has_avx512, avx512::spmm},
    {"avx2", has_avx2, avx2::spmm},
    {"plain", always, plain::spmm},
};

#elif defined(__aarch64__)

// NEON is part of the base architecture.
constexpr InstructionSet kTable[] = {
    {"neon", always, neon::spmm},
    {"plain", always, plain::spmm},
};

#else

constexpr InstructionSet kTable[] = {{"plain", always, plain::spmm}};

#endif

}  // namespace

std::span<const InstructionSet> instruction_sets() { return kTable; }

}  // namespace budwood
