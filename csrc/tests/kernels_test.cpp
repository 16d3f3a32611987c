// Every kernel of every instruction set of this machine against the same sum in double, at sizes below, at and above
// its tiles, with canaries around its output and with NaN and infinity among its inputs. Needs no Python.
#include <algorithm>
#include <numeric>

#include "testing.hpp"

namespace budwood::testing {
namespace {

struct Limits {
  float low, high;
};
const Limits kLimits[] = {{-kInf, kInf}, {0, kInf}, {-0.5f, 0.75f}};

// ---- repack

void test_repack(const Kernels& k, Random& random) {
  const int64_t L = k.lanes, floats = 10 * L, pitch = floats + 3;
  for (int64_t channels : {0, 1, 5, 1, 5, 1, 5}) {
    const auto from = random.floats(channels ? (channels - 1) * pitch + floats : 0);  // and nothing behind them
    std::vector<int32_t> index;
    std::vector<MoveRun> runs;
    int64_t to = 0;
    for (int32_t kind : {MoveRun::copy, MoveRun::permute, MoveRun::merge, MoveRun::gather, MoveRun::fill, MoveRun::permute, MoveRun::merge, MoveRun::merge, MoveRun::gather, MoveRun::gather}) {
      const bool gather = kind == MoveRun::gather;
      const int64_t step = gather ? random.below(6) : random.below(3 * L), most = gather ? 1 + (floats - 1) / std::max<int64_t>(step, 1) : 3;
      const int64_t count = kind == MoveRun::merge ? runs.back().count : 1 + random.below(std::min<int64_t>(most, 3 * L));
      if (kind == MoveRun::merge) to = runs.back().to;
      runs.push_back({kind, static_cast<int32_t>(runs.size()), count, to, gather ? 0 : random.below(floats - 2 * step - L), step});
      to += count * L;
      const int64_t last = gather ? floats - (count - 1) * step : L;
      for (int64_t l = 0; l < L; ++l)
        index.push_back(static_cast<int32_t>(random.chance(0.3) ? -1 : random.chance(0.2) ? last - 1 : random.below(last)));
    }
    const int64_t made = to;
    Target out(channels * (made + 5) + made);
    const float fill = -7.0f;
    k.repack({from.data(), out.data(), pitch, made + 5, channels, runs.data(), static_cast<int64_t>(runs.size()), index.data(), fill});
    for (int64_t c = 0; c < channels; ++c) {
      std::vector<float> wanted(made, fill);
      for (const MoveRun& m : runs)
        for (int64_t i = 0; i < m.count; ++i)
          for (int64_t l = 0; l < L; ++l) {
            const int64_t at = index[m.index * L + l], first = c * pitch + m.from + i * m.step;
            float& v = wanted[m.to + i * L + l];
            if (m.kind == MoveRun::copy) v = from[first + l];
            else if (m.kind == MoveRun::fill) v = fill;
            else if (at >= 0) v = from[first + at];
            else if (m.kind != MoveRun::merge) v = fill;
          }
      for (int64_t at = 0; at < made; ++at) out.expect(c * (made + 5) + at, wanted[at], 0, label("repack", {channels, at}));
    }
    out.finish(label("repack", {channels}));
  }
}

// ---- convolutions

struct ConvCase {
  int tile;
  int64_t channels, depth;
  bool first, last, residual, special;
  Limits limits;
};

// Calls test(case) for a grid of them.
template <class Test>
void conv_cases(int most, Test test) {
  for (int tile = 1; tile <= most; ++tile)
    for (int64_t channels : {1, 3, 4, 8})
      for (int64_t depth : {0, 1, 9, 40})
        for (int mode = 0; mode < 8; ++mode)
          test(ConvCase{tile, channels, depth, mode % 2 == 0, mode / 2 % 2 == 0, mode / 4 == 0, (tile + depth) % 3 == 0,
                        kLimits[(tile + channels + depth) % 3]});
}

// Start value, products and clamp that sparse and dense convolution share.
struct ConvData {
  int64_t L, width, pitch, residual_pitch;
  std::vector<float> panel, residual, bias, before;
  std::vector<uint32_t> offsets;  // bytes

