#include "runtime/thread_pool.hpp"

#include <pthread.h>

#include <algorithm>
#include <system_error>
#include <utility>

namespace budwood {
namespace {

constexpr int kSpins = 20000;  // a tenth of a millisecond to a whole one: pauses last 20 to 140 cycles

std::atomic<ThreadPool*> pool{nullptr};
std::mutex starting;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool& ThreadPool::instance() {
  if (ThreadPool* made = pool.load(std::memory_order_acquire)) return *made;
  std::lock_guard<std::mutex> lock(starting);
  if (ThreadPool* made = pool.load(std::memory_order_acquire)) return *made;
  // A child has the parent's memory but none of its threads: it forgets the parent's pool, whose state may be that
  // of the middle of a loop. Never destroyed, so that no thread outlives it at exit.
  static const int once = pthread_atfork([] { starting.lock(); }, [] { starting.unlock(); },
                                         [] {
                                           starting.unlock();
                                           pool.store(nullptr, std::memory_order_release);
                                         });
  (void)once;
  auto* made = new ThreadPool;
  pool.store(made, std::memory_order_release);
  return *made;
}

void ThreadPool::start(int workers) {
  try {
    for (; workers_ < workers; ++workers_) std::thread(&ThreadPool::serve, this, workers_ + 1).detach();
  } catch (const std::system_error&) {  // the system gives no more of them: it goes on with those there are
  }
}

void ThreadPool::take(int number) noexcept try {
  for (int s = 0; s < sharing_; ++s) {
    Share& share = shares_[(number + s) % sharing_];
    // Taken in turns: a range of items up to the next multiple of the grain.
    int64_t begin = share.next.load(std::memory_order_relaxed);
    while (begin < share.end) {
      const int64_t end = std::min(share.end, (begin / grain_ + 1) * grain_);
      if (!share.next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      call_(work_, begin, end);
      begin = share.next.load(std::memory_order_relaxed);
    }
  }
} catch (...) {  // kept for the caller, who may not leave before all inside have
  if (!failed_.test_and_set()) failure_ = std::current_exception();
}

void ThreadPool::share(int threads, int64_t items, int64_t grain, Call call, const void* work) {
  start(std::min(threads, kMostThreads) - 1);
  sharing_ = std::min({threads, kMostThreads, workers_ + 1});
  call_ = call, work_ = work, grain_ = grain;
  for (int s = 0; s < sharing_; ++s) {
    shares_[s].next.store(items * s / sharing_, std::memory_order_relaxed);
    shares_[s].end = items * (s + 1) / sharing_;
  }
  gate_.store((gate_.load(std::memory_order_relaxed) + kNext) & ~kClosed, std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst) > 0) gate_.notify_all();
  take(0);
  gate_.fetch_or(kClosed, std::memory_order_acq_rel);
  // One that was put off its core inside is not waited for with ours held: there may be no other for it.
  for (int spin = 0; gate_.load(std::memory_order_acquire) & kInside; ++spin)
    spin < kSpins / 10 ? pause() : std::this_thread::yield();
  if (failed_.test()) {
    failed_.clear();
    std::rethrow_exception(std::exchange(failure_, nullptr));
  }
}

void ThreadPool::serve(int number) {
  uint32_t seen = 0;  // the loop, and bits that say nothing, of the last one it was inside
  for (;;) {
    uint32_t gate = gate_.load(std::memory_order_acquire);
    const auto shut = [&] { return (gate & kClosed) || gate / kNext == seen / kNext; };
    for (int spin = 0; spin < kSpins && shut(); ++spin, gate = gate_.load(std::memory_order_acquire)) pause();
    if (shut()) {
      asleep_.fetch_add(1, std::memory_order_seq_cst);
      gate_.wait(gate, std::memory_order_seq_cst);
      asleep_.fetch_sub(1, std::memory_order_seq_cst);
    } else if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) {
      seen = gate;
      if (number < sharing_) take(number);
      gate_.fetch_sub(1, std::memory_order_release);
    }
  }
}

}  // namespace budwood
