#include "runtime/steps/linear.hpp"

#include "runtime/steps/checks.hpp"

namespace budwood {
namespace {

void check(const LinearShape& s, int64_t arena_floats) {
  for (const Map* m : {&s.x, &s.out}) {
    check_map(*m, arena_floats);
    check_size(*m, arena_floats);
    require(is_plain(*m), "a linear layer needs plain vectors");
  }
  require(s.x.height >= s.out.height, "a linear layer's input has fewer images than its output");
  require(static_cast<int64_t>(s.bias.size()) == s.out.channels, "a bias is needed for every output");
}

void activate(const Run& run, const LinearShape& s, float* out, int64_t images, int64_t outputs) {
  run.kernels->activate({out, s.out.row, images, outputs, s.activation});
}

// Runs of outputs that one thread takes: enough for the kernel's widest block of vectors.
constexpr int64_t kVectors = 8;
constexpr int64_t kImages = 48;

}  // namespace

LinearStep::LinearStep(LinearShape shape, std::span<const float> weights, int64_t arena_floats, int64_t lanes)
    : shape_(std::move(shape)), lanes_(lanes) {
  check(shape_, arena_floats);
  const int64_t outputs = shape_.out.channels, depth = shape_.x.channels;
  require(__int128(weights.size()) == __int128(outputs) * depth, "the weights are not [outputs][inputs]");
  output_parts_ = (outputs + kVectors * lanes - 1) / (kVectors * lanes);
  image_parts_ = (shape_.out.height + kImages - 1) / kImages;
  const int64_t blocks = (outputs + lanes - 1) / lanes;
  weights_.resize(blocks * depth * lanes);
  for (int64_t m = 0; m < outputs; ++m)
    for (int64_t k = 0; k < depth; ++k) weights_[(m / lanes * depth + k) * lanes + m % lanes] = weights[m * depth + k];
}

void LinearStep::run(const Run& run, int64_t group, int64_t item) const {
  const LinearShape& s = shape_;
  const int64_t m = item % output_parts_ * kVectors * lanes_, image = item / output_parts_ * kImages;
  const int64_t outputs = std::min(kVectors * lanes_, s.out.channels - m), images = std::min(kImages, s.out.height - image);
  const Bounds bounds = bounds_of(s.activation);
  float* out = s.out.at(run.arena, group, image, 0, 0) + m;
  run.kernels->linear({s.x.at(run.arena, group, image, 0, 0), out, s.x.row, s.out.row, images, s.x.channels, outputs,
                       weights_.data() + m * s.x.channels, s.bias.data() + m, bounds.low, bounds.high});
  if (!bounds.all) activate(run, s, out, images, outputs);
}

SparseLinearStep::SparseLinearStep(LinearShape shape, std::span<const float> values, std::span<const int32_t> columns,
                                   std::span<const int64_t> start, int64_t arena_floats, int64_t lanes)
    : shape_(std::move(shape)) {
  check(shape_, arena_floats);
  const int64_t outputs = shape_.out.channels;
  require(static_cast<int64_t>(start.size()) == outputs + 1 && start.front() == 0 && values.size() == columns.size() &&
              start.back() == static_cast<int64_t>(values.size()) && std::is_sorted(start.begin(), start.end()),
          "the weights are no CSR matrix of one row per output");
  for (int32_t k : columns) require(k >= 0 && k < shape_.x.channels, "a weight names no input");
  for (int64_t m = 0; m < outputs; ++m) {
    start_.push_back(static_cast<int64_t>(values_.size()) / lanes);
    values_.insert(values_.end(), values.begin() + start[m], values.begin() + start[m + 1]);
    index_.insert(index_.end(), columns.begin() + start[m], columns.begin() + start[m + 1]);
    for (; values_.size() % lanes != 0; values_.push_back(0)) index_.push_back(-1);
  }
  start_.push_back(static_cast<int64_t>(values_.size()) / lanes);
  const int64_t depth = shape_.x.channels, entries = static_cast<int64_t>(values_.size());
  const bool together = shape_.out.height >= kSparseLinearTogether;
  require(!together || shape_.x.row < (int64_t(1) << 31) / lanes, "the images of a linear layer lie too far apart");
  scratch_ = together ? depth * lanes : 0;
  // Each part lays the images side by side anew, which costs about 8 products for every input: a third of its time
  // at most.
  const int64_t per_output = entries / outputs + 1;
  parts_ = together ? std::clamp<int64_t>(entries / (16 * depth), 1, std::min<int64_t>(16, outputs))
                    : parts_of(outputs, per_output * shape_.out.height);
}

void SparseLinearStep::run(const Run& run, int64_t group, int64_t item) const {
  const LinearShape& s = shape_;
  const int64_t m = part(s.out.channels, parts_, item), end = part(s.out.channels, parts_, item + 1);
  const Bounds bounds = bounds_of(s.activation);
  float* out = s.out.at(run.arena, group, 0, 0, 0) + m;
  thread_local std::vector<float> scratch;
  if (static_cast<int64_t>(scratch.size()) < scratch_) scratch.resize(scratch_);
  run.kernels->sparse_linear({s.x.at(run.arena, group, 0, 0, 0), out, scratch.data(), s.x.row, s.out.row, s.out.height,
                              end - m, s.x.channels, values_.data(), index_.data(), start_.data() + m, s.bias.data() + m, bounds.low, bounds.high});
  if (!bounds.all) activate(run, s, out, s.out.height, end - m);
}

}  // namespace budwood
