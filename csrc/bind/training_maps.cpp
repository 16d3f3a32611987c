// Steps of training that work on each channel alone: batch norm, and the gradients of poolings and depthwise
// convolutions. All but depthwise_packed handle every image in the one turn of their segment.
#include "bind/program.hpp"
#include "runtime/steps/batch_norm.hpp"
#include "runtime/steps/window_gradient.hpp"

namespace budwood::bind {
namespace {

using nanobind::arg;
using MaybeNumbers = std::optional<Numbers>;

std::vector<float> mask_of(const Input& mask) { return copy<float>(mask, "mask", "float32"); }

void check_whole(const Program& p) { require(p.groups() == 1, "a step that needs all images needs a segment of one group"); }

// An input (output) that holds a number for each channel.
int64_t reads(Program& p, int64_t number, int64_t channels) {
  require(p.reads(number) == channels, "an input has not one number for each channel");
  return number;
}
int64_t writes(Program& p, int64_t number, int64_t floats) {
  require(p.writes(number) == floats, "an output has another size");
  return number;
}

void batch_statistics(Program& p, const Numbers& source, const Input& mask, int64_t count, int64_t mean_at, int64_t var_at) {
  check_whole(p);
  p.plan().add(std::make_unique<BatchStatisticsStep>(map_of(source), mask_of(mask), count, mean_at, var_at, p.floats(), p.lanes()));
}

void batch_norm(Program& p, const Numbers& source, const Numbers& out, const MaybeNumbers& residual, const Input& mask,
                int64_t mean_at, int64_t var_at, int64_t weight, int64_t bias, float eps, float low, float high) {
  check_whole(p);
  const Map from = map_of(source);
  const Normalisation n{mean_at, var_at, reads(p, weight, from.channels), reads(p, bias, from.channels), eps, low, high};
  p.plan().add(std::make_unique<BatchNormStep>(from, map_of(out), map_or_none(residual), mask_of(mask), n, p.floats(), p.lanes()));
}

void batch_norm_gradient(Program& p, const Numbers& source, const Numbers& out, const Numbers& gradient,
                         const Numbers& to, const MaybeNumbers& residual_to, const Input& mask, int64_t count,
                         int64_t mean_at, int64_t var_at, int64_t weight, float eps, float low, float high,
                         int64_t weight_out, int64_t bias_out, bool frozen) {
  check_whole(p);
  const BatchNormGradientStep::Maps maps{map_of(source), map_of(out), map_of(gradient), map_of(to), map_or_none(residual_to)};
  const int64_t channels = maps.source.channels;
  const Normalisation n{mean_at, var_at, reads(p, weight, channels), -1, eps, low, high};
  p.plan().add(std::make_unique<BatchNormGradientStep>(maps, mask_of(mask), count, n, writes(p, weight_out, channels),
                                                       writes(p, bias_out, channels), frozen, p.floats(), p.lanes()));
}

void statistics_out(Program& p, int64_t mean_at, int64_t var_at, int64_t number) {
  const int64_t floats = p.writes(number);
  require(floats % 2 == 0, "statistics are two numbers for each channel");
  p.plan().add(std::make_unique<StatisticsOutStep>(mean_at, var_at, floats / 2, number, p.floats()));
}

void spread(Program& p, const Numbers& source, const Numbers& out, int64_t images, const Input& mask, float factor) {
  check_whole(p);
  p.plan().add(std::make_unique<SpreadStep>(map_of(source), map_of(out), images, mask_of(mask), factor, p.floats(), p.lanes()));
}

LocalPlane plane_of(Program& p, const Numbers& source, const Input& moves, const Input& index, float fill,
                    int64_t groups_of_source, int64_t scratch) {
  return {map_of(source), moves_of(moves), copy<int32_t>(index, "index", "int32"), fill, groups_of_source, scratch,
          p.floats(), p.lanes()};
}

// After the plane has been made, which checks the moves.
PlaneGradient way_back(Program& p, const Numbers& source, const Numbers& to, const Input& moves, const Input& index,
                       int64_t groups_of_source) {
  return {map_of(source), map_of(to), moves_of(moves), copy<int32_t>(index, "index", "int32"), groups_of_source,
          p.floats(), p.lanes()};
}

void max_pool_gradient(Program& p, const Numbers& source, const Input& moves, const Input& index, float fill,
                       int64_t groups_of_source, int64_t scratch, int64_t origin, int64_t row, const Numbers& out,
                       const Input& taps, const Numbers& gradient, const Numbers& to) {
  check_whole(p);
  WindowGradientStep::Window window{plane_of(p, source, moves, index, fill, groups_of_source, scratch), origin, row,
                                    copy<int64_t>(taps, "taps", "int64")};
  p.plan().add(std::make_unique<MaxPoolGradientStep>(std::move(window), way_back(p, source, to, moves, index, groups_of_source),
                                                     map_of(out), map_of(gradient), groups_of_source, p.floats(), p.lanes()));
}

void depthwise_packed(Program& p, const Numbers& source, const Input& moves, const Input& index, float fill,
                      int64_t groups_of_source, int64_t scratch, int64_t origin, int64_t row, const Numbers& out,
                      const MaybeNumbers& residual, const Input& taps, int64_t weights_at) {
  const Map to = map_of(out);
  require(to.channels >= 1 && to.channels <= p.floats(), "a map's sizes must be 1 or more");
  require(weights_at >= 0, "the weights reach outside the arena");
  p.plan().add(std::make_unique<DepthwiseStep>(
      plane_of(p, source, moves, index, fill, groups_of_source, scratch), origin, row, to, map_or_none(residual),
      copy<int64_t>(taps, "taps", "int64"), std::span<const float>(), weights_at, std::vector<float>(to.channels),
      Activation{}, p.floats(), p.lanes()));
}

void depthwise_gradient(Program& p, const Numbers& source, const Input& moves, const Input& index, float fill,
                        int64_t groups_of_source, int64_t scratch, int64_t origin, int64_t row, const Input& taps,
                        const Numbers& gradient, const MaybeNumbers& to, int64_t weights_at, int64_t number) {
  check_whole(p);
  WindowGradientStep::Window window{plane_of(p, source, moves, index, fill, groups_of_source, scratch), origin, row,
                                    copy<int64_t>(taps, "taps", "int64")};
  std::vector<PlaneGradient> back;
  if (to) back.push_back(way_back(p, source, *to, moves, index, groups_of_source));
  const Map from = map_of(gradient);
  const auto count = static_cast<int64_t>(window.taps.size());
  auto step = std::make_unique<DepthwiseGradientStep>(std::move(window), std::move(back), from, weights_at, number,
                                                      groups_of_source, p.floats(), p.lanes());
  writes(p, number, from.channels * count);
  p.plan().add(std::move(step));
}

}  // namespace

void add_training_maps(nanobind::class_<Program>& plan) {
  plan.def("batch_statistics", &batch_statistics, arg("source"), arg("mask"), arg("count"), arg("mean_at"), arg("var_at"));
  plan.def("batch_norm", &batch_norm, arg("source"), arg("out"), arg("residual").none(), arg("mask"), arg("mean_at"),
           arg("var_at"), arg("weight"), arg("bias"), arg("eps"), arg("low"), arg("high"));
  plan.def("batch_norm_gradient", &batch_norm_gradient, arg("source"), arg("out"), arg("gradient"), arg("to"),
           arg("residual_to").none(), arg("mask"), arg("count"), arg("mean_at"), arg("var_at"), arg("weight"), arg("eps"),
           arg("low"), arg("high"), arg("weight_out"), arg("bias_out"), arg("frozen"));
  plan.def("statistics_out", &statistics_out, arg("mean_at"), arg("var_at"), arg("number"));
  plan.def("spread", &spread, arg("source"), arg("out"), arg("images"), arg("mask"), arg("factor"));
  plan.def("max_pool_gradient", &max_pool_gradient, arg("source"), arg("moves"), arg("index"), arg("fill"),
           arg("groups_of_source"), arg("scratch"), arg("origin"), arg("row"), arg("out"), arg("taps"), arg("gradient"),
           arg("to"));
  plan.def("depthwise_packed", &depthwise_packed, arg("source"), arg("moves"), arg("index"), arg("fill"),
           arg("groups_of_source"), arg("scratch"), arg("origin"), arg("row"), arg("out"), arg("residual").none(),
           arg("taps"), arg("weights_at"));
  plan.def("depthwise_gradient", &depthwise_gradient, arg("source"), arg("moves"), arg("index"), arg("fill"),
           arg("groups_of_source"), arg("scratch"), arg("origin"), arg("row"), arg("taps"), arg("gradient"),
           arg("to").none(), arg("weights_at"), arg("number"));
}

}  // namespace budwood::bind
