// The native module. It holds no state: which instruction set is in force is decided in engine/native.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind/plan.hpp"
#include "runtime/instruction_sets.hpp"

NB_MODULE(_native, module) {
  module.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const auto& set : budwood::instruction_sets())
      if (set.available()) names.emplace_back(set.name);
    return names;
  });
  module.def("lanes", [](const std::string& isa) {
    const auto* set = budwood::find_instruction_set(isa);
    return set ? set->kernels.lanes : 0;
  });
  budwood::bind::add_plan(module);
}
