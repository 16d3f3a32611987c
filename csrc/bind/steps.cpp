// The steps of a plan besides convolution and repacking.
//
// Maps are their 11 numbers in the order of Map; an activation is its number and (slope, low, high). `images`: on
// plain vectors, the images that a step handles at a time; on feature maps 1, as their groups hold several images.
#include "bind/program.hpp"
#include "runtime/steps/average.hpp"
#include "runtime/steps/channelwise.hpp"
#include "runtime/steps/checks.hpp"
#include "runtime/steps/elementwise.hpp"
#include "runtime/steps/linear.hpp"
#include "runtime/steps/norm.hpp"
#include "runtime/steps/vectors.hpp"

namespace budwood::bind {
namespace {

using nanobind::arg;
using Floats = std::array<float, 3>;

Map rows_of(const Numbers& n, int64_t images) { return with_images(map_of(n), images); }

std::vector<float> floats(const Input& array, const char* name) { return copy<float>(array, name, "float32"); }
std::vector<int64_t> integers(const Input& array, const char* name) { return copy<int64_t>(array, name, "int64"); }

void add_elementwise(Program& p, Elementwise::Op op, const Map& a, Beside b, const Map& out, const Activation& f) {
  p.plan().add(std::make_unique<ElementwiseStep>(op, a, std::move(b), out, f, p.floats(), p.lanes()));
}

void affine(Program& p, const Numbers& source, const Numbers& out, int64_t images, const Input& scale,
            const Input& offset, int32_t activation, const Floats& numbers) {
  Beside b{Beside::per_channel, {}, 1, floats(scale, "scale")};
  const auto add = list<float>(offset, "offset", "float32");
  if (add.size() != b.numbers.size()) refuse("scale and offset must be of one size");
  b.numbers.insert(b.numbers.end(), add.begin(), add.end());
  add_elementwise(p, Elementwise::affine, rows_of(source, images), std::move(b), rows_of(out, images),
                  activation_of(activation, numbers));
}

void activate(Program& p, const Numbers& source, const Numbers& out, int64_t images, int32_t activation,
              const Floats& numbers) {
  add_elementwise(p, Elementwise::copy, rows_of(source, images), {}, rows_of(out, images), activation_of(activation, numbers));
}

// add and mul. gate_images: 0 where b is a map, else b is a plain vector for that many images in the lanes of a group.
template <Elementwise::Op Op>
void combine(Program& p, const Numbers& a, const Numbers& b, const Numbers& out, int64_t images, int64_t gate_images,
             int32_t activation, const Floats& numbers) {
  const Beside beside = gate_images == 0 ? Beside{Beside::map, rows_of(b, images), 1, {}}
                                         : Beside{Beside::gate, map_of(b), gate_images, {}};
  add_elementwise(p, Op, rows_of(a, images), beside, rows_of(out, images), activation_of(activation, numbers));
}

void copy_channels(Program& p, const Numbers& source, const Numbers& out, int64_t images, const Input& channels) {
  p.plan().add(std::make_unique<CopyStep>(rows_of(source, images), rows_of(out, images), integers(channels, "channels"), p.floats()));
}

// The source of a channelwise step and how its planes are laid out anew: moves [n, 4] as in bind/plan.cpp.
LocalPlane plane_of(Program& p, const Numbers& source, const Input& moves, const Input& index, float fill,
                    int64_t groups_of_source, int64_t scratch) {
  return {map_of(source), moves_of(moves), copy<int32_t>(index, "index", "int32"), fill, groups_of_source, scratch,
          p.floats(), p.lanes()};
}

void depthwise(Program& p, const Numbers& source, const Input& moves, const Input& index, float fill,
               int64_t groups_of_source, int64_t scratch, int64_t origin, int64_t row, const Numbers& out,
               const std::optional<Numbers>& residual, const Input& taps, const Input& weights, const Input& bias,
               int32_t activation, const Floats& numbers) {
  check<float>(weights, "weights", 2, "float32");
  p.plan().add(std::make_unique<DepthwiseStep>(
      plane_of(p, source, moves, index, fill, groups_of_source, scratch), origin, row, map_of(out),
      map_or_none(residual), integers(taps, "taps"),
      std::span<const float>(pointer<float>(weights), weights.size()), -1, floats(bias, "bias"),
      activation_of(activation, numbers), p.floats(), p.lanes()));
}

void pool(Program& p, const Numbers& source, const Input& moves, const Input& index, float fill,
          int64_t groups_of_source, int64_t scratch, int64_t origin, int64_t row, const Numbers& out, const Input& taps,
          bool largest, const Input& factors) {
  p.plan().add(std::make_unique<PoolStep>(largest, plane_of(p, source, moves, index, fill, groups_of_source, scratch),
                                          origin, row, map_of(out), integers(taps, "taps"), floats(factors, "factors"),
                                          p.floats(), p.lanes()));
}

void global_average(Program& p, const Numbers& source, const Numbers& out, int64_t images, int64_t pixels,
                    const Input& mask) {
  p.plan().add(std::make_unique<GlobalAverageStep>(map_of(source), map_of(out), floats(mask, "mask"), pixels, images,
                                                   p.floats(), p.lanes()));
}

void adaptive_average(Program& p, const Numbers& source, const Numbers& out, const Input& start, const Input& offsets,
                      const Input& at) {
  p.plan().add(std::make_unique<AdaptiveAverageStep>(map_of(source), map_of(out), integers(start, "start"),
                                                     integers(offsets, "offsets"), integers(at, "at"), p.floats()));
}

LinearShape linear_shape(const Numbers& source, const Numbers& out, int64_t images, const Input& bias,
                         int32_t activation, const Floats& numbers) {
  return {rows_of(source, images), rows_of(out, images), floats(bias, "bias"), activation_of(activation, numbers)};
}

void linear(Program& p, const Numbers& source, const Numbers& out, int64_t images, const Input& weights,
            const Input& bias, int32_t activation, const Floats& numbers) {
  check<float>(weights, "weights", 2, "float32");
  p.plan().add(std::make_unique<LinearStep>(linear_shape(source, out, images, bias, activation, numbers),
                                            std::span<const float>(pointer<float>(weights), weights.size()), p.floats(), p.lanes()));
}

void sparse_linear(Program& p, const Numbers& source, const Numbers& out, int64_t images, const Input& values,
                   const Input& columns, const Input& start, const Input& bias, int32_t activation, const Floats& numbers) {
  p.plan().add(std::make_unique<SparseLinearStep>(
      linear_shape(source, out, images, bias, activation, numbers), list<float>(values, "values", "float32"),
      list<int32_t>(columns, "columns", "int32"), list<int64_t>(start, "start", "int64"), p.floats(), p.lanes()));
}

void layer_norm(Program& p, const Numbers& source, const Numbers& out, int64_t images, const Input& scale,
                const Input& offset, float eps) {
  p.plan().add(std::make_unique<LayerNormStep>(rows_of(source, images), rows_of(out, images), floats(scale, "scale"),
                                               floats(offset, "offset"), eps, p.floats(), p.lanes()));
}

void softmax(Program& p, const Numbers& source, const Numbers& out, int64_t images) {
  p.plan().add(std::make_unique<SoftmaxStep>(rows_of(source, images), rows_of(out, images), p.floats()));
}

void flatten(Program& p, const Numbers& source, const Numbers& out, int64_t images, const Input& at) {
  p.plan().add(std::make_unique<FlattenStep>(map_of(source), map_of(out), images, integers(at, "at"), p.floats()));
}

}  // namespace

void add_more_steps(nanobind::class_<Program>& plan) {
  plan.def("affine", &affine, arg("source"), arg("out"), arg("images"), arg("scale"), arg("offset"), arg("activation"),
           arg("numbers"));
  plan.def("activate", &activate, arg("source"), arg("out"), arg("images"), arg("activation"), arg("numbers"));
  plan.def("add", &combine<Elementwise::add>, arg("a"), arg("b"), arg("out"), arg("images"), arg("gate_images"),
           arg("activation"), arg("numbers"));
  plan.def("mul", &combine<Elementwise::mul>, arg("a"), arg("b"), arg("out"), arg("images"), arg("gate_images"),
           arg("activation"), arg("numbers"));
  plan.def("copy", &copy_channels, arg("source"), arg("out"), arg("images"), arg("channels"));
  plan.def("depthwise", &depthwise, arg("source"), arg("moves"), arg("index"), arg("fill"), arg("groups_of_source"),
           arg("scratch"), arg("origin"), arg("row"), arg("out"), arg("residual").none(), arg("taps"), arg("weights"),
           arg("bias"), arg("activation"), arg("numbers"));
  plan.def("pool", &pool, arg("source"), arg("moves"), arg("index"), arg("fill"), arg("groups_of_source"),
           arg("scratch"), arg("origin"), arg("row"), arg("out"), arg("taps"), arg("largest"), arg("factors"));
  plan.def("global_average", &global_average, arg("source"), arg("out"), arg("images"), arg("pixels"), arg("mask"));
  plan.def("adaptive_average", &adaptive_average, arg("source"), arg("out"), arg("start"), arg("offsets"), arg("at"));
  plan.def("linear", &linear, arg("source"), arg("out"), arg("images"), arg("weights"), arg("bias"), arg("activation"),
           arg("numbers"));
  plan.def("sparse_linear", &sparse_linear, arg("source"), arg("out"), arg("images"), arg("values"), arg("columns"),
           arg("start"), arg("bias"), arg("activation"), arg("numbers"));
  plan.def("layer_norm", &layer_norm, arg("source"), arg("out"), arg("images"), arg("scale"), arg("offset"), arg("eps"));
  plan.def("softmax", &softmax, arg("source"), arg("out"), arg("images"));
  plan.def("flatten", &flatten, arg("source"), arg("out"), arg("images"), arg("at"));
}

}  // namespace budwood::bind
