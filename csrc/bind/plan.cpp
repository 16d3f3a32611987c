#include "bind/plan.hpp"

#include "bind/program.hpp"
#include "runtime/steps/checks.hpp"
#include "runtime/steps/conv.hpp"
#include "runtime/steps/repack.hpp"

namespace budwood::bind {
namespace {

ConvShape conv_shape(const Program& p, const Numbers& operand, const Numbers& out, const std::optional<Numbers>& residual,
                     const Input& offsets, int64_t widest, const Input& blocks, bool by_channels, int32_t activation,
                     const std::array<float, 3>& numbers, const Input& bias) {
  return {map_of(operand), map_of(out), map_or_none(residual),
          copy<int64_t>(offsets, "offsets", "int64"), widest, copy<int64_t>(blocks, "blocks", "int64"), by_channels,
          activation_of(activation, numbers), copy<float>(bias, "bias", "float32"), p.lanes()};
}

// Whether a caller's array holds all images of all groups of a segment, and an image all channels of a map.
bool fits(const Program& p, int64_t floats, int64_t image, int64_t channel, int64_t images, const Map& map) {
  if (image < 0 || channel < 0 || images < 1 || image > floats || channel > floats || images > floats) return false;
  return __int128(p.groups()) * images * image <= floats && __int128(map.channels) * channel <= image;
}

// A plan's arena in Python's hands; the plan lives as long, and gets it back in the end.
class TakenArena {
 public:
  explicit TakenArena(nanobind::handle plan)
      : plan_(nanobind::borrow(plan)), arena_(nanobind::cast<Program&>(plan).plan().take_arena()) {}
  ~TakenArena() { nanobind::cast<Program&>(plan_).plan().keep_arena(std::move(arena_)); }
  TakenArena(const TakenArena&) = delete;
  TakenArena& operator=(const TakenArena&) = delete;

  const Plan::Arena& of(nanobind::handle plan) const {
    if (!plan_.is(plan)) refuse("the arena is of another plan");
    return *arena_;
  }

