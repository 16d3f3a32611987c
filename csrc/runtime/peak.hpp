#pragma once

#include "runtime/instruction_sets.hpp"

namespace budwood {

// GFLOP/s of multiply-adds on so many threads of the pool at once, the best of some moments in `seconds`: from
// registers, or, with `read`, with one factor from the first-level cache.
double peak(const InstructionSet& set, int threads, bool read, double seconds);

}  // namespace budwood
