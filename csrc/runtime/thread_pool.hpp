#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace budwood {

// Workers that share the items of one loop with the calling thread. They spin for a moment between loops,
// since a network is a hundred short loops in a row, and then sleep.
class ThreadPool {
 public:
  // The process's pool, with its workers started at the first use; a forked child gets one of its own.
  static ThreadPool& instance();

  // Calls work(begin, end) for ranges that make up [0, items), on up to `threads` threads, and answers when all are
  // done; what one of them throws, it throws. A range ends at the next multiple of `grain`. A caller that finds the pool busy with another caller's loop
  // does its own alone.
  template <class Work>
  void run(int threads, int64_t items, int64_t grain, const Work& work) {
    if (threads <= 1 || items <= 1 || !busy_.try_lock()) {
      work(int64_t(0), items);
      return;
    }
    std::lock_guard<std::mutex> mine(busy_, std::adopt_lock);
    const Call call = [](const void* w, int64_t begin, int64_t end) { (*static_cast<const Work*>(w))(begin, end); };
    share(threads, items, grain, call, &work);
  }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

 private:
  static constexpr int kMostThreads = 64;
  using Call = void (*)(const void*, int64_t, int64_t);

  ThreadPool() = default;
  void share(int threads, int64_t items, int64_t grain, Call call, const void* work);
  void start(int workers);
  void serve(int number);
  void take(int number) noexcept;

  std::mutex busy_;
  int workers_ = 0;
  // What the current loop is; written while nobody is inside, read inside.
  Call call_ = nullptr;
  const void* work_ = nullptr;
  int64_t grain_ = 1;
  // The gate to the current loop: its number, whether it is closed, how many workers are inside. A worker comes in if it
  // is there in time; the caller closes it when no item is left, and waits for those inside and for no other: one that
  // was put off its core keeps nobody waiting.
  static constexpr uint32_t kClosed = 1u << 7, kInside = kClosed - 1, kNext = kClosed << 1;
  alignas(64) std::atomic<uint32_t> gate_{kClosed};
  // Each thread begins with a share of its own, the same in every loop, so that it finds in its cache what it wrote
  // in the loop before; when its share is done it helps with the others'.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  Share shares_[kMostThreads];
  int sharing_ = 0;
  alignas(64) std::atomic<int32_t> asleep_{0};
  std::atomic_flag failed_;
  std::exception_ptr failure_;  // of the current loop, once failed_ is set
};

}  // namespace budwood