  ConvData(const ConvCase& q, int64_t lanes, Random& random) : L(lanes), width(q.tile * L), pitch(width + L), residual_pitch(width + 2 * L) {
    // Operands lie anywhere in the panel, some so far away that their places take all 16 bits.
    const int64_t places = (q.depth + 3) * (q.tile == 5 && q.channels == 3 ? 1500 : 2);
    panel = random.floats(places * L + width);
    if (q.special) panel[panel.size() / 2] = kNan, panel[panel.size() / 3] = kInf;
    residual = random.floats(q.channels * residual_pitch);
    bias = random.floats(q.channels);
    before = random.floats(q.channels * pitch);
    for (int64_t d = 0; d < q.depth; ++d) offsets.push_back(static_cast<uint32_t>(random.below(places) * L * 4));
  }

  void prepare(const ConvCase& q, Target& out) const {
    for (int64_t c = 0; !q.first && c < q.channels; ++c) std::copy_n(before.data() + c * pitch, width, out.data() + c * pitch);
  }

  template <class Weight>
  void expect(const ConvCase& q, Target& out, int64_t c, Weight weight, const std::string& what) const {
    for (int64_t i = 0; i < width; ++i) {
      Sum sum;
      sum.add(q.first ? bias[c] : before[c * pitch + i]);
      if (q.first && q.residual) sum.add(residual[c * residual_pitch + i]);
      for (int64_t d = 0; d < q.depth; ++d)
        if (const float w = weight(d); w != 0) sum.add(static_cast<double>(w) * panel[offsets[d] / 4 + i]);
      out.expect(c * pitch + i, q.last ? clamp(sum.value, q.limits.low, q.limits.high) : sum.value, sum.bound(), what);
    }
  }
};

void test_sparse_conv(const Kernels& k, Random& random) {
  conv_cases(kSparseTile, [&](const ConvCase& q) {
    const ConvData d(q, k.lanes, random);
    std::vector<SparseRow> rows;
    std::vector<float> kept;
    std::vector<uint16_t> places;
    std::vector<std::vector<float>> weight(q.channels, std::vector<float>(q.depth, 0));
    for (int64_t i = 0; i < q.channels; ++i) {
      const int64_t c = q.channels - 1 - i;  // the order of the rows is free
      const size_t begin = kept.size();
      for (int64_t e = 0; e < q.depth; ++e)
        if (random.chance(0.4)) {
          kept.push_back(weight[c][e] = random.normal());
          places.push_back(static_cast<uint16_t>(d.offsets[e] / sizeof(float) / k.lanes));
        }
      rows.push_back({static_cast<int32_t>(c), static_cast<int32_t>(kept.size() - begin)});
    }
    Target out(q.channels * d.pitch);
    d.prepare(q, out);
    k.sparse_conv({d.panel.data(), out.data(), q.residual ? d.residual.data() : nullptr, d.pitch, d.residual_pitch,
                   rows.data(), q.channels, kept.data(), places.data(), d.bias.data(), q.limits.low, q.limits.high, q.tile, q.first, q.last,
                   (q.tile + q.channels) % 2 == 0});
    const auto what = label("sparse_conv", {q.tile, q.channels, q.depth, q.first, q.last});
    for (int64_t c = 0; c < q.channels; ++c) d.expect(q, out, c, [&](int64_t e) { return weight[c][e]; }, what);
    out.finish(what);
  });
}

void test_dense_conv(const Kernels& k, Random& random) {
  conv_cases(kDenseTile, [&](const ConvCase& q) {
    ConvData d(q, k.lanes, random);
    const int64_t runs = (q.channels + kDenseRows - 1) / kDenseRows;
    const auto weights = random.floats(runs * q.depth * kDenseRows);
    Target out(q.channels * d.pitch);
    d.prepare(q, out);
    k.dense_conv({d.panel.data(), out.data(), q.residual ? d.residual.data() : nullptr, d.pitch, d.residual_pitch,
                  q.channels, q.depth, d.offsets.data(), weights.data(), d.bias.data(), q.limits.low, q.limits.high, q.tile,
                  q.first, q.last, q.depth % 2 == 0});
    const auto what = label("dense_conv", {q.tile, q.channels, q.depth, q.first, q.last});
    for (int64_t c = 0; c < q.channels; ++c)
      d.expect(q, out, c, [&](int64_t e) { return weights[(c / kDenseRows * q.depth + e) * kDenseRows + c % kDenseRows]; }, what);
    out.finish(what);
  });
}

void test_stencil(const Kernels& k, Random& random) {
  const int64_t L = k.lanes;
  for (int64_t height : {1, 3})
    for (int64_t width : {1, 2, 3, 4, 5, 6, 7, 8, 16})
      for (int32_t side : {1, 2, 3, 5, 6, 7})
        for (bool with_residual : {false, true}) {
          const int64_t row = (width + 8) * L, out_row = width * L + 3;
          auto plane = random.floats((height + 2) * row + 9 * L);
          plane[plane.size() / 2] = side == 2 ? kNan : kInf;
          const auto residual = random.floats(height * out_row);
          const std::vector<TapRun> runs{{0, side}, {row + L, 1}, {2 * row, side}};
          const auto weights = random.floats(2 * side + 1);
          const float bias = random.normal();
          const Limits limits = kLimits[width % 3];
          Target out(height * out_row);
          k.stencil({plane.data(), out.data(), with_residual ? residual.data() : nullptr, row, out_row, out_row, height, width,
                     runs.data(), 3, weights.data(), bias, limits.low, limits.high});
          const auto what = label("stencil", {height, width, side, with_residual});
          for (int64_t y = 0; y < height; ++y)
            for (int64_t i = 0; i < width * L; ++i) {
              Sum sum;
              sum.add(bias);
              if (with_residual) sum.add(residual[y * out_row + i]);
              int64_t tap = 0;
              for (const TapRun& r : runs)
                for (int64_t n = 0; n < r.taps; ++n)
                  sum.add(static_cast<double>(weights[tap++]) * plane[y * row + i + r.offset + n * L]);
              out.expect(y * out_row + i, clamp(sum.value, limits.low, limits.high), sum.bound(), what);
            }
          out.finish(what);
        }
}

// ---- pooling

void test_pool(const Kernels& k, Random& random) {
  const int64_t L = k.lanes, plane = 40 * L, pitch = 20 * L, channels = 3;
  for (int tile = 1; tile <= kPoolTile; ++tile)
    for (int64_t count : {1, 4, 9})
      for (int mode = 0; mode < 3; ++mode) {  // largest, average with one factor, with a table
        auto operand = random.floats(channels * plane);
        for (int n = 0; n < 40; ++n) operand[random.below(channels * plane)] = n % 2 ? kNan : -kInf;
        std::vector<int64_t> from, to, table_at, taps;
        for (int t = 0; t < tile; ++t) from.push_back(random.below(10) * L), to.push_back(t * 2 * L), table_at.push_back((tile - t) * L);
        for (int64_t n = 0; n < count; ++n) taps.push_back(random.below(29) * L);
        const auto table = random.floats((tile + 1) * L);
        Target out(channels * pitch);
        k.pool({operand.data(), out.data(), from.data(), to.data(), table_at.data(), plane, pitch, channels, taps.data(), count,
                mode == 2 ? table.data() : nullptr, 0.25f, tile, mode == 0});
        const auto what = label("pool", {tile, count, mode});
        for (int64_t c = 0; c < channels; ++c)
          for (int t = 0; t < tile; ++t)
            for (int64_t l = 0; l < L; ++l) {
              Sum sum;
              float largest = -kInf;
              for (int64_t tap : taps) {
                const float x = operand[c * plane + from[t] + tap + l];
                sum.add(x);
                if (std::isnan(x) || x > largest) largest = x;
                if (std::isnan(sum.value)) largest = kNan;
              }
              const double factor = mode == 2 ? table[table_at[t] + l] : 0.25f;
              out.expect(to[t] + c * pitch + l, mode == 0 ? largest : sum.value * factor,
                         mode == 0 ? 0 : sum.bound() * std::fabs(factor), what);
            }
        out.finish(what);
      }
}

void test_global_average(const Kernels& k, Random& random) {
  const int64_t L = k.lanes, channels = 3;
  for (int64_t images = 1; images <= L; images *= 2)
    for (int64_t rows : {1, 4, 7})
      for (int64_t vectors : {1, 3})
        for (bool masked : {false, true}) {
          const int64_t row = channels * vectors * L + 5, channel = vectors * L;
          auto from = random.floats(rows * row);
          std::vector<float> mask(rows * vectors * L, 1);
          if (masked) {
            for (float& m : mask) m = random.chance(0.8) ? 1.0f : 0.0f;
            for (int64_t y = 0; y < rows; ++y)
              for (int64_t c = 0; c < channels; ++c)
                for (int64_t x = 0; x < vectors * L; ++x)
                  if (mask[y * vectors * L + x] == 0) from[y * row + c * channel + x] = random.chance(0.5) ? kNan : kInf;
          } else {
            from[row - 6] = kNan;  // the last channel
          }
          const int64_t to_image = channels * 2 + 1, to_channel = 2;
          Target out(images * to_image);
          k.global_average({from.data(), out.data(), masked ? mask.data() : nullptr, row, channel, to_image, to_channel, rows,
                            vectors, channels, images, 13.0});
          const auto what = label("global_average", {images, rows, vectors, masked});
          for (int64_t i = 0; i < images; ++i)
            for (int64_t c = 0; c < channels; ++c) {
              Sum sum;
              for (int64_t y = 0; y < rows; ++y)
                for (int64_t x = 0; x < vectors; ++x)
                  for (int64_t l = i * (L / images); l < (i + 1) * (L / images); ++l)
                    if (mask[(y * vectors + x) * L + l] != 0) sum.add(from[y * row + c * channel + x * L + l]);
              out.expect(i * to_image + c * to_channel, sum.value / 13, sum.bound() / 13, what);
            }
          out.finish(what);
        }
}

// ---- linear layers

void test_linear(const Kernels& k, Random& random) {
  const int64_t L = k.lanes;
  for (int64_t images : {1, 2, 3, 4, 5, 6, 7, 13})
    for (int64_t outputs : {int64_t(1), L - 1, L, L + 1, 4 * L, 8 * L, 9 * L + 2})
      for (int64_t depth : {1, 5, 256, 257, 700}) {
        auto x = random.floats(images * (depth + 3));
        if (depth == 5) x[2] = kNan, x[(images - 1) * 8] = kInf;
        const auto bias = random.floats(outputs);
        const auto weights = random.floats((outputs + L - 1) / L * L * depth);
        const Limits limits = kLimits[(images + outputs) % 3];
        const int64_t pitch = outputs + 5;
        Target out(images * pitch);
        k.linear({x.data(), out.data(), depth + 3, pitch, images, depth, outputs, weights.data(), bias.data(), limits.low, limits.high});
        const auto what = label("linear", {images, outputs, depth});
        for (int64_t i = 0; i < images; ++i)
          for (int64_t m = 0; m < outputs; ++m) {
            Sum sum;
            sum.add(bias[m]);
            for (int64_t d = 0; d < depth; ++d)
              sum.add(static_cast<double>(weights[(m / L * depth + d) * L + m % L]) * x[i * (depth + 3) + d]);
            sum.terms = std::min<int64_t>(sum.terms, 256 + 4);  // the bound of sums in runs
            out.expect(i * pitch + m, clamp(sum.value, limits.low, limits.high), sum.bound(), what);
          }
        out.finish(what);
      }
}

void test_sparse_linear(const Kernels& k, Random& random) {
  const int64_t L = k.lanes;
  for (int64_t images : {int64_t(1), int64_t(3), int64_t(4), L, L + 1, 2 * L + 5})
    for (int64_t rows : {1, 5, 18})
      for (int64_t depth : {1, 40, 600}) {
        auto x = random.floats(images * depth);
        if (depth == 40) x[3] = kNan, x[0] = kInf;
        const auto bias = random.floats(rows);
        std::vector<float> values;
        std::vector<int32_t> index;
        std::vector<int64_t> start{0};
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t d = 0; d < depth; ++d)
            if (random.chance(m == 2 ? 0 : 0.3)) values.push_back(random.normal()), index.push_back(static_cast<int32_t>(d));
          for (; values.size() % L != 0; values.push_back(0)) index.push_back(-1);
          start.push_back(static_cast<int64_t>(values.size()) / L);
        }
        const Limits limits = kLimits[(images + rows) % 3];
        Target out(images * (rows + 4));
        std::vector<float> scratch(images < kSparseLinearTogether ? 0 : depth * L);
        k.sparse_linear({x.data(), out.data(), scratch.data(), depth, rows + 4, images, rows, depth, values.data(), index.data(), start.data(),
                         bias.data(), limits.low, limits.high});
        const auto what = label("sparse_linear", {images, rows, depth});
        for (int64_t i = 0; i < images; ++i)
          for (int64_t m = 0; m < rows; ++m) {
            Sum sum;
            sum.add(bias[m]);
            for (int64_t e = start[m] * L; e < start[m + 1] * L; ++e)
              if (index[e] >= 0) sum.add(static_cast<double>(values[e]) * x[i * depth + index[e]]);
            out.expect(i * (rows + 4) + m, clamp(sum.value, limits.low, limits.high), sum.bound(), what);
          }
        out.finish(what);
      }
}

