#pragma once

#include <span>

#include "kernels/spmm/spmm.hpp"

namespace budwood {

// One line of the kernel table: an instruction set and the kernels compiled for it.
struct InstructionSet {
  const char* name;
  bool (*available)();  // this processor has it, and the operating system saves its registers
  SpmmFunction spmm;
};

// Every set compiled into this build, best first. The last, "plain", is available everywhere.
std::span<const InstructionSet> instruction_sets();

}  // namespace budwood
