#include "kernels/elementwise/elementwise.hpp"

#include "simd/math.hpp"

namespace budwood::BUDWOOD_ISA {
namespace {

// Where an operand's vector at place i comes from, whole or the first n floats of it.
struct Row {
  const float* at;
  Vec whole(int64_t i) const { return load(at + i); }
  Vec part(int64_t i, int n) const { return load_first(at + i, n); }
};
struct Constant {
  Vec value;
  Vec whole(int64_t) const { return value; }
  Vec part(int64_t, int) const { return value; }
};

template <Operand::Kind K>
auto source(const Operand& o, int64_t y, int64_t c) {
  const float* at = o.at + y * o.row + c * o.channel;
  if constexpr (K == Operand::map) return Row{at};
  else if constexpr (K == Operand::number) return Constant{broadcast(*at)};
  else return Constant{gather(at, o.lane, broadcast(0.0f))};
}

template <Elementwise::Op Op>
Vec combine(Vec a, Vec b, Vec d) {
  if constexpr (Op == Elementwise::add) return add(a, b);
  else if constexpr (Op == Elementwise::mul) return mul(a, b);
  else if constexpr (Op == Elementwise::affine) return fma(a, b, d);
  else return a;
}

template <Elementwise::Op Op, class B, class D>
void row(const Elementwise& e, Row a, B b, D d, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= e.floats; i += kLanes)
    store(out + i, clamp(combine<Op>(a.whole(i), b.whole(i), d.whole(i)), e.low, e.high));
  if (const int n = static_cast<int>(e.floats - i))
    store_first(out + i, clamp(combine<Op>(a.part(i, n), b.part(i, n), d.part(i, n)), e.low, e.high), n);
}

template <Elementwise::Op Op, Operand::Kind K>
void rows(const Elementwise& e) {
  for (int64_t y = 0; y < e.rows; ++y)
    for (int64_t c = 0; c < e.channels; ++c) {
      const Row a = source<Operand::map>(e.a, y, c);
      float* out = e.out + y * e.out_row + c * e.out_channel;
      if constexpr (Op == Elementwise::copy) row<Op>(e, a, a, a, out);
      else if constexpr (Op == Elementwise::affine) row<Op>(e, a, source<K>(e.b, y, c), source<K>(e.d, y, c), out);
      else row<Op>(e, a, source<K>(e.b, y, c), Constant{broadcast(0.0f)}, out);
    }
}

template <Elementwise::Op Op>
void of_kind(const Elementwise& e) {
  switch (e.b.kind) {
    case Operand::map: return rows<Op, Operand::map>(e);
    case Operand::number: return rows<Op, Operand::number>(e);
    default: return rows<Op, Operand::by_lane>(e);
  }
}

}  // namespace

void elementwise(const Elementwise& e) {
  switch (e.op) {
    case Elementwise::add: return of_kind<Elementwise::add>(e);
    case Elementwise::mul: return of_kind<Elementwise::mul>(e);
    case Elementwise::affine:
      return e.b.kind == Operand::map ? rows<Elementwise::affine, Operand::map>(e)
                                      : rows<Elementwise::affine, Operand::number>(e);
    default: return rows<Elementwise::copy, Operand::map>(e);
  }
}

}  // namespace budwood::BUDWOOD_ISA
