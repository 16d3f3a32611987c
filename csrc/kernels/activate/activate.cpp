#include "kernels/activation.hpp"

#include "simd/math.hpp"

namespace budwood::BUDWOOD_ISA {
namespace {

template <class F>
void each(const Activate& a, F f) {
  for (int64_t c = 0; c < a.channels; ++c) {
    float* data = a.data + c * a.channel;
    int64_t i = 0;
    for (; i + kLanes <= a.floats; i += kLanes) store(data + i, f(load(data + i)));
    if (const int rest = static_cast<int>(a.floats - i)) store_first(data + i, f(load_first(data + i, rest)), rest);
  }
}

// min(1, max(0, (x + 3) / 6))
Vec hardsigmoid(Vec x) { return mul(clamp(add(x, broadcast(3.0f)), 0.0f, 6.0f), broadcast(1.0f / 6)); }

// x / 2 * (1 + part): both forms of GELU. At -infinity this is infinity times 0, NaN as in PyTorch.
Vec gelu_of(Vec x, Vec part) { return mul(mul(broadcast(0.5f), x), add(broadcast(1.0f), part)); }

// sqrt(2 / pi) (x + 0.044715 x^3)
Vec gelu_argument(Vec x) {
  return mul(broadcast(0.7978845608f), fma(mul(broadcast(0.044715f), mul(x, x)), x, x));
}

}  // namespace

void activate(const Activate& a) {
  const Vec zero = broadcast(0.0f), one = broadcast(1.0f);
  switch (a.f.kind) {
    case Activation::relu: return each(a, [=](Vec x) { return max(zero, x); });
    case Activation::relu6: return each(a, [](Vec x) { return clamp(x, 0.0f, 6.0f); });
    case Activation::clamp: return each(a, [&](Vec x) { return clamp(x, a.f.low, a.f.high); });
    case Activation::leaky_relu:
      return each(a, [=, slope = broadcast(a.f.slope)](Vec x) { return select(less(zero, x), x, mul(x, slope)); });
    case Activation::hardsigmoid: return each(a, [](Vec x) { return hardsigmoid(x); });
    case Activation::hardswish: return each(a, [](Vec x) { return mul(x, hardsigmoid(x)); });
    case Activation::sigmoid: return each(a, [](Vec x) { return sigmoid(x); });
    // As one division: x * sigmoid(x) would round twice. NaN at -infinity as in PyTorch.
    case Activation::silu: return each(a, [=](Vec x) { return div(x, add(one, exp(sub(zero, x)))); });
    case Activation::tanh: return each(a, [](Vec x) { return tanh(x); });
    case Activation::gelu: return each(a, [](Vec x) { return gelu_of(x, erf(mul(x, broadcast(0.7071067812f)))); });
    case Activation::gelu_tanh: return each(a, [](Vec x) { return gelu_of(x, tanh(gelu_argument(x))); });
    default: return;
  }
}

}  // namespace budwood::BUDWOOD_ISA