// ---- elementwise

void test_elementwise(const Kernels& k, Random& random) {
  const int64_t L = k.lanes, rows = 2, channels = 3;
  std::vector<int32_t> lane;
  for (int64_t l = 0; l < L; ++l) lane.push_back(static_cast<int32_t>(l / 2 * 7));
  for (int64_t floats : {int64_t(1), L - 1, L, L + 1, 3 * L + 2})
    for (int32_t op = 0; op < Elementwise::ops; ++op)
      for (int32_t kind : {Operand::map, Operand::number, Operand::by_lane})
        for (bool in_place : {false, true}) {
          if (op == Elementwise::affine && kind == Operand::by_lane) continue;
          const int64_t channel = floats + 1, row = channels * channel + 2, size = rows * row;
          auto a = random.floats(size), b = random.floats(size + L * 7), d = random.floats(size);
          a[0] = kNan, a[channel] = kInf;
          const auto value = [&](const std::vector<float>& v, int64_t y, int64_t c, int64_t i) -> double {
            const int64_t at = y * row + c * channel;
            return v[at + (kind == Operand::map ? i : kind == Operand::number ? 0 : lane[i % L])];
          };
          const Limits limits = kLimits[(floats + op) % 3];
          Target out(size);
          for (int64_t y = 0; in_place && y < rows; ++y)
            for (int64_t c = 0; c < channels; ++c) std::copy_n(a.data() + y * row + c * channel, floats, out.data() + y * row + c * channel);
          const auto operand = [&](const std::vector<float>& v) { return Operand{static_cast<Operand::Kind>(kind), v.data(), row, channel, lane.data()}; };
          k.elementwise({static_cast<Elementwise::Op>(op), {Operand::map, in_place ? out.data() : a.data(), row, channel, nullptr},
                         operand(b), operand(d), out.data(), row, channel, rows, channels, floats, limits.low, limits.high});
          const auto what = label("elementwise", {floats, op, kind, in_place});
          for (int64_t y = 0; y < rows; ++y)
            for (int64_t c = 0; c < channels; ++c)
              for (int64_t i = 0; i < floats; ++i) {
                const int64_t at = y * row + c * channel + i;
                const double x = a[at], p = value(b, y, c, i);
                Sum sum;
                if (op == Elementwise::copy) sum.add(x);
                if (op == Elementwise::add) sum.add(x), sum.add(p);
                if (op == Elementwise::mul) sum.add(x * p);
                if (op == Elementwise::affine) sum.add(x * p), sum.add(value(d, y, c, i));
                out.expect(at, clamp(sum.value, limits.low, limits.high), sum.bound(), what);
              }
          out.finish(what);
        }
}

