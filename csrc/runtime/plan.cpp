#include "runtime/plan.hpp"

#include <sys/mman.h>

#include <chrono>
#include <new>
#include <thread>

#include "runtime/thread_pool.hpp"

namespace budwood {

void check_map(const Map& m, int64_t floats) {
  for (int64_t size : {m.groups, m.height, m.channels, m.width, m.lanes}) require(size >= 1 && is_near(size), "a map's sizes must be 1 or more");
  for (int64_t size : {m.offset, m.group, m.row, m.channel, m.halo_y, m.halo_x}) require(size >= 0 && is_near(size), "a map's strides must not be negative");
  __int128 first = m.offset, last = m.offset;
  first -= __int128(m.halo_y) * m.row + __int128(m.halo_x) * m.lanes;
  last += __int128(m.groups - 1) * m.group + __int128(m.height - 1 + m.halo_y) * m.row + __int128(m.channels - 1) * m.channel +
          __int128(m.width + m.halo_x) * m.lanes;
  require(first >= 0 && last <= floats, "a map reaches outside the arena");
}

// Mapped, zeroed memory, in huge pages where the system gives them: a layer touches hundreds of pages at once.
Plan::Arena::Arena(int64_t floats) {
  constexpr size_t kHuge = size_t(2) << 20;
  bytes = (static_cast<size_t>(floats) * sizeof(float) + kHuge) / kHuge * kHuge;
  void* made = mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (made == MAP_FAILED) throw std::bad_alloc();
  const auto begin = reinterpret_cast<uintptr_t>(made), aligned = (begin + kHuge - 1) / kHuge * kHuge;
  if (aligned > begin) munmap(made, aligned - begin);
  if (const size_t tail = begin + kHuge - aligned) munmap(reinterpret_cast<void*>(aligned + bytes), tail);
#ifdef MADV_HUGEPAGE
  madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);
#endif
  data = reinterpret_cast<float*>(aligned);
}

Plan::Arena::~Arena() { munmap(data, bytes); }

Plan::Plan(const Kernels& kernels, int64_t arena_floats) : kernels_(kernels), arena_floats_(arena_floats) {
  require(arena_floats >= 0 && arena_floats < (int64_t(1) << 36), "the arena's size is out of range");
}

void Plan::segment(int64_t groups) {
  require(groups >= 1, "a segment needs a group");
  segments_.push_back({groups, steps(), {}});
}

void Plan::add(std::unique_ptr<Step> step) {
  require(!segments_.empty(), "a step needs a segment");
  segments_.back().steps.push_back(std::move(step));
}

int64_t Plan::groups() const {
  require(!segments_.empty(), "a step needs a segment");
  return segments_.back().groups;
}

void Plan::order(std::vector<Turn> turns) {
  for (const Turn& t : turns)
    require(t.segment >= 0 && t.segment < static_cast<int64_t>(segments_.size()) && t.group >= 0 &&
                t.group < segments_[t.segment].groups,
            "a turn names no group of a segment");
  order_ = std::move(turns);
}

int64_t Plan::steps() const {
  int64_t count = 0;
  for (const auto& segment : segments_) count += static_cast<int64_t>(segment.steps.size());
  return count;
}

// Waits a while, since it is held for a moment only, but not for ever, as a child would that was forked meanwhile.
std::unique_lock<std::mutex> Plan::held() const {
  std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  for (int tries = 0; !lock && tries < 1000; ++tries) {
    std::this_thread::yield();
    lock.try_lock();
  }
  return lock;
}

std::unique_ptr<Plan::Arena> Plan::take_arena() const {
  const auto lock = held();
  if (!lock || idle_.empty()) return std::make_unique<Arena>(arena_floats_);
  auto arena = std::move(idle_.back());
  idle_.pop_back();
  return arena;
}

void Plan::keep_arena(std::unique_ptr<Arena> arena) const {
  const auto lock = held();
  if (lock) idle_.push_back(std::move(arena));
}

void Plan::free_arenas() const {
  const auto lock = held();
  if (lock) idle_.clear();
}

void Plan::run(const float* const* inputs, float* const* outputs, int threads, double* seconds) const {
  auto arena = take_arena();
  run_turns(*arena, 0, static_cast<int64_t>(order_.size()), inputs, outputs, threads, seconds);
  keep_arena(std::move(arena));
}

void Plan::run_each(std::span<const Arrays> pieces, int threads) const {
  const auto count = static_cast<int64_t>(pieces.size()), whole = threads > 1 ? count / threads * threads : 0;
  ThreadPool::instance().run(threads, whole, 1, [&](int64_t begin, int64_t end) {
    for (const Arrays& piece : pieces.subspan(begin, end - begin)) run(piece.inputs, piece.outputs, 1);
  });
  for (const Arrays& piece : pieces.subspan(whole)) run(piece.inputs, piece.outputs, threads);
}

void Plan::run_turns(const Arena& arena, int64_t first, int64_t last, const float* const* inputs,
                     float* const* outputs, int threads, double* seconds) const {
  using Clock = std::chrono::steady_clock;
  const Run run{&kernels_, arena.data, inputs, outputs};
  ThreadPool& pool = ThreadPool::instance();
  for (int64_t turn = first; turn < last; ++turn) {
    const auto& [number, group] = order_[turn];
    const Segment& segment = segments_[number];
    for (size_t s = 0; s < segment.steps.size(); ++s) {
      const Step& step = *segment.steps[s];
      const auto begin = seconds ? Clock::now() : Clock::time_point();
      pool.run(threads, step.items(), step.grain(),
               [&, group = group](int64_t from, int64_t to) { step.run_range(run, group, from, to); });
      if (seconds) seconds[segment.first + s] += std::chrono::duration<double>(Clock::now() - begin).count();
    }
  }
}

}  // namespace budwood
