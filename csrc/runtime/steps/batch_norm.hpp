#pragma once

#include <cstdint>
#include <vector>

#include "runtime/plan.hpp"

namespace budwood {

// The steps of batch normalisation in training. Each handles every group of its maps in one turn, since the
// statistics are those of all images, and shares out channels: a channel's sums are one thread's, in one order.

// What these steps have in common: maps of the same groups and plane, and which of their places are pixels.
class WholeStep : public Step {
 public:
  // mask: empty where every lane holds a pixel, else [height][width][lanes] with 0 where one does not.
  WholeStep(Map plane, std::vector<float> mask, int64_t arena_floats, int64_t lanes);
  int64_t items() const override { return plane_.channels; }
  int64_t grain() const override { return together_; }
  void run(const Run& run, int64_t group, int64_t item) const override { run_range(run, group, item, item + 1); }
  void run_range(const Run& run, int64_t group, int64_t begin, int64_t end) const override;

 protected:
  static constexpr int64_t kMost = 64;  // channels that are handled together

  virtual void channels(const Run& run, int64_t begin, int64_t end) const = 0;
  // Refuses a map that is not of the plane's groups, height, width, lanes and channels.
  void check_like(const Map& map, const char* what) const;
  // Refuses a vector of a number for each channel that is not in the arena.
  void check_vector(int64_t at) const;
  PlaneSizes sizes(int64_t channels) const;
  static Planes planes(const Map& map, const Run& run, int64_t group, int64_t channel);

  Map plane_;
  std::vector<float> mask_;
  int64_t arena_floats_, together_;
};

// Mean and biased variance of each channel, over the `count` values that the mask leaves, to the arena at mean_at and
// var_at.
class BatchStatisticsStep : public WholeStep {
 public:
  BatchStatisticsStep(Map source, std::vector<float> mask, int64_t count, int64_t mean_at, int64_t var_at,
                      int64_t arena_floats, int64_t lanes);

 private:
  void channels(const Run& run, int64_t begin, int64_t end) const override;

  int64_t count_, mean_at_, var_at_, first_row_;  // values of a channel in the first row of the first group
};

// Where the normalisation's numbers are: in the arena, and among the inputs.
struct Normalisation {
  int64_t mean_at, var_at, weight, bias;  // bias is not used by the gradient
  float eps, low, high;
};

// out = low <= weight * (source - mean) / sqrt(var + eps) + bias + residual <= high; residual.groups 0: none.
class BatchNormStep : public WholeStep {
 public:
  BatchNormStep(Map source, Map out, Map residual, std::vector<float> mask, Normalisation n, int64_t arena_floats,
                int64_t lanes);

 private:
  void channels(const Run& run, int64_t begin, int64_t end) const override;

  Map out_, residual_;
  Normalisation n_;
};

// From the gradient to `out` those to the source, the residual, weight and bias. frozen: mean and variance are
// constants (running statistics). `to` or `residual_to` may be the gradient itself, neither the source. Source of the formula: Ioffe & Szegedy 2015, section 3.
class BatchNormGradientStep : public WholeStep {
 public:
  struct Maps {
    Map source, out, gradient, to, residual_to;  // residual_to.groups 0: none
  };
  BatchNormGradientStep(Maps maps, std::vector<float> mask, int64_t count, Normalisation n, int64_t weight_out,
                        int64_t bias_out, bool frozen, int64_t arena_floats, int64_t lanes);

 private:
  void channels(const Run& run, int64_t begin, int64_t end) const override;

  Maps m_;
  int64_t count_;
  Normalisation n_;
  int64_t weight_out_, bias_out_;
  bool frozen_;
};

// The gradient of a global average: every pixel of a channel of an image gets factor * source[image][channel].
// `images` share the lanes of a group.
class SpreadStep : public WholeStep {
 public:
  SpreadStep(Map source, Map out, int64_t images, std::vector<float> mask, float factor, int64_t arena_floats,
             int64_t lanes);

 private:
  void channels(const Run& run, int64_t begin, int64_t end) const override;

  Map source_;
  int64_t images_;
  float factor_;
  std::vector<int32_t> lane_;  // floats from the first image's number to that of each lane
};

// Two vectors of the arena, of half the output's numbers each, to the output `number`.
class StatisticsOutStep : public Step {
 public:
  StatisticsOutStep(int64_t mean_at, int64_t var_at, int64_t channels, int64_t number, int64_t arena_floats);
  int64_t items() const override { return 1; }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  int64_t mean_at_, var_at_, channels_, number_;
};

}  // namespace budwood