double reference(const Activation& f, double x) {
  const double sixth = clamp(x + 3, 0, 6) / 6;
  switch (f.kind) {
    case Activation::relu: return clamp(x, 0, INFINITY);
    case Activation::relu6: return clamp(x, 0, 6);
    case Activation::leaky_relu: return x > 0 ? x : x * f.slope;
    case Activation::hardswish: return x * sixth;
    case Activation::hardsigmoid: return sixth;
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::sigmoid: return 1 / (1 + std::exp(-x));
    case Activation::gelu: return 0.5 * x * (1 + std::erf(x * M_SQRT1_2));
    case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(M_2_SQRTPI * M_SQRT1_2 * (x + 0.044715 * x * x * x)));
    case Activation::tanh: return std::tanh(x);
    case Activation::clamp: return clamp(x, f.low, f.high);
    default: return x;
  }
}

// NaN, both infinities (NaN where PyTorch says NaN: 0 times infinity), the largest and the smallest numbers, both
// zeros, and a fine grid where the functions bend.
std::vector<float> activation_inputs() {
  std::vector<float> x{kNan, kInf, -kInf, 0.0f, -0.0f, 3e38f, -3e38f, 1e-45f, -1e-45f, 1e-20f, 88.72f, 88.73f, -88.73f, -87.5f, -104.0f, 0.625f, -0.625f, 1.41421356f, 4.0f, 6.0f};
  for (int i = -4000; i <= 4000; ++i) x.push_back(static_cast<float>(i) * 0.0031f);
  for (int i = -1000; i <= 1000; ++i) x.push_back(static_cast<float>(i) * 0.113f);
  return x;
}

