#pragma once

#include <nanobind/nanobind.h>

namespace budwood::bind {

void add_spmm(nanobind::module_& module);

}  // namespace budwood::bind
