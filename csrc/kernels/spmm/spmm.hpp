#pragma once

#include <cstdint>

namespace budwood {

// out[m, p] = bias[m] + sum over e in [row_start[m], row_start[m + 1]) of values[e] * panel[columns[e], p]
//
//   m in [0, rows), p in [0, width). The weights are CSR; a column index names a row of the panel.
//   Alignment: only that of float; aligned panels are faster. Aliasing: `out` overlaps no input.
//   Bounds: reads panel rows that `columns` names, writes rows * width floats, nothing past either end.
//   Order: every output is summed in the order of its row's entries, in runs of a fixed length, whatever its place
//   in the panel: the same column gives the same bits.
struct Spmm {
  int64_t rows;
  int64_t width;
  const float* values;
  const int32_t* columns;
  const int32_t* row_start;  // rows + 1 entries, never falling
  const float* bias;         // rows entries
  const float* panel;        // C-contiguous, `width` floats a row
  float* out;                // C-contiguous, rows x width
};

}  // namespace budwood