void test_activate(const Kernels& k, Random&) {
  const auto all = activation_inputs();
  const auto whole = static_cast<int64_t>(all.size());
  for (int32_t kind = 0; kind < Activation::kinds; ++kind)
    for (int64_t floats : {int64_t(1), int64_t(k.lanes) - 1, int64_t(k.lanes) + 1, whole}) {
      const Activation f{static_cast<Activation::Kind>(kind), 0.1f, -1.0f, 2.0f};
      const int64_t channels = floats == whole ? 1 : 2, pitch = floats + 3;
      Target out(channels * pitch);
      for (int64_t c = 0; c < channels; ++c) std::copy_n(all.data(), floats, out.data() + c * pitch);
      k.activate({out.data(), pitch, channels, floats, f});
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < floats; ++i) {
          const double y = reference(f, all[i]);
          out.expect(c * pitch + i, y, 4 * kEps * std::fmax(1, std::fabs(y)), label("activate", {kind, i}));
        }
      out.finish(label("activate", {kind, floats}));
    }
}

// ---- normalization

struct Moments {
  double mean = 0, variance = 0;
};
template <class At>
Moments moments(int64_t count, At at) {
  Moments m;
  for (int64_t c = 0; c < count; ++c) m.mean += at(c) / static_cast<double>(count);
  for (int64_t c = 0; c < count; ++c) m.variance += (at(c) - m.mean) * (at(c) - m.mean) / static_cast<double>(count);
  return m;
}

