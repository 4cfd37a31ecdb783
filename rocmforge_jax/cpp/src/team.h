// The threads that share the work of one call.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

// The calling thread and threads of a pool. The constructor wakes the threads of the pool, which then spin for work until the destructor
// releases them, so that a call wakes them only once. Each takes its next task when it is ready, so a late thread costs nothing.
//
// The tasks of a run are divided among the threads in ranges, because a thread that computes consecutive tasks also reads consecutive
// memory, which it has prefetched. A thread whose range is empty takes the last task of another one.
class Team {
 public:
  // helpers: threads besides the calling one.
  template <typename Pool>
  Team(Pool& pool, int64_t helpers) : shared_(std::make_shared<Shared>(helpers + 1)) {
    for (int64_t i = 1; i <= helpers; i++) pool.Schedule([shared = shared_, i] { help(*shared, i); });
  }
  ~Team() { shared_->closed.store(true, std::memory_order_release); }

  // Calls task(0) to task(count - 1), and returns when all are done.
  template <typename Task>
  void run(int64_t count, const Task& task) {
    Shared& s = *shared_;
    const int64_t first = s.first = s.last, threads = s.ranges.size();
    s.last += count;
    s.task = &task;
    s.call = [](const void* of, int64_t i) { (*(const Task*)of)(i); };
    for (int64_t i = 0; i < threads; i++)
      s.ranges[i].tasks.store(range(first + count * i / threads, first + count * (i + 1) / threads), std::memory_order_release);
    while (work(s, 0)) {
    }
    for (int spins = 0; s.done.load(std::memory_order_acquire) < s.last; spins++) wait(spins);
  }

 private:
  // The next task of a range and its end, in the lower and the upper half of a number. The alignment keeps each in its own cache line.
  struct alignas(64) Range {
    std::atomic<uint64_t> tasks{0};
  };
  static uint64_t range(int64_t first, int64_t last) { return (uint64_t)last << 32 | (uint64_t)first; }

  // Tasks of all runs share one numbering, so that no two ranges are equal. A run waits for all its tasks, so a task can be taken only
  // during its run.
  struct Shared {
    explicit Shared(int64_t threads) : ranges(threads) {}
    std::vector<Range> ranges;
    std::atomic<int64_t> done{0};
    std::atomic<bool> closed{false};
    int64_t first = 0, last = 0;
    const void* task = nullptr;
    void (*call)(const void*, int64_t) = nullptr;
  };

  static void wait(int spins) {
    if (spins > 1000) std::this_thread::yield();
#if defined(__x86_64__)
    else __builtin_ia32_pause();
#endif
  }

  // Takes the first or the last task of a range. Returns its number, or -1 if the range is empty.
  static int64_t take(std::atomic<uint64_t>& tasks, bool last) {
    uint64_t left = tasks.load(std::memory_order_relaxed), rest;
    do {
      if ((uint32_t)left == left >> 32) return -1;
      rest = last ? left - (1ull << 32) : left + 1;
    } while (!tasks.compare_exchange_weak(left, rest, std::memory_order_acquire, std::memory_order_relaxed));
    return last ? rest >> 32 : (uint32_t)left;
  }

  // Runs the next task of thread `own`, if any, and returns whether there was one.
  static bool work(Shared& s, size_t own) {
    int64_t i = take(s.ranges[own].tasks, false);
    for (size_t other = 1; i < 0 && other < s.ranges.size(); other++) i = take(s.ranges[(own + other) % s.ranges.size()].tasks, true);
    if (i < 0) return false;
    s.call(s.task, i - s.first);
    s.done.fetch_add(1, std::memory_order_release);
    return true;
  }

  static void help(Shared& s, size_t own) {
    for (int spins = 0; !s.closed.load(std::memory_order_acquire); spins++)
      if (work(s, own)) spins = 0;
      else wait(spins);
  }

  std::shared_ptr<Shared> shared_;
};
