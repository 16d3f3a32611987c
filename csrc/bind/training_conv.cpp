// Convolutions whose weights are parameters: they come with each run, and have a gradient.
#include "bind/program.hpp"
#include "runtime/steps/training_conv.hpp"

namespace budwood::bind {
namespace {

using nanobind::arg;

// An int64 array of Python's own.
auto array_of(const std::vector<int64_t>& numbers) {
  auto* kept = new std::vector<int64_t>(numbers);
  nanobind::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<int64_t>*>(p); });
  return nanobind::ndarray<nanobind::numpy, int64_t, nanobind::ndim<1>>(kept->data(), {kept->size()}, owner);
}

ConvShape shape_of(Program& p, const Numbers& operand, const Numbers& out, const std::optional<Numbers>& residual,
                   const Input& offsets, int64_t widest, const Input& blocks, bool by_channels) {
  const Map to = map_of(out);
  require(to.channels >= 1 && to.channels <= p.floats(), "a map's sizes must be 1 or more");
  return {map_of(operand), to, map_or_none(residual), copy<int64_t>(offsets, "offsets", "int64"),
          widest, copy<int64_t>(blocks, "blocks", "int64"), by_channels, Activation{},
          std::vector<float>(to.channels, 0.0f), p.lanes()};
}

void pack(Program& p, int64_t number, int64_t at, const Input& index) {
  const int64_t floats = p.reads(number);
  p.plan().add(std::make_unique<PackStep>(number, at, list<int64_t>(index, "index", "int64"), floats, p.floats()));
}

auto sparse_conv(Program& p, const Numbers& operand, const Numbers& out, const std::optional<Numbers>& residual,
                 const Input& offsets, int64_t widest, const Input& blocks, bool by_channels, const Input& columns,
                 const Input& start, int64_t weights_at) {
  auto step = std::make_unique<SparseConvStep>(
      shape_of(p, operand, out, residual, offsets, widest, blocks, by_channels), p.floats(), weights_at,
      list<int32_t>(columns, "columns", "int32"), list<int64_t>(start, "start", "int64"));
  const auto order = array_of(step->order());
  p.plan().add(std::move(step));
  return order;
}

auto dense_conv(Program& p, const Numbers& operand, const Numbers& out, const std::optional<Numbers>& residual,
                const Input& offsets, int64_t widest, const Input& blocks, bool by_channels, int64_t groups,
                int64_t weights_at) {
  auto step = std::make_unique<DenseConvStep>(
      shape_of(p, operand, out, residual, offsets, widest, blocks, by_channels), p.floats(), weights_at, groups);
  const auto order = array_of(step->order());
  p.plan().add(std::move(step));
  return order;
}

void conv_gradient(Program& p, const Numbers& operand, const Numbers& gradient, const Input& offsets, int64_t widest,
                   const Input& blocks, const Input& columns, const Input& start, int64_t number) {
  require(p.groups() == 1, "a sum over all images needs a segment of one group");
  const auto entries = list<int32_t>(columns, "columns", "int32");
  require(p.writes(number) == static_cast<int64_t>(entries.size()), "an output needs a number for each weight");
  p.plan().add(std::make_unique<ConvGradientStep>(
      shape_of(p, operand, gradient, std::nullopt, offsets, widest, blocks, false), number, p.floats(), entries,
      list<int64_t>(start, "start", "int64")));
}

}  // namespace

void add_training_conv(nanobind::class_<Program>& plan) {
  plan.def("pack", &pack, arg("number"), arg("at"), arg("index"));
  plan.def("sparse_conv_packed", &sparse_conv, arg("operand"), arg("out"), arg("residual").none(), arg("offsets"),
           arg("widest"), arg("blocks"), arg("by_channels"), arg("columns"), arg("start"), arg("weights_at"));
  plan.def("dense_conv_packed", &dense_conv, arg("operand"), arg("out"), arg("residual").none(), arg("offsets"),
           arg("widest"), arg("blocks"), arg("by_channels"), arg("groups"), arg("weights_at"));
  plan.def("conv_gradient", &conv_gradient, arg("operand"), arg("gradient"), arg("offsets"), arg("widest"),
           arg("blocks"), arg("columns"), arg("start"), arg("number"));
}

}  // namespace budwood::bind
