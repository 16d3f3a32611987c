// The native module. It holds no state: which instruction set is in force is decided in engine/native.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind/plan.hpp"
#include "runtime/instruction_sets.hpp"
#include "runtime/peak.hpp"

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
  module.def(
      "peak",
      [](const std::string& isa, int threads, bool read, double seconds) {
        const auto* set = budwood::find_instruction_set(isa);
        if (!set || threads < 1) throw nanobind::value_error("no such instruction set, or no threads");
        nanobind::gil_scoped_release unlocked;
        return budwood::peak(*set, threads, read, seconds);
      },
      nanobind::arg("isa"), nanobind::arg("threads"), nanobind::arg("read"), nanobind::arg("seconds"));
  budwood::bind::add_plan(module);
}
