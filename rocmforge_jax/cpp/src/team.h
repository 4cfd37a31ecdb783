// The threads that share the work of one call.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

// The calling thread and threads of XLA's pool. The constructor wakes the threads of the pool, which then spin for work until the
// destructor releases them, so that a call wakes them only once. Each takes the next task when it is ready, so a late thread costs nothing.
class Team {
 public:
  // helpers: threads besides the calling one.
  Team(xla::ffi::ThreadPool& pool, int64_t helpers) : shared_(std::make_shared<Shared>()) {
    for (int64_t i = 0; i < helpers; i++) pool.Schedule([shared = shared_] { help(*shared); });
  }
  ~Team() { shared_->closed.store(true, std::memory_order_release); }

  // Calls task(0) to task(count - 1), and returns when all are done.
  template <typename Task>
  void run(int64_t count, const Task& task) {
    Shared& s = *shared_;
    s.first = s.end.load(std::memory_order_relaxed);
    s.task = &task;
    s.call = [](const void* of, int64_t i) { (*(const Task*)of)(i); };
    s.end.store(s.first + count, std::memory_order_release);
    while (work(s)) {
    }
    for (int spins = 0; s.done.load(std::memory_order_acquire) < s.first + count; spins++) wait(spins);
  }

 private:
  // Tasks of all runs share one numbering. A run waits for all its tasks, so a task can be taken only during its run.
  struct Shared {
    std::atomic<int64_t> next{0}, end{0}, done{0};
    std::atomic<bool> closed{false};
    int64_t first = 0;
    const void* task = nullptr;
    void (*call)(const void*, int64_t) = nullptr;
  };

  static void wait(int spins) {
    if (spins > 1000) std::this_thread::yield();
#if defined(__x86_64__)
    else __builtin_ia32_pause();
#endif
  }

  // Runs the next task, if any, and returns whether there was one.
  static bool work(Shared& s) {
    int64_t i = s.next.load(std::memory_order_relaxed);
    do {
      if (i >= s.end.load(std::memory_order_acquire)) return false;
    } while (!s.next.compare_exchange_weak(i, i + 1, std::memory_order_acquire));
    s.call(s.task, i - s.first);
    s.done.fetch_add(1, std::memory_order_release);
    return true;
  }

  static void help(Shared& s) {
    for (int spins = 0; !s.closed.load(std::memory_order_acquire); spins++)
      if (work(s)) spins = 0;
      else wait(spins);
  }

  std::shared_ptr<Shared> shared_;
};
