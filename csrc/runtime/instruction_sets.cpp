#include "runtime/instruction_sets.hpp"

#define BUDWOOD_DECLARE(name, Argument) void name(const Argument&);
#define BUDWOOD_NAME(name, Argument) name,
#define BUDWOOD_SET(isa, count)                                               \
  namespace isa {                                                             \
  BUDWOOD_KERNELS(BUDWOOD_DECLARE)                                            \
  constexpr Kernels kernels() { return {count, BUDWOOD_KERNELS(BUDWOOD_NAME)}; } \
  }

namespace budwood {

#if defined(__x86_64__)
BUDWOOD_SET(avx512, 16)
BUDWOOD_SET(avx2, 8)
#elif defined(__aarch64__)
BUDWOOD_SET(neon, 4)
#endif
BUDWOOD_SET(plain, 4)

namespace {

bool always() { return true; }

#if defined(__x86_64__)

// The builtins read CPUID and also XCR0, which says whether the operating system saves the wide registers.
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

const InstructionSet kTable[] = {
    {"avx512", has_avx512, avx512::kernels()},
    {"avx2", has_avx2, avx2::kernels()},
    {"plain", always, plain::kernels()},
};

#elif defined(__aarch64__)

// NEON is part of the base architecture.
const InstructionSet kTable[] = {
    {"neon", always, neon::kernels()},
    {"plain", always, plain::kernels()},
};

#else

const InstructionSet kTable[] = {{"plain", always, plain::kernels()}};

#endif

}  // namespace

std::span<const InstructionSet> instruction_sets() { return kTable; }

const InstructionSet* find_instruction_set(std::string_view name) {
  for (const auto& set : instruction_sets())
    if (set.name == name && set.available()) return &set;
  return nullptr;
}

}  // namespace budwood
