#include "kernels/repack/repack.hpp"

#include BUDWOOD_SIMD

namespace budwood::BUDWOOD_ISA {
namespace {

// Everything by value: a store could otherwise change the run, which would be read again for each vector.
template <class Make>
inline void each(float* to, const float* from, int64_t step, int64_t count, Make make) {
  for (float* const end = to + count * kLanes; to != end; to += kLanes, from += step) store(to, make(from, to));
}

// Vectors whose lanes all walk on alike. Those of the end are made again with the last ones, if they are few.
inline void walk(const MoveRun& run, const float* channel, float* to, const int32_t* index, Vec fill) {
  const int64_t step = run.step, count = run.count;
  const auto made = [=](int64_t i) { deal(channel + i * step, index, step, fill, to + i * kLanes); };
  if (step >= 1 && step <= kDealtStep && count >= kDealt) {
    for (int64_t i = 0; i + kDealt < count; i += kDealt) made(i);
    return made(count - kDealt);
  }
  for (int64_t i = 0; i < count; ++i) store(to + i * kLanes, gather(channel + i * step, index, fill));
}

inline void move(const MoveRun& run, const float* channel, float* to, const int32_t* index, Vec fill) {
  const auto vectors = [&](auto make) { each(to, channel + run.from, run.step, run.count, make); };
  switch (run.kind) {
    case MoveRun::copy: return vectors([](const float* from, float*) { return load(from); });
    case MoveRun::fill: return vectors([=](const float*, float*) { return fill; });
    case MoveRun::gather: return walk(run, channel, to, index, fill);
    case MoveRun::permute: return vectors([=, p = permutation(index)](const float* from, float*) { return permute(load(from), p, fill); });
    default: vectors([=, p = permutation(index)](const float* from, float* out) { return permute(load(from), p, load(out)); });
  }
}

}  // namespace

void repack(const Repack& r) {
  const Vec fill = broadcast(r.fill);
  for (int64_t c = 0; c < r.channels; ++c)
    for (const MoveRun *run = r.runs, *end = run + r.count; run != end; ++run)
      move(*run, r.from + c * r.from_channel, r.to + c * r.to_channel + run->to, r.index + int64_t{run->index} * kLanes, fill);
}

}  // namespace budwood::BUDWOOD_ISA
