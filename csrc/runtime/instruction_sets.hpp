#pragma once

#include <span>
#include <string_view>

#include "runtime/kernels.hpp"

namespace budwood {

// An instruction set and the kernels compiled for it.
struct InstructionSet {
  const char* name;
  bool (*available)();  // this processor has it, and the operating system saves its registers
  Kernels kernels;
};

// Every set compiled into this build, best first. The last, "plain", is available everywhere.
std::span<const InstructionSet> instruction_sets();

// The set of that name if it is available here; nullptr if not.
const InstructionSet* find_instruction_set(std::string_view name);

}  // namespace budwood
