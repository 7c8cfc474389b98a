// The forward of block-sparse attention, see tiles.h; called through the C functions at the end of this file, see
// library.py.
//
// Results are the same bits for any number of threads: a query row and its output belong to one, and every number is
// summed by the same additions in the same order.

#include <cmath>

#include "tiles.h"

namespace {

template <class T>
class Forward : public Tiles<T> {
 public:
  using Tiles<T>::Tiles;

  void run() {
    prepare_keys();
    const int64_t threads = this->threads();
    // Row tiles that read the same keys one after another, while there are enough for every thread.
    const int64_t together = std::max<int64_t>(1, std::min(kTogether, row_tiles_ * num_heads_ / (threads * 8)));
    const int64_t groups = divide_up(row_tiles_, together), items = num_heads_ * groups;
    std::vector<ForwardScratch> scratch;
    for (int64_t i = 0; i < threads; i++) scratch.emplace_back(*this, together);
    Phase pack(num_heads_ * p.num_kv_blocks, threads, 8), attend(items, threads, 4);
    parallel(threads, [&](int64_t thread) {
      pack.work([&](int64_t item) { pack_keys(item); });
      pack.wait();
      attend.work([&](int64_t item) {
        const int64_t first = item % groups * together;
        attend_tiles(item / groups, first, std::min(together, row_tiles_ - first), scratch[thread]);
      });
    });
  }

  // How many threads it starts.
  int64_t threads() const { return threads_for(num_heads_ * row_tiles_); }

 private:
  using typename Tiles<T>::Bounds;
  using Tiles<T>::threads_for, Tiles<T>::read_row, Tiles<T>::write_row, Tiles<T>::write_zeros, Tiles<T>::prepare_keys,
      Tiles<T>::pack_keys, Tiles<T>::describe, Tiles<T>::for_each_tile, Tiles<T>::for_each_run, Tiles<T>::bound,
      Tiles<T>::point_at, Tiles<T>::ask_for, Tiles<T>::positions_of, Tiles<T>::q_rows_of, Tiles<T>::sees,
      Tiles<T>::for_each_row, Tiles<T>::transpose, Tiles<T>::q_row_of, Tiles<T>::multiply_into, Tiles<T>::any,
      Tiles<T>::kLanes, Tiles<T>::kTogether, Tiles<T>::p, Tiles<T>::num_heads_, Tiles<T>::stride_,
      Tiles<T>::tile_rows_, Tiles<T>::row_tiles_, Tiles<T>::tile_keys_, Tiles<T>::scale2_;

  // Some row tiles, and what is summed of them.
  struct ForwardScratch {
    struct Part {
      RowTile<T> rows;
      alignas(64) T top[kTile], total[kTile];
      T *queries, *sums;  // [D, tile_rows]
    };
    ForwardScratch(const Forward& of, int64_t together)
        : memory(2 * together * of.p.head_dim * of.tile_rows_),
          scores(of.tile_keys_ * of.tile_rows_),
          out(of.tile_rows_ * of.p.head_dim),
          parts(together) {
      T* at = memory.get();
      for (Part& part : parts) {
        part.queries = at;
        part.sums = at + of.p.head_dim * of.tile_rows_;
        at = part.sums + of.p.head_dim * of.tile_rows_;
      }
    }
    Buffer<T> memory, scores, out;
    std::vector<Part> parts;
    Bounds bounds;
  };

  void attend_tiles(int64_t head, int64_t first, int64_t count, ForwardScratch& own) const {
    using Part = typename ForwardScratch::Part;
    const RowTile<T>* rows[kTogether];
    for (int64_t i = 0; i < count; i++) {
      Part& part = own.parts[i];
      rows[i] = &part.rows;
      describe(head, first + i, part.rows);
      std::memset(own.out.get(), 0, tile_rows_ * p.head_dim * sizeof(T));
      for_each_row(part.rows, [&](int64_t lane, int m, int r) {
        read_row(p.q, head, q_row_of(part.rows, m, r), own.out.get() + lane * p.head_dim);
      });
      transpose(own.out.get(), p.head_dim, part.queries);
      std::memset(part.sums, 0, p.head_dim * tile_rows_ * sizeof(T));
      for (int r = 0; r < kTile; r++) {
        part.top[r] = Simd<T>::kLowest;
        part.total[r] = 0;
      }
    }
    const T *keys[kTile], *values[kTile];
    const int stride = static_cast<int>(tile_rows_), head_dim = static_cast<int>(p.head_dim);
    for_each_tile(rows, count, 0, p.num_kv_blocks, [&](const KeyTile& tile, const Viewers* viewers, const KeyTile* next) {
      Ahead ahead;
      ask_for(head, next, ahead);
      point_at(head, tile, keys, values);
      for (int64_t i = 0; i < count; i++) {
        Part& part = own.parts[i];
        for_each_run(part.rows, viewers[i], [&](const Run& run) {
          const int64_t lane = run.vector * kLanes;
          T* scores = own.scores.get() + lane;
          multiply<T, false>(tile.keys, keys, part.queries + lane, stride, scores, stride, run.vectors, head_dim, false,
                             ahead);
          if (run.hides) {
            bound(part.rows, tile, run, own.bounds);
            weigh<true>(run, tile, own.bounds, scores, part.top + lane, part.total + lane, part.sums + lane);
          } else {
            weigh<false>(run, tile, own.bounds, scores, part.top + lane, part.total + lane, part.sums + lane);
          }
          multiply_into(head_dim, values, scores, part.sums + lane, run, tile.keys, own.bounds, own.out.get(), ahead);
        });
      }
    });
    for (int64_t i = 0; i < count; i++) write_tile(own.parts[i], own.out.get());
  }

