#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bind/arrays.hpp"
#include "runtime/instruction_sets.hpp"
#include "runtime/moves.hpp"
#include "runtime/plan.hpp"

namespace budwood::bind {

using Numbers = std::array<int64_t, 11>;  // the fields of Map in their order

inline Map map_of(const Numbers& n) { return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10]}; }

// A map of no groups where there is none.
inline Map map_or_none(const std::optional<Numbers>& n) { return n ? map_of(*n) : Map{}; }

inline Activation activation_of(int32_t kind, const std::array<float, 3>& numbers) {
  if (kind < 0 || kind >= Activation::kinds) refuse("unknown activation");
  return {static_cast<Activation::Kind>(kind), numbers[0], numbers[1], numbers[2]};
}

template <class T>
std::span<const T> list(const Input& array, const char* name, const char* type) {
  check<T>(array, name, 1, type);
  return {pointer<T>(array), array.size()};
}

template <class T>
std::vector<T> copy(const Input& array, const char* name, const char* type) {
  const auto span = list<T>(array, name, type);
  return {span.begin(), span.end()};
}

// moves: int64 [moves, 4], the fields of Move in their order.
inline std::vector<Move> moves_of(const Input& array) {
  check<int64_t>(array, "moves", 2, "int64");
  if (array.shape(1) != 4) refuse("moves must be [moves, 4]");
  const int64_t* n = pointer<int64_t>(array);
  std::vector<Move> moves(array.shape(0));
  for (auto& m : moves) {
    if (n[0] < 0 || n[0] > Move::gather) refuse("unknown kind of move");
    m = {static_cast<int32_t>(n[0]), static_cast<int32_t>(n[1]), n[2], n[3]};
    n += 4;
  }
  return moves;
}

// A plan as Python sees it: its steps are added one by one, then it is run.
class Program {
 public:
  Program(const std::string& isa, int64_t arena_floats) : plan_(kernels_of(isa), arena_floats) {}

  Plan& plan() { return plan_; }
  int64_t groups() const { return plan_.groups(); }
  int64_t floats() const { return plan_.arena_floats(); }
  int64_t lanes() const { return plan_.kernels().lanes; }

  // inputs and outputs: float32 [images, ...] arrays.
  std::vector<double> run(const std::vector<Input>& inputs, const std::vector<Output>& outputs, int threads, bool timed) {
    const auto in = each<const float>(inputs, "input ", in_floats, 1);
    const auto out = each<float>(outputs, "output ", out_floats, 1);
    std::vector<double> seconds(timed ? plan_.steps() : 0, 0.0);
    nanobind::gil_scoped_release unlocked;
    plan_.run(in.data(), out.data(), threads, timed ? seconds.data() : nullptr);
    return seconds;
  }

  // The same for so many pieces one after the other: [pieces * images, ...] arrays.
  void run_each(const std::vector<Input>& inputs, const std::vector<Output>& outputs, int64_t pieces, int threads) {
    if (pieces < 1 || out_floats.empty() || std::ranges::min(out_floats) < 1) refuse("there is no piece to run");
    const auto out = each<float>(outputs, "output ", out_floats, pieces);  // so there are arrays of so many pieces
    const auto in = each<const float>(inputs, "input ", in_floats, pieces);
    std::vector<Plan::Arrays> arrays;
    for (int64_t p = 0; p < pieces; ++p) arrays.push_back({in.data() + p * inputs.size(), out.data() + p * outputs.size()});
    nanobind::gil_scoped_release unlocked;
    plan_.run_each(arrays, threads);
  }

