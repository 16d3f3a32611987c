// The kernels of batch norm and of the gradients of windowed operators, on every instruction set of this machine,
// against the same sums in double. Needs no Python.
#include <algorithm>

#include "testing.hpp"

namespace budwood::testing {
namespace {

struct Case {
  int64_t rows, channels, vectors;
  bool masked;
  float low, high;
};

// A map with rows and channels further apart than they are wide, and where each of its numbers lies.
struct Place {
  int64_t lanes, channel, row, floats;
  Place(const Case& c, int64_t lanes, int64_t spare)
      : lanes(lanes), channel(c.vectors * lanes + spare), row(c.channels * channel + 2 * spare), floats(c.rows * row) {}
  int64_t at(int64_t y, int64_t c, int64_t i) const { return y * row + c * channel + i; }
  Planes planes(float* data) const { return {data, row, channel}; }
  Planes planes(const std::vector<float>& data) const { return planes(const_cast<float*>(data.data())); }
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (int64_t rows : {0, 1, 3})
    for (int64_t channels : {0, 1, 4})
      for (int64_t vectors : {0, 1, 2, 7})
        for (bool masked : {false, true}) {
          all.push_back({rows, channels, vectors, masked, -kInf, kInf});
          all.push_back({rows, channels, vectors, masked, 0, 0.75f});
        }
  return all;
}

std::string named(const char* kernel, const Case& c) {
  return label(kernel, {c.rows, c.channels, c.vectors, int64_t(c.masked)});
}

std::vector<float> mask_of(const Case& c, int64_t lanes, Random& random) {
  std::vector<float> mask(c.rows * c.vectors * lanes);
  for (float& m : mask) m = !c.masked || random.chance(0.7) ? 1.0f : 0.0f;
  return mask;
}

// Numbers for every place; NaN where the mask leaves a place out, and between the channels.
std::vector<float> values(const Case& c, const Place& p, const std::vector<float>& mask, Random& random) {
  std::vector<float> v(p.floats + 1, kNan);
  const int64_t floats = c.vectors * p.lanes;
  for (int64_t y = 0; y < c.rows; ++y)
    for (int64_t k = 0; k < c.channels; ++k)
      for (int64_t i = 0; i < floats; ++i)
        if (mask[y * floats + i] > 0) v[p.at(y, k, i)] = random.normal();
  return v;
}

template <class Each>
void each(const Case& c, int64_t lanes, const Each& f) {
  for (int64_t y = 0; y < c.rows; ++y)
    for (int64_t k = 0; k < c.channels; ++k)
      for (int64_t i = 0; i < c.vectors * lanes; ++i) f(y, k, i, y * c.vectors * lanes + i);
}

void test_forward(const Kernels& k, Random& random) {
  for (const Case& c : cases()) {
    const Place from(c, k.lanes, 0), out(c, k.lanes, 3);
    const auto mask = mask_of(c, k.lanes, random);
    const auto x = values(c, from, mask, random), residual = values(c, out, mask, random);
    const auto mean = random.floats(c.channels), scale = random.floats(c.channels), bias = random.floats(c.channels);
    const PlaneSizes size{c.rows, c.channels, c.vectors, c.masked ? mask.data() : nullptr};
    for (bool beside : {false, true}) {
      Target target(out.floats);
      k.batch_norm({from.planes(x), beside ? out.planes(residual) : Planes{}, out.planes(target.data()), size, mean.data(),
                    scale.data(), bias.data(), c.low, c.high});
      each(c, k.lanes, [&](int64_t y, int64_t ch, int64_t i, int64_t m) {
        Sum s;
        s.add((double(x[from.at(y, ch, i)]) - mean[ch]) * scale[ch]);
        s.magnitude += (std::fabs(x[from.at(y, ch, i)]) + std::fabs(mean[ch])) * std::fabs(scale[ch]);
        s.add(bias[ch]);
        if (beside) s.add(residual[out.at(y, ch, i)]);
        const bool counts = mask[m] > 0;
        target.expect(out.at(y, ch, i), counts ? clamp(s.value, c.low, c.high) : 0.0, counts ? s.bound() : 0.0, named("batch_norm", c));
      });
      target.finish(named("batch_norm", c));
    }

    Target sums(c.channels * 2 * k.lanes);
    std::fill_n(sums.data(), c.channels * 2 * k.lanes, 1.0f);  // they are added to
    k.batch_sums({from.planes(x), size, mean.data(), sums.data()});
    std::vector<Sum> wanted(c.channels * 2 * k.lanes);
    for (Sum& s : wanted) s.add(1);
    each(c, k.lanes, [&](int64_t y, int64_t ch, int64_t i, int64_t m) {
      if (mask[m] == 0) return;
      const double d = x[from.at(y, ch, i)] - mean[ch];
      wanted[ch * 2 * k.lanes + i % k.lanes].add(d);
      wanted[(ch * 2 + 1) * k.lanes + i % k.lanes].add(d * d);
    });
    for (size_t n = 0; n < wanted.size(); ++n) sums.expect(n, wanted[n].value, wanted[n].bound() + 4 * kEps * wanted[n].magnitude, named("batch_sums", c));
    sums.finish(named("batch_sums", c));
  }
}

void test_gradient(const Kernels& k, Random& random) {
  for (const Case& c : cases()) {
    const Place from(c, k.lanes, 0), to(c, k.lanes, 5);
    const auto mask = mask_of(c, k.lanes, random);
    const auto x = values(c, from, mask, random), gradient = values(c, to, mask, random);
    auto out = values(c, from, mask, random);
    for (float& v : out) v = random.chance(0.2) ? c.low : random.chance(0.2) ? c.high : v;  // at the ends nothing passes
    const auto mean = random.floats(c.channels), scale = random.floats(c.channels), slope = random.floats(c.channels),
               offset = random.floats(c.channels);
    const PlaneSizes size{c.rows, c.channels, c.vectors, c.masked ? mask.data() : nullptr};
    const bool all = c.low == -kInf;
    const auto g = [&](int64_t y, int64_t ch, int64_t i, int64_t m) -> float {
      const float v = out[from.at(y, ch, i)];
      return mask[m] > 0 && (all || (c.low < v && v < c.high)) ? gradient[to.at(y, ch, i)] : 0.0f;
    };
    for (bool kept : {false, true}) {
      Target sums(c.channels * 2 * k.lanes), g_to(to.floats);
      std::fill_n(sums.data(), c.channels * 2 * k.lanes, 0.0f);
      k.batch_norm_sums({from.planes(x), all ? Planes{} : from.planes(out), to.planes(gradient), kept ? to.planes(g_to.data()) : Planes{}, size,
                         c.low, c.high, mean.data(), sums.data()});
      std::vector<Sum> wanted(c.channels * 2 * k.lanes);
      each(c, k.lanes, [&](int64_t y, int64_t ch, int64_t i, int64_t m) {
        const float v = g(y, ch, i, m);
        if (kept) g_to.expect(to.at(y, ch, i), v, 0, named("batch_norm_sums, g", c));
        if (mask[m] == 0) return;
        wanted[ch * 2 * k.lanes + i % k.lanes].add(v);
        wanted[(ch * 2 + 1) * k.lanes + i % k.lanes].add(double(v) * (x[from.at(y, ch, i)] - mean[ch]));
      });
      for (size_t n = 0; n < wanted.size(); ++n) sums.expect(n, wanted[n].value, wanted[n].bound() + 4 * kEps * wanted[n].magnitude, named("batch_norm_sums", c));
      sums.finish(named("batch_norm_sums", c));
      g_to.finish(named("batch_norm_sums, g", c));
    }

    Target target(to.floats);
    k.batch_norm_back({from.planes(x), to.planes(gradient), to.planes(target.data()), size, mean.data(), scale.data(), slope.data(), offset.data()});
    each(c, k.lanes, [&](int64_t y, int64_t ch, int64_t i, int64_t m) {
      Sum s;
      s.add((double(x[from.at(y, ch, i)]) - mean[ch]) * slope[ch]);
      s.add(double(gradient[to.at(y, ch, i)]) * scale[ch]);
      s.add(offset[ch]);
      s.magnitude += (std::fabs(x[from.at(y, ch, i)]) + std::fabs(mean[ch])) * std::fabs(slope[ch]);
      const bool counts = mask[m] > 0;
      target.expect(to.at(y, ch, i), counts ? s.value : 0.0, counts ? s.bound() : 0.0, named("batch_norm_back", c));
    });
    target.finish(named("batch_norm_back", c));
  }
}

void test_spread(const Kernels& k, Random& random) {
  for (const Case& c : cases()) {
    const Place to(c, k.lanes, 2);
    const auto mask = mask_of(c, k.lanes, random), from = random.floats(c.channels * 3 + k.lanes * 5);
    std::vector<int32_t> index;
    for (int64_t l = 0; l < k.lanes; ++l) index.push_back(static_cast<int32_t>(random.below(k.lanes * 5)));
    Target target(to.floats);
    k.spread({from.data(), 3, index.data(), to.planes(target.data()), {c.rows, c.channels, c.vectors, c.masked ? mask.data() : nullptr}, 0.3f});
    each(c, k.lanes, [&](int64_t y, int64_t ch, int64_t i, int64_t m) {
      target.expect(to.at(y, ch, i), mask[m] > 0 ? from[ch * 3 + index[i % k.lanes]] * 0.3f : 0.0f, 0, named("spread", c));
    });
    target.finish(named("spread", c));
  }
}

// Windows of `count` taps side by side, so that each pixel of the plane is in several.
void test_windows(const Kernels& k, Random& random) {
  const int64_t L = k.lanes;
  for (int64_t count : {1, 3, 4, 5, 9})
    for (int64_t height : {0, 1, 3})
      for (int64_t width : {0, 1, 6}) {
        const int64_t row = (width + count) * L, floats = (height + 1) * row, flat = width * L + 3;
        auto plane = random.floats(floats), gradient = random.floats(height * flat + 1), out = gradient;
        for (float& v : plane) v = std::round(v);  // many are the largest
        std::vector<int64_t> taps;
        for (int64_t t = 0; t < count; ++t) taps.push_back((t * 2 % count) * L + (t == 1 ? row : 0));
        const auto weights = random.floats(count);
        const std::string what = "window " + std::to_string(count) + " " + std::to_string(height) + " " + std::to_string(width);

        std::vector<Sum> largest(floats), back(floats), sums(count * L);
        for (int64_t y = 0; y < height; ++y)
          for (int64_t i = 0; i < width * L; ++i) {
            const float* at = plane.data() + y * row + i;
            const auto first = std::max_element(taps.begin(), taps.end(), [&](int64_t a, int64_t b) { return at[a] < at[b]; });
            out[y * flat + i] = at[*first];
            largest[y * row + i + *first].add(gradient[y * flat + i]);
            for (int64_t t = 0; t < count; ++t) {
              back[y * row + i + taps[t]].add(double(gradient[y * flat + i]) * weights[t]);
              sums[t * L + i % L].add(double(gradient[y * flat + i]) * at[taps[t]]);
            }
          }
        const auto check = [&](Target& got, const std::vector<Sum>& want) {
          for (size_t n = 0; n < want.size(); ++n) got.expect(n, want[n].value, 2 * want[n].bound(), what);
          got.finish(what);
        };
        Target pooled(floats), spread(floats), summed(count * L), alone(count * L);
        for (Target* t : {&pooled, &spread}) std::fill_n(t->data(), floats, 0.0f);
        for (Target* t : {&summed, &alone}) std::fill_n(t->data(), count * L, 0.0f);
        k.max_pool_gradient({plane.data(), out.data(), gradient.data(), pooled.data(), row, flat, flat, height, width, taps.data(), count});
        check(pooled, largest);
        k.stencil_gradient({plane.data(), gradient.data(), spread.data(), row, flat, height, width, taps.data(), count, weights.data(), summed.data()});
        check(spread, back);
        check(summed, sums);
        k.stencil_gradient({plane.data(), gradient.data(), nullptr, row, flat, height, width, taps.data(), count, nullptr, alone.data()});
        check(alone, sums);
      }
}

void test_put_back(const Kernels& k, Random& random) {
  const int64_t L = k.lanes, floats = 6 * L;
  const auto from = random.floats(floats);
  for (int64_t vectors : {0, 1, 3})
    for (int64_t lone : {0, 1, 9}) {
      std::vector<PutBack::Pair> pairs;
      for (int64_t v = 0; v < vectors; ++v) pairs.push_back({random.below(5 * L), random.below(5 * L)});
      for (int64_t f = 0; f < lone; ++f) pairs.push_back({random.below(floats), random.below(floats)});
      std::vector<Sum> want(floats);
      for (Sum& s : want) s.add(1);
      for (int64_t n = 0; n < vectors + lone; ++n)
        for (int64_t l = 0; l < (n < vectors ? L : 1); ++l) want[pairs[n].to + l].add(from[pairs[n].from + l]);
      Target target(floats);
      std::fill_n(target.data(), floats, 1.0f);
      k.put_back({from.data(), target.data(), pairs.data(), vectors, lone});
      for (int64_t i = 0; i < floats; ++i) target.expect(i, want[i].value, want[i].bound(), "put_back");
      target.finish("put_back");
    }
}

void test(const InstructionSet& set) {
  const int before = failures;
  Random random(1);
  for (auto* kernel : {test_forward, test_gradient, test_spread, test_windows, test_put_back}) kernel(set.kernels, random);
  std::printf("%s: %s\n", set.name, failures == before ? "passed" : "FAILED");
}

}  // namespace
}  // namespace budwood::testing

int main() { return budwood::testing::on_every_set("training_maps_test", budwood::testing::test); }
