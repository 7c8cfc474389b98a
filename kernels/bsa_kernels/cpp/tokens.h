// Tensors of tokens in any format and with any strides, memory for what is computed of them, and the door to C.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "formats.h"

#define BSA_EXPORT __attribute__((visibility("default")))

// Strides are counted in numbers; the last dimension has none.
struct Tokens {
  void* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t token_stride;

  // Where the row of a token is, in numbers from the start; `head` counts over the batch.
  int64_t offset_of(int64_t heads, int64_t head, int64_t row) const {
    return head / heads * batch_stride + head % heads * head_stride + row * token_stride;
  }
};

// The tokens of one head: `row(i)` is where a row begins, without the divisions of `Tokens::offset_of`.
class HeadRows {
 public:
  HeadRows(const Tokens& tokens, int64_t heads, int64_t head, int64_t bytes)
      : first_(static_cast<const char*>(tokens.data) + tokens.offset_of(heads, head, 0) * bytes),
        stride_(tokens.token_stride * bytes) {}
  const char* row(int64_t i) const { return first_ + i * stride_; }

  // Asks for a row of so many bytes, which is read soon.
  void prefetch(int64_t i, int64_t bytes) const {
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row(i) + byte);
  }

 private:
  const char* first_;
  int64_t stride_;
};

inline int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }
inline int64_t divide_up(int64_t x, int64_t by) { return (x + by - 1) / by; }

// Of the second cache of a core, zero where the system does not say.
inline int64_t second_cache_bytes() {
#if defined(__linux__) && defined(_SC_LEVEL2_CACHE_SIZE)
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return bytes > 0 ? bytes : 0;
#else
  return 0;
#endif
}

// Memory for numbers, not initialised; in huge pages where it is large.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count = 0) {
    if (count <= 0) return;
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    const size_t alignment = bytes < kHuge ? 64 : kHuge;
    void* made = nullptr;
    if (posix_memalign(&made, alignment, bytes) != 0) throw std::bad_alloc();
    data_.reset(static_cast<T*>(made));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment == kHuge) madvise(made, bytes, MADV_HUGEPAGE);
#endif
  }
  T* get() const { return data_.get(); }

 private:
  static constexpr size_t kHuge = size_t{2} << 20;
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

// Rows of a storage format: how they are read into the compute format, and written from it.
template <class T>
struct Format {
  int64_t bytes;  // of a number
  bool is_compute;
  void (*read)(const void* from, T* to, int64_t count);
  void (*write)(const T* from, void* to, int64_t count);
};

template <class Storage>
constexpr Format<typename ComputeOf<Storage>::type> format_of() {
  using T = typename ComputeOf<Storage>::type;
  return {sizeof(Storage), std::is_same_v<Storage, T>,
          [](const void* from, T* to, int64_t count) {
            for (int64_t i = 0; i < count; i++) to[i] = widen(static_cast<const Storage*>(from)[i]);
          },
          [](const T* from, void* to, int64_t count) {
            for (int64_t i = 0; i < count; i++) static_cast<Storage*>(to)[i] = narrow<Storage>(from[i]);
          }};
}

// Makes `Task<compute format>(problem, format)` of the problem's format and calls body with it; 0, or 1 where memory is
// out.
template <template <class> class Task, class Problem, class Body>
int with_task(const Problem& problem, Body&& body) {
  try {
    if (problem.dtype == 1) {
      Task<double> made(problem, format_of<double>());
      body(made);
    } else {
      Task<float> made(problem, problem.dtype == 0   ? format_of<float>()
                                : problem.dtype == 2 ? format_of<Bfloat16>()
                                                     : format_of<Float16>());
      body(made);
    }
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
