#pragma once

#include <cstdint>

namespace budwood {

// The average of each channel of each image in the lanes of a map: lane l belongs to image l / (kLanes / images).
//
//   to[g * to_image + c * to_channel] = 1 / count * sum over y, x and the lanes of image g of from[y, c, x, lane]
//
// for c in [0, channels), y in [0, rows), x in [0, vectors); left out where mask[y, x, lane] is 0, if there is a mask.
// Vector (y, c, x) lies at from + y * row + c * channel + x * kLanes. images divides kLanes.
struct GlobalAverage {
  const float* from;
  float* to;
  const float* mask;  // nullptr: every lane counts; else [rows][vectors][kLanes]
  int64_t row, channel, to_image, to_channel;
  int64_t rows, vectors, channels, images;
  double count;
};

}  // namespace budwood
