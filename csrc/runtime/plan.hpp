#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/kernels.hpp"

namespace budwood {

// A plan that cannot be: said before anything runs.
struct PlanError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void require(bool condition, const char* what) {
  if (!condition) throw PlanError(what);
}

// Whether a number of floats is near enough for sums of a few such numbers to stay numbers. No arena is as large.
inline bool is_near(int64_t floats) {
  constexpr int64_t kFar = int64_t(1) << 40;
  return floats > -kFar && floats < kFar;
}

// A feature map in the arena. A vector holds the pixels of `lanes` places: of several images, and of several blocks of
// one image. Element (group, y, channel, x, lane) lies at
//
//   offset + group * group_stride + y * row + channel * channel_stride + x * lanes + lane     (all in floats)
//
// for y in [-halo_y, height + halo_y) and x in [-halo_x, width + halo_x). A plain vector [images][channels] is a map
// of height, width and lanes 1 whose groups are its images.
struct Map {
  int64_t offset, group, row, channel;
  int64_t groups, height, channels, width, lanes, halo_y, halo_x;

  // Only `groups` groups are kept, those of the images at hand: the next group takes the place of the first.
  const float* at(const float* arena, int64_t g, int64_t y, int64_t c, int64_t x) const {
    return arena + offset + g % groups * group + y * row + c * channel + x * lanes;
  }
  float* at(float* arena, int64_t g, int64_t y, int64_t c, int64_t x) const {
    return const_cast<float*>(at(const_cast<const float*>(arena), g, y, c, x));
  }
};

// Refuses a map that reaches outside an arena of `floats`.
void check_map(const Map& map, int64_t floats);

struct Run {
  const Kernels* kernels;
  float* arena;
  const float* const* inputs;
  float* const* outputs;
};

// One operator of a plan. Its work for a group of images is cut into items that are independent of each other.
class Step {
 public:
  virtual ~Step() = default;
  virtual int64_t items() const = 0;
  virtual void run(const Run& run, int64_t group, int64_t item) const = 0;

  // Items are handed out in ranges that begin or end at multiples of the grain.
  virtual int64_t grain() const { return 1; }
  virtual void run_range(const Run& run, int64_t group, int64_t begin, int64_t end) const {
    for (int64_t item = begin; item < end; ++item) this->run(run, group, item);
  }
};

// The steps of a network for a fixed number of images, and the memory they share.
//
// Steps stand in segments of steps that work on as many images at a time, a group. A segment is run for one group
// from its first to its last step, so that what its steps hand to each other is still in the cache; in which order
// the segments take their turns is told by `order`.
class Plan {
 public:
  Plan(const Kernels& kernels, int64_t arena_floats);

  // Begins a segment that will be run for groups 0 to groups - 1.
  void segment(int64_t groups);
  void add(std::unique_ptr<Step> step);
  int64_t groups() const;  // of the segment begun last

  struct Turn {
    int64_t segment, group;
  };
  void order(std::vector<Turn> turns);

  struct Arena {
    explicit Arena(int64_t floats);
    ~Arena();
    float* data;
    size_t bytes;
  };
  // An arena for runs that need what runs before them left there; keep_arena gives it back for later ones, and
  // free_arenas frees those that were given back. All are thread-safe.
  std::unique_ptr<Arena> take_arena() const;
  void keep_arena(std::unique_ptr<Arena> arena) const;
  void free_arenas() const;

  // Thread-safe: each call takes an arena of its own, kept for later calls. `seconds`, if given, gets the time of
  // each step added up over its groups.
  void run(const float* const* inputs, float* const* outputs, int threads, double* seconds = nullptr) const;

  // The same for each of these, in any order. Every thread takes whole ones while there is one for each, so that a core
  // reads what it wrote itself; what is left over is shared within the steps.
  struct Arrays {
    const float* const* inputs;
    float* const* outputs;
  };
  void run_each(std::span<const Arrays> pieces, int threads) const;

  // The turns from number `first` to `last` - 1 of the order, in an arena that no other call uses meanwhile.
  void run_turns(const Arena& arena, int64_t first, int64_t last, const float* const* inputs, float* const* outputs,
                 int threads, double* seconds = nullptr) const;

  const std::vector<Turn>& turns() const { return order_; }
  int64_t segments() const { return static_cast<int64_t>(segments_.size()); }

  const Kernels& kernels() const { return kernels_; }
  int64_t arena_floats() const { return arena_floats_; }
  int64_t steps() const;

 private:
  struct Segment {
    int64_t groups, first;  // number of its first step
    std::vector<std::unique_ptr<Step>> steps;
  };

  std::unique_lock<std::mutex> held() const;

  const Kernels& kernels_;
  int64_t arena_floats_;
  std::vector<Segment> segments_;
  std::vector<Turn> order_;

  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Arena>> idle_;
};

}  // namespace budwood
