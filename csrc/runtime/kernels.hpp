#pragma once

#include "kernels/activation.hpp"
#include "kernels/batch_norm/batch_norm.hpp"
#include "kernels/conv_gradient/conv_gradient.hpp"
#include "kernels/dense_conv/dense_conv.hpp"
#include "kernels/elementwise/elementwise.hpp"
#include "kernels/global_average/global_average.hpp"
#include "kernels/layer_norm/layer_norm.hpp"
#include "kernels/linear/linear.hpp"
#include "kernels/multiply_add/multiply_add.hpp"
#include "kernels/pool/pool.hpp"
#include "kernels/repack/repack.hpp"
#include "kernels/softmax/softmax.hpp"
#include "kernels/sparse_conv/sparse_conv.hpp"
#include "kernels/sparse_linear/sparse_linear.hpp"
#include "kernels/stencil/stencil.hpp"
#include "kernels/window_gradient/window_gradient.hpp"

// The kernel table: one line a kernel. The argument type is the kernel's name in another case.
#define BUDWOOD_KERNELS(X)              \
  X(repack, Repack)                     \
  X(sparse_conv, SparseConv)            \
  X(dense_conv, DenseConv)              \
  X(conv_gradient, ConvGradient)        \
  X(stencil, Stencil) \
  X(pool, Pool)                         \
  X(global_average, GlobalAverage)      \
  X(linear, Linear)                     \
  X(sparse_linear, SparseLinear)        \
  X(layer_norm, LayerNorm)              \
  X(layer_norm_vector, LayerNormVector) \
  X(softmax, Softmax)                   \
  X(multiply_add, MultiplyAdd)          \
  X(elementwise, Elementwise)           \
  X(activate, Activate)                 \
  X(batch_sums, BatchSums)              \
  X(batch_norm, BatchNorm)              \
  X(batch_norm_sums, BatchNormSums)     \
  X(batch_norm_back, BatchNormBack)     \
  X(spread, Spread)                     \
  X(max_pool_gradient, MaxPoolGradient) \
  X(stencil_gradient, StencilGradient)  \
  X(put_back, PutBack)

namespace budwood {

// The kernels compiled for one instruction set.
struct Kernels {
  int lanes;  // floats in a vector
#define BUDWOOD_FIELD(name, Argument) void (*name)(const Argument&);
  BUDWOOD_KERNELS(BUDWOOD_FIELD)
#undef BUDWOOD_FIELD
};

}  // namespace budwood