  // Turns [first, last) of the order, in an arena that was taken. What none of them uses may be left out.
  std::vector<double> run_turns(const Plan::Arena& arena, int64_t first, int64_t last,
                                const std::vector<std::optional<Input>>& inputs,
                                const std::vector<std::optional<Output>>& outputs, int threads, bool timed) {
    if (first < 0 || first > last || last > static_cast<int64_t>(plan_.turns().size())) refuse("no such turns");
    if (inputs.size() != in_floats.size() || outputs.size() != out_floats.size()) refuse("wrong number of inputs or outputs");
    std::vector<const float*> in(inputs.size(), nullptr);
    std::vector<float*> out(outputs.size(), nullptr);
    for (size_t i = 0; i < inputs.size(); ++i)
      if (inputs[i]) in[i] = numbers<const float>(*inputs[i], "input ", i, in_floats[i]);
    for (size_t i = 0; i < outputs.size(); ++i)
      if (outputs[i]) out[i] = numbers<float>(*outputs[i], "output ", i, out_floats[i]);
    for (int64_t turn = first; turn < last; ++turn) {
      const int64_t segment = plan_.turns()[turn].segment;
      for (const auto& [of, number] : reads_)
        if (of == segment && !in[number]) refuse("input " + std::to_string(number) + " is used by these turns");
      for (const auto& [of, number] : writes_)
        if (of == segment && !out[number]) refuse("output " + std::to_string(number) + " is used by these turns");
    }
    std::vector<double> seconds(timed ? plan_.steps() : 0, 0.0);
    nanobind::gil_scoped_release unlocked;
    plan_.run_turns(arena, first, last, in.data(), out.data(), threads, timed ? seconds.data() : nullptr);
    return seconds;
  }

  // The floats of an input (output) that a step of the segment begun last uses.
  int64_t reads(int64_t number) {
    require(number >= 0 && number < static_cast<int64_t>(in_floats.size()), "no such input");
    reads_.emplace(plan_.segments() - 1, number);
    return in_floats[number];
  }
  int64_t writes(int64_t number) {
    require(number >= 0 && number < static_cast<int64_t>(out_floats.size()), "no such output");
    writes_.emplace(plan_.segments() - 1, number);
    return out_floats[number];
  }

  std::vector<int64_t> in_floats, out_floats;

 private:
  static const Kernels& kernels_of(const std::string& isa) {
    const InstructionSet* set = find_instruction_set(isa);
    if (!set) refuse("no instruction set '" + isa + "' here");
    return set->kernels;
  }
  // Where each piece of each array begins, piece after piece.
  template <class T>
  static std::vector<T*> each(const auto& arrays, const char* what, const std::vector<int64_t>& floats, int64_t pieces) {
    if (arrays.size() != floats.size()) refuse("wrong number of inputs or outputs");
    std::vector<T*> begins;
    for (size_t i = 0; i < arrays.size(); ++i) {
      T* const begin = numbers<T>(arrays[i], what, i, floats[i], pieces);
      begins.resize(arrays.size() * pieces);
      for (int64_t p = 0; p < pieces; ++p) begins[p * arrays.size() + i] = begin + p * floats[i];
    }
    return begins;
  }
  template <class T>
  static T* numbers(const auto& array, const char* what, size_t number, int64_t floats, int64_t pieces = 1) {
    const bool aligned = reinterpret_cast<uintptr_t>(array.data()) % alignof(float) == 0;
    const auto size = static_cast<int64_t>(array.size());
    if (array.dtype() != nanobind::dtype<float>() || !c_contiguous(array) || !aligned || size % pieces != 0 ||
        size / pieces != floats)
      refuse(what + std::to_string(number) + " must be C-contiguous, aligned float32 of " + std::to_string(floats) +
             " numbers" + (pieces > 1 ? " for each of " + std::to_string(pieces) + " pieces" : ""));
    return static_cast<T*>(array.data());
  }

  Plan plan_;
  std::set<std::pair<int64_t, int64_t>> reads_, writes_;  // segment and number of the caller's arrays that it uses
};

// The steps that are not in bind/plan.cpp.
void add_more_steps(nanobind::class_<Program>& plan);
void add_training_conv(nanobind::class_<Program>& plan);
void add_training_maps(nanobind::class_<Program>& plan);

}  // namespace budwood::bind
