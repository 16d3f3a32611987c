#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bind/arrays.hpp"
#include "runtime/instruction_sets.hpp"
#include "runtime/plan.hpp"

namespace budwood::bind {

using Numbers = std::array<int64_t, 11>;  // the fields of Map in their order

inline Map map_of(const Numbers& n) { return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10]}; }

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

  // inputs and outputs: float32 [images, ...] arrays, of `sizes` floats each, checked by the caller in Python too.
  std::vector<double> run(const std::vector<Input>& inputs, const std::vector<Output>& outputs, int threads, bool timed) {
    std::vector<const float*> in;
    std::vector<float*> out;
    if (inputs.size() != in_floats.size() || outputs.size() != out_floats.size()) refuse("wrong number of inputs or outputs");
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].dtype() != nanobind::dtype<float>() || !c_contiguous(inputs[i]) || static_cast<int64_t>(inputs[i].size()) != in_floats[i])
        refuse("input " + std::to_string(i) + " must be C-contiguous float32 of " + std::to_string(in_floats[i]) + " numbers");
      in.push_back(pointer<float>(inputs[i]));
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].dtype() != nanobind::dtype<float>() || !c_contiguous(outputs[i]) || static_cast<int64_t>(outputs[i].size()) != out_floats[i])
        refuse("output " + std::to_string(i) + " must be C-contiguous float32 of " + std::to_string(out_floats[i]) + " numbers");
      out.push_back(pointer<float>(outputs[i]));
    }
    std::vector<double> seconds(timed ? plan_.steps() : 0, 0.0);
    nanobind::gil_scoped_release unlocked;
    plan_.run(in.data(), out.data(), threads, timed ? seconds.data() : nullptr);
    return seconds;
  }

  std::vector<int64_t> in_floats, out_floats;

 private:
  static const Kernels& kernels_of(const std::string& isa) {
    const InstructionSet* set = find_instruction_set(isa);
    if (!set) refuse("no instruction set '" + isa + "' here");
    return set->kernels;
  }
  Plan plan_;
};

// The steps that are not in bind/plan.cpp.
void add_more_steps(nanobind::class_<Program>& plan);

}  // namespace budwood::bind