void test_layer_norm(const Kernels& k, Random& random) {
  const int64_t L = k.lanes;
  const float eps = 1e-5f;
  for (int64_t channels : {1, 3, 64, 200})
    for (int64_t vectors : {1, 4, 6})
      for (float shift : {0.0f, 100.0f}) {
        const int64_t pitch = vectors * L + L;
        auto from = random.floats(channels * pitch);
        for (float& x : from) x += shift;
        from[1] = kNan;
        const auto scale = random.floats(channels), offset = random.floats(channels);
        Target out(channels * pitch);
        k.layer_norm({from.data(), out.data(), pitch, pitch, channels, vectors, scale.data(), offset.data(), eps});
        const auto what = label("layer_norm", {channels, vectors, int64_t(shift)});
        for (int64_t i = 0; i < vectors * L; ++i) {
          const auto m = moments(channels, [&](int64_t c) -> double { return from[c * pitch + i]; });
          const double deviation = std::sqrt(m.variance + eps);
          for (int64_t c = 0; c < channels; ++c) {
            const double x = (from[c * pitch + i] - m.mean) / deviation;
            const double bound = 32 * kEps * (std::fabs(x * scale[c]) + std::fabs(scale[c]) + std::fabs(offset[c]));
            out.expect(c * pitch + i, x * scale[c] + offset[c], bound, what);
          }
        }
        out.finish(what);
      }
}

