#include "bind/spmm.hpp"

#include <nanobind/stl/string.h>

#include <limits>
#include <string>

#include "bind/arrays.hpp"
#include "runtime/instruction_sets.hpp"

namespace budwood::bind {
namespace {

using std::to_string;

const Kernels& kernels_for(const std::string& isa) {
  if (const InstructionSet* set = find_instruction_set(isa)) return set->kernels;
  std::string known;
  for (const auto& set : instruction_sets())
    if (set.available()) known += (known.empty() ? "" : ", ") + std::string(set.name);
  refuse("no instruction set '" + isa + "' here; available: " + known);
}

// Row pointers begin at 0, never fall and end at the number of entries; columns name rows of the panel.
void check_csr(const Input& values, const Input& columns, const Input& row_start, int64_t panel_rows) {
  const auto entries = static_cast<int64_t>(values.size());
  if (entries > std::numeric_limits<int32_t>::max()) refuse("values has more entries than an int32 can count");
  if (static_cast<int64_t>(columns.size()) != entries)
    refuse("columns has " + to_string(columns.size()) + " entries, values has " + to_string(entries));
  if (row_start.size() == 0) refuse("row_pointer must have one entry more than there are rows");
  const int32_t* start = pointer<int32_t>(row_start);
  const size_t rows = row_start.size() - 1;
  if (start[0] != 0) refuse("row_pointer must begin with 0");
  for (size_t m = 0; m < rows; ++m)
    if (start[m + 1] < start[m]) refuse("row_pointer falls after row " + to_string(m));
  if (start[rows] != entries)
    refuse("row_pointer ends with " + to_string(start[rows]) + ", values has " + to_string(entries) + " entries");
  const int32_t* column = pointer<int32_t>(columns);
  for (int64_t e = 0; e < entries; ++e)
    if (column[e] < 0 || column[e] >= panel_rows)
      refuse("columns[" + to_string(e) + "] is " + to_string(column[e]) + ", the panel has " +
             to_string(panel_rows) + " rows");
}

void spmm(const std::string& isa, const Input& values, const Input& columns, const Input& row_start,
          const Input& bias, const Input& panel, const Output& out) {
  const Kernels& kernels = kernels_for(isa);
  check<float>(values, "values", 1, "float32");
  check<int32_t>(columns, "columns", 1, "int32");
  check<int32_t>(row_start, "row_pointer", 1, "int32");
  check<float>(bias, "bias", 1, "float32");
  check<float>(panel, "panel", 2, "float32");
  check<float>(out, "out", 2, "float32");
  check_csr(values, columns, row_start, static_cast<int64_t>(panel.shape(0)));
  const size_t rows = row_start.size() - 1, width = panel.shape(1);
  if (bias.size() != rows) refuse("bias has " + to_string(bias.size()) + " entries for " + to_string(rows) + " rows");
  if (out.shape(0) != rows || out.shape(1) != width)
    refuse("out must be " + to_string(rows) + " x " + to_string(width));
  for (const Input* input : {&values, &columns, &row_start, &bias, &panel})
    if (overlap(out, *input)) refuse("out must not overlap an input");
  const Spmm work{static_cast<int64_t>(rows), static_cast<int64_t>(width),
                  pointer<float>(values),     pointer<int32_t>(columns),
                  pointer<int32_t>(row_start), pointer<float>(bias),
                  pointer<float>(panel),      pointer<float>(out)};
  nanobind::gil_scoped_release unlocked;
  kernels.spmm(work);
}

}  // namespace

void add_spmm(nanobind::module_& module) {
  using nanobind::arg;
  module.def("spmm", &spmm, arg("isa"), arg("values"), arg("columns"), arg("row_pointer"), arg("bias"),
             arg("panel"), arg("out"));
}

}  // namespace budwood::bind