 private:
  nanobind::object plan_;
  std::unique_ptr<Plan::Arena> arena_;
};

void add_steps(nanobind::class_<Program>& plan) {
  using nanobind::arg;
  plan.def("sparse_conv",
           [](Program& p, const Numbers& operand, const Numbers& out, const std::optional<Numbers>& residual,
              const Input& offsets, int64_t widest, const Input& blocks, bool by_channels, int32_t activation,
              const std::array<float, 3>& numbers, const Input& bias, const Input& values, const Input& columns,
              const Input& start) {
             p.plan().add(std::make_unique<SparseConvStep>(
                 conv_shape(p, operand, out, residual, offsets, widest, blocks, by_channels, activation, numbers, bias), p.floats(),
                 list<float>(values, "values", "float32"), list<int32_t>(columns, "columns", "int32"),
                 list<int64_t>(start, "start", "int64")));
           },
           arg("operand"), arg("out"), arg("residual").none(), arg("offsets"), arg("widest"), arg("blocks"), arg("by_channels"),
           arg("activation"), arg("numbers"), arg("bias"), arg("values"), arg("columns"), arg("start"));
  plan.def("dense_conv",
           [](Program& p, const Numbers& operand, const Numbers& out, const std::optional<Numbers>& residual,
              const Input& offsets, int64_t widest, const Input& blocks, bool by_channels, int32_t activation,
              const std::array<float, 3>& numbers, const Input& bias, const Input& weights, int64_t groups) {
             p.plan().add(std::make_unique<DenseConvStep>(
                 conv_shape(p, operand, out, residual, offsets, widest, blocks, by_channels, activation, numbers, bias), p.floats(),
                 list<float>(weights, "weights", "float32"), groups));
           },
           arg("operand"), arg("out"), arg("residual").none(), arg("offsets"), arg("widest"), arg("blocks"), arg("by_channels"),
           arg("activation"), arg("numbers"), arg("bias"), arg("weights"), arg("groups"));
  plan.def("repack",
           [](Program& p, const Numbers& from, const Numbers& to, const Input& moves, const Input& row,
              const Input& index, float fill, int64_t groups_of_source) {
             p.plan().add(std::make_unique<RepackStep>(map_of(from), map_of(to), moves_of(moves),
                                                       copy<int64_t>(row, "row", "int64"),
                                                       copy<int32_t>(index, "index", "int32"), fill, groups_of_source,
                                                       p.floats(), p.lanes()));
           },
           arg("source"), arg("out"), arg("moves"), arg("row"), arg("index"), arg("fill"), arg("groups_of_source"));
  plan.def("input",
           [](Program& p, int64_t number, int64_t image, int64_t channel, int64_t images, const Numbers& to,
              const Input& moves, const Input& row, const Input& index, float fill) {
             const Map map = map_of(to);
             require(fits(p, p.reads(number), image, channel, images, map), "an input is smaller than its map");
             // A gather may name any image of its group.
             p.plan().add(std::make_unique<RepackStep>(Outside{number, image, channel}, images, map, moves_of(moves),
                                                       copy<int64_t>(row, "row", "int64"),
                                                       copy<int32_t>(index, "index", "int32"), fill,
                                                       (images - 1) * image + channel, p.floats(), p.lanes()));
           },
           arg("number"), arg("image"), arg("channel"), arg("images"), arg("out"), arg("moves"), arg("row"),
           arg("index"), arg("fill"));
  plan.def("input_vector",
           [](Program& p, int64_t number, const Numbers& out, int64_t images) {
             const Map map = with_images(map_of(out), images);
             require(fits(p, p.reads(number), map.channels, 1, images, map), "an input is smaller than its map");
             require(map.height == images && map.width == 1 && map.lanes == 1 && map.channel == 1, "a plain vector is needed");
             p.plan().add(std::make_unique<VectorInputStep>(number, map, p.floats()));
           },
           arg("number"), arg("out"), arg("images"));
  plan.def("expand",
           [](Program& p, const Numbers& from, const Numbers& out, int64_t images, const Input& at) {
             p.plan().add(std::make_unique<ExpandStep>(with_images(map_of(from), images), map_of(out),
                                                       copy<int64_t>(at, "at", "int64"), p.floats()));
           },
           arg("source"), arg("out"), arg("images"), arg("at"));
  plan.def("output",
           [](Program& p, const Numbers& from, int64_t number, int64_t image, int64_t channel, int64_t images,
              const Input& at) {
             const Map map = map_of(from);
             require(fits(p, p.writes(number), image, channel, images, map) && int64_t(at.size()) <= images * channel,
                     "an output is smaller than its map");
             p.plan().add(std::make_unique<OutputStep>(map, Outside{number, image, channel}, images,
                                                       copy<int64_t>(at, "at", "int64"), p.floats()));
           },
           arg("source"), arg("number"), arg("image"), arg("channel"), arg("images"), arg("at"));
}

}  // namespace

void add_plan(nanobind::module_& module) {
  using nanobind::arg;
  nanobind::register_exception_translator(
      [](const std::exception_ptr& p, void*) {
        try {
          std::rethrow_exception(p);
        } catch (const PlanError& error) {
          PyErr_SetString(PyExc_ValueError, error.what());
        }
      });
  nanobind::class_<Program> plan(module, "Plan");
  plan.def("__init__",
           [](Program* self, const std::string& isa, int64_t arena, const std::vector<int64_t>& inputs,
              const std::vector<int64_t>& outputs) {
             new (self) Program(isa, arena);
             self->in_floats = inputs;
             self->out_floats = outputs;
           },
           arg("isa"), arg("arena"), arg("inputs"), arg("outputs"));
  plan.def("segment", [](Program& p, int64_t groups) { p.plan().segment(groups); }, arg("groups"));
  plan.def("order",
           [](Program& p, const std::vector<std::array<int64_t, 2>>& turns) {
             std::vector<Plan::Turn> order;
             for (const auto& t : turns) order.push_back({t[0], t[1]});
             p.plan().order(std::move(order));
           },
           arg("turns"));
  plan.def_prop_ro("arena_floats", &Program::floats);
  nanobind::class_<TakenArena>(module, "Arena");
  plan.def("take", [](nanobind::handle_t<Program> p) { return new TakenArena(p); });
  plan.def("free_arenas", [](Program& p) { p.plan().free_arenas(); });
  plan.def("run_turns",
           [](nanobind::handle_t<Program> p, const TakenArena& arena, int64_t first, int64_t last,
              const std::vector<std::optional<Input>>& inputs, const std::vector<std::optional<Output>>& outputs,
              int threads, bool timed) {
             return nanobind::cast<Program&>(p).run_turns(arena.of(p), first, last, inputs, outputs, threads, timed);
           },
           arg("arena"), arg("first"), arg("last"), arg("inputs"), arg("outputs"), arg("threads"), arg("timed"));
  plan.def("run", &Program::run, arg("inputs"), arg("outputs"), arg("threads"), arg("timed"));
  plan.def("run_each", &Program::run_each, arg("inputs"), arg("outputs"), arg("pieces"), arg("threads"));
  add_steps(plan);
  add_more_steps(plan);
  add_training_conv(plan);
  add_training_maps(plan);
}

}  // namespace budwood::bind