  // The output and the log-sum-exp of a row tile.
  void write_tile(const typename ForwardScratch::Part& part, T* out) const {
    const RowTile<T>& rows = part.rows;
    alignas(64) T shares[kTile];
    for (int64_t r = 0; r < tile_rows_; r++) shares[r] = part.total[r] == 0 ? T(0) : T(1) / part.total[r];
    for (int64_t lane = 0; lane < tile_rows_; lane++)
      for (int64_t d = 0; d < p.head_dim; d++)
        out[lane * p.head_dim + d] = part.total[lane] == 0 ? T(0) : part.sums[d * tile_rows_ + lane] * shares[lane];
    for (int m = 0; m < rows.members; m++) {
      const int64_t index = rows.index + m, lane = m * stride_;
      T* lse = static_cast<T*>(p.lse) + index * p.kept_rows + rows.first;
      for (int64_t r = 0; r < std::min(stride_, p.kept_rows - rows.first); r++) {
        const bool sees_any = r < rows.rows[m] && part.total[lane + r] != 0;
        lse[r] = sees_any ? part.top[lane + r] + std::log2(part.total[lane + r]) : std::numeric_limits<T>::infinity();
      }
      for (int64_t slot = 0; slot < p.q_block_size; slot++) {
        const int32_t row = q_rows_of(index)[slot];
        const int64_t entry = p.fill[index * p.q_block_size + slot];
        if (row < 0) continue;
        if (entry < 0) {
          if (rows.first == 0) write_zeros(p.o, rows.head, row);
        } else if (entry >= rows.first && entry < rows.first + rows.rows[m]) {
          write_row(p.o, rows.head, row, out + (lane + entry - rows.first) * p.head_dim);
        }
      }
    }
  }

  // Makes weights [keys, lanes of a run] of scores, in place, by the running maximum and sum of each row; scales what was
  // summed before where a maximum grew.
  template <bool kHides>
  void weigh(const Run& run, const KeyTile& tile, const Bounds& bounds, T* scores, T* top, T* total, T* sums) const {
    const int32_t* positions = positions_of(tile);
    const Vector<T> hidden = splat<T>(-std::numeric_limits<T>::infinity());
    for (int j = 0; j < run.vectors; j++) {
      T* column = scores + j * kLanes;
      const Vector<T> before = load(top + j * kLanes);
      Vector<T> most = before, other = before;
      int i = 0;
      if constexpr (kHides) {
        for (; i < tile.keys; i++) {
          Vector<T> x = load(column + i * tile_rows_) * scale2_;
          x = sees(bounds, run.vector + j, positions[i]) ? x : hidden;
          store(column + i * tile_rows_, x);
          most = x > most ? x : most;
        }
      } else {
        for (; i + 2 <= tile.keys; i += 2) {
          const Vector<T> x = load(column + i * tile_rows_) * scale2_, y = load(column + (i + 1) * tile_rows_) * scale2_;
          most = x > most ? x : most;
          other = y > other ? y : other;
        }
        if (i < tile.keys) {
          const Vector<T> x = load(column + i * tile_rows_) * scale2_;
          most = x > most ? x : most;
        }
        most = other > most ? other : most;
      }
      const Vector<T> factor = exp2_of<T>(before - most);
      Vector<T> even{}, odd{};
      const T scale = kHides ? T(1) : scale2_;
      for (i = 0; i + 2 <= tile.keys; i += 2) {
        const Vector<T> x = exp2_of<T>(load(column + i * tile_rows_) * scale - most);
        const Vector<T> y = exp2_of<T>(load(column + (i + 1) * tile_rows_) * scale - most);
        store(column + i * tile_rows_, x);
        store(column + (i + 1) * tile_rows_, y);
        even += x;
        odd += y;
      }
      if (i < tile.keys) {
        const Vector<T> x = exp2_of<T>(load(column + i * tile_rows_) * scale - most);
        store(column + i * tile_rows_, x);
        even += x;
      }
      store(top + j * kLanes, most);
      store(total + j * kLanes, load(total + j * kLanes) * factor + (even + odd));
      if (any((most > before) & (before > Simd<T>::kLowest)))  // there are none before the first key
        for (int64_t d = 0; d < p.head_dim; d++) {
          T* at = sums + d * tile_rows_ + j * kLanes;
          store(at, load(at) * factor);
        }
    }
  }
};

}  // namespace

extern "C" {

BSA_EXPORT int64_t bsa_problem_bytes() { return sizeof(Problem); }

BSA_EXPORT int bsa_forward(const Problem* problem) {
  return with_task<Forward>(*problem, [](auto& forward) { forward.run(); });
}

BSA_EXPORT int bsa_threads(const Problem* problem, int64_t* threads) {
  return with_task<Forward>(*problem, [&](auto& forward) { *threads = forward.threads(); });
}

BSA_EXPORT int bsa_flop(const Problem* problem, int is_backward, int64_t* flop) {
  return with_task<Forward>(*problem, [&](auto& forward) { *flop = forward.flop(is_backward != 0); });
}

#ifdef BSA_COUNT_FLOP
BSA_EXPORT int64_t bsa_counted_flop() { return counted_flop.exchange(0); }
#endif
}
