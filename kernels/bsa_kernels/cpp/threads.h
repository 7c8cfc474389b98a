// One parallel region per pass: threads that are started for the call and joined at its end.
//
// Neither torch's OpenMP pool nor one of our own. torch's cannot be entered without its headers, a second one would spin
// next to it, and libgomp's deadlocks in a child of fork. Threads of the call hold no state: any number of Python threads
// may call at once, before and after a fork. Starting one takes about 20 us, a pass of interest many milliseconds.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

// Yields at first, then sleeps, so that a waiting thread leaves its core to the one that it waits for.
class Patience {
 public:
  void wait() {
    if (yields_ < 200) {
      yields_++;
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

 private:
  int yields_ = 0;
};

// Items 0 to total - 1, which threads take in ascending order, `chunk` at a time.
class Phase {
 public:
  Phase(int64_t total, int64_t threads, int64_t most_at_a_time = 1) : total_(total) {
    const int64_t fair = total / (threads * 16);
    chunk_ = fair < 1 ? 1 : (fair < most_at_a_time ? fair : most_at_a_time);
  }

  template <class Body>
  void work(Body&& body) {
    for (;;) {
      const int64_t first = next_.fetch_add(chunk_, std::memory_order_relaxed);
      if (first >= total_) return;
      const int64_t past = first + chunk_ < total_ ? first + chunk_ : total_;
      for (int64_t item = first; item < past; item++) body(item);
      done_.fetch_add(past - first, std::memory_order_release);
    }
  }

  // Until all items are done. What is not done is in the hands of a thread that runs: nobody waits for ever, even where
  // fewer threads could be started than were asked for.
  void wait() const {
    Patience patience;
    while (done_.load(std::memory_order_acquire) < total_) patience.wait();
  }

 private:
  int64_t total_;
  int64_t chunk_;
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> done_{0};
};

// How many threads are worth their start: at most one an item, and one for each `share` of the work.
inline int64_t threads_for(int64_t most, int64_t items, int64_t work, int64_t share) {
  const int64_t worth = work / share + 1;
  const int64_t wanted = most < items ? most : items;
  return wanted < 1 ? 1 : (wanted < worth ? wanted : worth);
}

// Calls body(0) to body(threads - 1), each on a thread of its own, the first on this one. The body must not throw.
template <class Body>
void parallel(int64_t threads, Body&& body) {
  std::vector<std::thread> others;
  others.reserve(threads);
  for (int64_t i = 1; i < threads; i++) {
    try {
      others.emplace_back([&body, i] { body(i); });
    } catch (const std::system_error&) {
      break;  // the system has no more; those that there are take all items
    }
  }
  body(0);
  for (std::thread& other : others) other.join();
}