void test_layer_norm_vector(const Kernels& k, Random& random) {
  const int64_t L = k.lanes;
  const float eps = 1e-5f;
  for (int64_t channels : {int64_t(1), L - 1, L, L + 1, 2 * L, 3 * L + 1, int64_t(500)})
    for (bool special : {false, true}) {
      auto from = random.floats(channels);
      if (special) from[channels - 1] = kNan;
      const auto scale = random.floats(channels), offset = random.floats(channels);
      Target out(channels);
      k.layer_norm_vector({from.data(), out.data(), channels, scale.data(), offset.data(), eps});
      const auto m = moments(channels, [&](int64_t c) -> double { return from[c]; });
      const auto what = label("layer_norm_vector", {channels, special});
      for (int64_t c = 0; c < channels; ++c) {
        const double x = (from[c] - m.mean) / std::sqrt(m.variance + eps);
        out.expect(c, x * scale[c] + offset[c], 32 * kEps * (std::fabs(x * scale[c]) + std::fabs(scale[c]) + std::fabs(offset[c])), what);
      }
      out.finish(what);
    }
}

void test_softmax(const Kernels& k, Random& random) {
  const int64_t L = k.lanes;
  for (int64_t count : {int64_t(1), L - 1, L, L + 1, 3 * L + 1, int64_t(1000)})
    for (int mode = 0; mode < 4; ++mode) {  // plain, wide apart, with -infinity, with NaN
      auto from = random.floats(count);
      for (float& x : from) x *= mode == 1 ? 30 : 1;
      if (mode == 2) from[count - 1] = count == 1 ? 1 : -kInf;
      if (mode == 3) from[count / 2] = kNan;
      Target out(count);
      std::copy(from.begin(), from.end(), out.data());
      k.softmax({out.data(), out.data(), count});
      const double largest = *std::max_element(from.begin(), from.end());
      double sum = 0;
      for (float x : from) sum += std::exp(x - largest);
      const auto what = label("softmax", {count, mode});
      for (int64_t i = 0; i < count; ++i) {
        const double y = mode == 3 ? kNan : std::exp(from[i] - largest) / sum;
        // The rounding of from - largest counts as often as the difference is large: e^(d (1 + eps)).
        const double bound = y == 0 ? 0 : y * kEps * (8 + static_cast<double>(count) / static_cast<double>(L) + std::fabs(from[i] - largest)) + 0x1p-149;
        out.expect(i, y, bound, what);
      }
      out.finish(what);
    }
}

// ---- multiply_add

// Sums of powers of two, which nothing rounds: after r rounds with 0.5, 1 - 2^-r in every lane. Where factors are read,
// each lane has its own, and the last of them would show at once if another were taken.
void test_multiply_add(const Kernels& k, Random&) {
  const int64_t L = k.lanes;
  for (bool read : {false, true})
    for (int64_t rounds : {0, 1, 3, 9}) {
      std::vector<float> factors((kMultiplyAddSums + 3) * L);
      for (size_t i = 0; i < factors.size(); ++i) factors[i] = i % 3 == 0 ? 0.5f : i % 3 == 1 ? 1.0f : 0.25f;
      Target out(kMultiplyAddSums * L);
      k.multiply_add({factors.data(), out.data(), rounds, read});
      const auto what = label("multiply_add", {read, rounds});
      for (int64_t i = 0; i < kMultiplyAddSums * L; ++i) {
        double sum = 0;
        for (int64_t r = 0; r < rounds; ++r) sum = sum * factors[read ? r % 4 * L + i : i % L] + factors[0];
        out.expect(i, sum, 0, what);
      }
      out.finish(what);
    }
}

void test(const InstructionSet& set) {
  const int before = failures;
  Random random(1);
  for (auto* kernel : {test_repack, test_sparse_conv, test_dense_conv, test_stencil, test_pool, test_global_average,
                       test_linear, test_sparse_linear, test_elementwise, test_activate, test_layer_norm,
                       test_layer_norm_vector, test_softmax, test_multiply_add})
    kernel(set.kernels, random);
  std::printf("%s: %s\n", set.name, failures == before ? "passed" : "FAILED");
}

}  // namespace
}  // namespace budwood::testing

int main() { return budwood::testing::on_every_set("kernels_test", budwood::testing::test); }
