#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "runtime/plan.hpp"

namespace budwood {

// Refuses a map that does not hold `channels` channels of every pixel of `plane`.
inline void check_holds(const Map& map, const Map& plane, int64_t channels, const char* what) {
  require(map.height >= plane.height && map.width >= plane.width &&
              map.lanes == plane.lanes && map.channels >= channels,
          what);
}

// Refuses what reaches outside the arena when, around the place of each pixel of `plane` in each of the first
// `channels` channels of `map`, floats `low` to `high` (both included) are touched.
inline void check_reach(const Map& map, const Map& plane, int64_t channels, int64_t low, int64_t high, int64_t floats,
                        const char* what) {
  const __int128 begin = map.offset, last = begin + __int128(map.groups - 1) * map.group +
                                            __int128(plane.height - 1) * map.row + __int128(channels - 1) * map.channel +
                                            __int128(plane.width - 1) * plane.lanes;
  require(begin + low >= 0 && last + high < floats, what);
}

inline void check_reach(const Map& map, const Map& plane, int64_t channels, std::span<const int64_t> offsets,
                        int64_t width, int64_t floats, const char* what) {
  require(!offsets.empty(), what);
  const auto [low, high] = std::minmax_element(offsets.begin(), offsets.end());
  require(*low > -floats && *high < floats, what);
  check_reach(map, plane, channels, *low, *high + width - 1, floats, what);
}

// Refuses planes and lists of channels that are larger than the arena, which strides of 0 would allow.
inline void check_size(const Map& m, int64_t floats) {
  require(__int128(m.height) * m.width <= floats / m.lanes && m.channels <= floats, "a map is larger than the arena");
}

inline bool is_plain(const Map& m) { return m.width == 1 && m.lanes == 1 && (m.channel == 1 || m.channels == 1); }

// A plain vector seen for a step that handles `images` of its images at a time: they become the rows of one group.
inline Map with_images(Map m, int64_t images) {
  if (images == 1) return m;
  constexpr int64_t kMost = int64_t(1) << 20;
  require(images >= 1 && images < kMost && m.group >= 0 && m.group < kMost * kMost, "a step's images are out of range");
  require(m.height == 1 && m.halo_y == 0 && m.groups % images == 0, "images must divide the groups of a plain vector");
  m.height = images, m.row = m.group, m.group *= images, m.groups /= images;
  return m;
}

// [0, count) in `parts` parts of nearly the same size: where part p begins, and where the one before it ends.
inline int64_t part(int64_t count, int64_t parts, int64_t p) { return count * p / parts; }

// Parts of `count` things of `floats` floats each for the threads to share: none too small to be worth a thread's
// while, and no more than 16.
inline int64_t parts_of(int64_t count, int64_t floats) {
  constexpr int64_t kWorth = 4096;
  const int64_t together = std::max<int64_t>(1, kWorth / std::max<int64_t>(floats, 1));
  return std::clamp<int64_t>(count / together, 1, 16);
}

// The bounds that a kernel clamps its results to.
struct Bounds {
  float low = -std::numeric_limits<float>::infinity(), high = std::numeric_limits<float>::infinity();
  bool all = true;  // false: the activation is something else, and done by the kernel `activate` afterwards
};

inline Bounds bounds_of(const Activation& f) {
  Bounds b;
  if (f.kind == Activation::relu) b.low = 0;
  else if (f.kind == Activation::relu6) b.low = 0, b.high = 6;
  else if (f.kind == Activation::clamp) b.low = f.low, b.high = f.high;
  else b.all = f.kind == Activation::identity;
  return b;
}

}  // namespace budwood
