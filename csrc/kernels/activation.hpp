#pragma once

#include <cstdint>

namespace budwood {

// An elementwise function; the kinds are those of engine/graph.py. NaN stays NaN in all of them.
struct Activation {
  enum Kind : int32_t {
    identity, relu, relu6, leaky_relu, hardswish, hardsigmoid, silu, sigmoid, gelu, gelu_tanh, tanh, clamp, kinds
  };
  Kind kind = identity;
  float slope = 0, low = 0, high = 0;  // of leaky_relu; of clamp
};

// data[c * channel + i] = f(data[c * channel + i]) for c in [0, channels), i in [0, floats).
struct Activate {
  float* data;
  int64_t channel, channels, floats;
  Activation f;
};

}  // namespace budwood
