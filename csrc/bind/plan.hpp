#pragma once

#include <nanobind/nanobind.h>

namespace budwood::bind {

void add_plan(nanobind::module_& module);

}  // namespace budwood::bind
