// The backward of block-sparse attention, see tiles.h; called through the C function at the end of this file, see
// library.py.
//
// Results are the same bits for any number of threads: every number is summed by the same additions in the same order. A
// thread owns a range of KV blocks, a *group*, and walks all row tiles in order; the gradient of a query row gets its
// addends of one group after those of all groups before, for which a thread waits where it has to. Neither order depends
// on how many groups there are.

#include <atomic>

#include "tiles.h"

namespace {

template <class T>
class Backward : public Tiles<T> {
 public:
  using Tiles<T>::Tiles;

  void run() {
    prepare_keys();
    const int64_t panels = num_heads_ * row_tiles_;
    panel_size_ = 2 * p.head_dim * tile_rows_ + 2 * tile_rows_ * width_ + 2 * tile_rows_;
    panels_ = Buffer<T>(panels * panel_size_);
    grad_q_ = Buffer<T>(panels * p.head_dim * tile_rows_);
    is_finite_ = std::vector<uint8_t>(panels);
    // As many groups as keep what belongs to the keys of one in the second cache, and several a thread, so that those that
    // end early find more.
    const int64_t wanted = p.threads == 1 ? 1 : divide_up(8 * p.threads, std::max<int64_t>(1, num_heads_));
    const int64_t per_block = p.kv_block_size * 2 * (p.head_dim + width_) * static_cast<int64_t>(sizeof(T));
    groups_ = std::max(wanted, divide_up(p.num_kv_blocks * per_block, kGroupBytes));
    groups_ = std::max<int64_t>(1, std::min(p.num_kv_blocks, groups_));
    is_held_ = divide_up(p.num_kv_blocks, groups_) * per_block <= second_cache_bytes() / 4 * 3;
    const int64_t items = num_heads_ * groups_;
    const int64_t threads = threads_for(std::max(items, panels));
    progress_ = std::vector<std::atomic<int64_t>>(items);
    for (auto& each : progress_) each.store(0, std::memory_order_relaxed);
    const int64_t group_numbers = divide_up(p.num_kv_blocks, groups_) * p.kv_block_size * width_;
    struct Scratch {
      Buffer<T> weights, grad_scores, grad_k, grad_v, out, product;
    };
    std::vector<Scratch> scratch;
    for (int64_t i = 0; i < threads; i++)
      scratch.push_back({Buffer<T>(tile_keys_ * tile_rows_), Buffer<T>(tile_keys_ * tile_rows_),
                         Buffer<T>(i < items ? group_numbers : 0), Buffer<T>(i < items ? group_numbers : 0),
                         Buffer<T>(p.head_dim), Buffer<T>(p.head_dim * tile_rows_)});
    Phase pack(num_heads_ * p.num_kv_blocks, threads, 8), panel(panels, threads, 16), walk(items, threads);
    Phase finish(num_heads_ * p.num_q_blocks, threads, 16);
    parallel(threads, [&](int64_t thread) {
      Scratch& own = scratch[thread];
      pack.work([&](int64_t item) { pack_keys(item); });
      panel.work([&](int64_t item) { pack_tile(item); });
      pack.wait();
      panel.wait();
      if (own.grad_k.get())  // there are not more groups at once than threads with memory for one
        walk.work([&](int64_t item) {
          walk_group(item, own.weights.get(), own.grad_scores.get(), own.grad_k.get(), own.grad_v.get(),
                     own.product.get());
        });
      walk.wait();
      finish.work([&](int64_t item) { finish_queries(item, own.out.get()); });
    });
  }

 private:
  using typename Tiles<T>::Bounds;
  using Tiles<T>::threads_for, Tiles<T>::read_row, Tiles<T>::write_row, Tiles<T>::write_zeros, Tiles<T>::prepare_keys,
      Tiles<T>::pack_keys, Tiles<T>::describe, Tiles<T>::for_each_tile,
      Tiles<T>::for_each_run, Tiles<T>::bound, Tiles<T>::point_at, Tiles<T>::ask_for, Tiles<T>::positions_of,
      Tiles<T>::q_rows_of, Tiles<T>::sees, Tiles<T>::for_each_row, Tiles<T>::transpose, Tiles<T>::q_row_of,
      Tiles<T>::multiply_into, Tiles<T>::any, Tiles<T>::kLanes, Tiles<T>::p, Tiles<T>::num_heads_, Tiles<T>::words_,
      Tiles<T>::parts_, Tiles<T>::stride_, Tiles<T>::members_, Tiles<T>::tile_rows_, Tiles<T>::row_tiles_,
      Tiles<T>::tile_keys_, Tiles<T>::width_, Tiles<T>::scale2_;

  static constexpr int64_t kGroupBytes = int64_t{1} << 20;

  // What the backward needs of a row tile, in one piece of memory.
  struct Panel {
    T *queries, *grads;                        // [D, tile_rows]
    T *query_rows, *grad_rows;                 // [tile_rows, width]
    T *lse, *delta;                            // [tile_rows]
  };
  Panel panel_of(int64_t item) const {
    T* at = panels_.get() + item * panel_size_;
    const int64_t by_rows = p.head_dim * tile_rows_, by_numbers = tile_rows_ * width_;
    T* rows = at + 2 * by_rows;
    T* ends = rows + 2 * by_numbers;
    return {at, at + by_rows, rows, rows + by_numbers, ends, ends + tile_rows_};
  }
  T* grad_q_of(int64_t item) const { return grad_q_.get() + item * p.head_dim * tile_rows_; }

  void pack_tile(int64_t item) {
    RowTile<T> rows;
    describe(item / row_tiles_, item % row_tiles_, rows);
    const Panel panel = panel_of(item);
    std::memset(grad_q_of(item), 0, p.head_dim * tile_rows_ * sizeof(T));
    std::memset(panel.query_rows, 0, 2 * tile_rows_ * width_ * sizeof(T));
    // A kept row receives the gradients of all tokens that took its output.
    for (int m = 0; m < rows.members; m++)
      for (int64_t slot = 0; slot < p.q_block_size; slot++) {
        const int32_t row = q_rows_of(rows.index + m)[slot], fill = p.fill[(rows.index + m) * p.q_block_size + slot];
        const int64_t entry = fill - rows.first;
        if (row < 0 || fill < 0 || entry < 0 || entry >= rows.rows[m]) continue;
        read_row(p.grad_o, rows.head, row, panel.queries);  // for the moment
        T* to = panel.grad_rows + (m * stride_ + entry) * width_;
        for (int64_t d = 0; d < p.head_dim; d++) to[d] += panel.queries[d];
      }
    for (int64_t lane = 0; lane < tile_rows_; lane++) {
      panel.lse[lane] = std::numeric_limits<T>::infinity();
      panel.delta[lane] = 0;
    }
    for_each_row(rows, [&](int64_t lane, int m, int r) {
      const int64_t at = (rows.index + m) * p.kept_rows + rows.first + r;
      const int32_t row = q_row_of(rows, m, r);
      read_row(p.q, rows.head, row, panel.query_rows + lane * width_);
      read_row(p.o, rows.head, row, panel.queries);
      T delta = 0;
      for (int64_t d = 0; d < p.head_dim; d++) delta += panel.grad_rows[lane * width_ + d] * panel.queries[d];
      panel.lse[lane] = static_cast<const T*>(p.lse)[at];
      panel.delta[lane] = p.grad_lse ? delta - static_cast<const T*>(p.grad_lse)[at] * static_cast<T>(kLog2E) : delta;
    });
    transpose(panel.query_rows, width_, panel.queries);
    transpose(panel.grad_rows, width_, panel.grads);
    // x - x is zero, but for infinities and what is no number.
    Vector<T> differences{};
    for (int64_t i = 0; i < 2 * tile_rows_ * width_; i += kLanes) {
      const Vector<T> x = load(panel.query_rows + i);
      differences += x - x;
    }
    is_finite_[item] = !any(differences != Vector<T>{});
  }

  // All that the KV blocks of a group have to do with: their own gradients, and addends to those of queries.
  void walk_group(int64_t item, T* weights, T* grad_scores, T* grad_k, T* grad_v, T* product) {
    const int64_t head = item / groups_, group = item % groups_;
    const int64_t first = group_start(group), past = group_start(group + 1);
    const int64_t numbers = (past - first) * p.kv_block_size * width_;
    std::memset(grad_k, 0, numbers * sizeof(T));
    std::memset(grad_v, 0, numbers * sizeof(T));
    const int stride = static_cast<int>(tile_rows_), width = static_cast<int>(width_);
    const int vectors_of_width = static_cast<int>(width_ / kLanes), head_dim = static_cast<int>(p.head_dim);
    const T *weight_rows[kTile], *grad_score_rows[kTile], *keys[kTile], *values[kTile];
    RowTile<T> rows;
    Bounds bounds;
    const RowTile<T>* const one[] = {&rows};
    for (int64_t n = 0; n < row_tiles_; n++) {
      const int64_t tile_item = head * row_tiles_ + n;
      if (lists_any(head, n, first, past)) {
        describe(head, n, rows);
        const Panel panel = panel_of(tile_item);
        T* grad_q = grad_q_of(tile_item);
        bool may_add = groups_ == 1;
        // What is read next: of the keys where the cache does not hold the group, else of the queries.
        Ahead panel_ahead;
        if (is_held_ && n + 1 < row_tiles_ && lists_any(head, n + 1, first, past)) {
          panel_ahead.add(panel_of(tile_item + 1).queries, panel_size_ * sizeof(T));
          panel_ahead.add(grad_q_of(tile_item + 1), p.head_dim * tile_rows_ * sizeof(T));
        }
        // Gradients of keys and values take a product for all rows from the first that lists to the last, weights of zero
        // among them; where a row has numbers that are none, one for each member.
        const auto add_rows = [&](const KeyTile& tile, int row, int past_row, Ahead& ahead) {
          const int64_t at = ((tile.block - first) * p.kv_block_size + tile.first) * width_;
          for (int i = 0; i < tile.keys; i++) {
            weight_rows[i] = weights + i * tile_rows_ + row;
            grad_score_rows[i] = grad_scores + i * tile_rows_ + row;
          }
          multiply<T, false>(tile.keys, weight_rows, panel.grad_rows + row * width_, width, grad_v + at, width,
                             vectors_of_width, past_row - row, true, ahead);
          multiply<T, false>(tile.keys, grad_score_rows, panel.query_rows + row * width_, width, grad_k + at, width,
                             vectors_of_width, past_row - row, true, ahead);
        };
        for_each_tile(one, 1, first, past, [&](const KeyTile& tile, const Viewers* viewers, const KeyTile* next) {
          Ahead tile_ahead;
          Ahead& ahead = is_held_ ? panel_ahead : tile_ahead;
          if (!is_held_) ask_for(head, next, ahead);
          if (next && !is_held_) {
            const int64_t to = ((next->block - first) * p.kv_block_size + next->first) * width_;
            ahead.add(grad_v + to, next->keys * width_ * sizeof(T));
            ahead.add(grad_k + to, next->keys * width_ * sizeof(T));
          }
          point_at(head, tile, keys, values);
          for_each_run(rows, viewers[0], [&](const Run& run) {
            const int64_t lane = run.vector * kLanes;
            multiply<T, false>(tile.keys, keys, panel.queries + lane, stride, weights + lane, stride, run.vectors,
                               head_dim, false, ahead);
            multiply<T, false>(tile.keys, values, panel.grads + lane, stride, grad_scores + lane, stride, run.vectors,
                               head_dim, false, ahead);
            if (run.hides) {
              bound(rows, tile, run, bounds);
              differentiate<true>(run, tile, bounds, panel, weights, grad_scores);
            } else {
              differentiate<false>(run, tile, bounds, panel, weights, grad_scores);
            }
            if (is_finite_[tile_item] || !run.is_shared)
              add_rows(tile, run.row, run.past_row, ahead);
            else
              for_each_one(run.members, [&](int m) {
                const int row = static_cast<int>(m * stride_);
                add_rows(tile, row, row + rows.rows[m], ahead);
              });
            if (!may_add) {
              await_turn(head, group, n);
              may_add = true;
            }
            multiply_into(head_dim, keys, grad_scores + lane, grad_q + lane, run, tile.keys, bounds, product, ahead);
          });
        });
      }
      progress_[item].store(n + 1, std::memory_order_release);
    }
    finish_keys(head, first, past, grad_k, grad_v);
  }

  // Whether a row tile lists one of blocks first to past - 1.
  bool lists_any(int64_t head, int64_t tile, int64_t first, int64_t past) const {
    const int64_t first_block = tile / parts_ * members_;
    const uint32_t* words = p.block_bits + (head * p.num_q_blocks + first_block) * words_;
    for (int64_t m = 0; m < std::min(members_, p.num_q_blocks - first_block); m++)
      for (int64_t w = first / 32; w * 32 < past; w++)
        if (words[m * words_ + w] & bits_between(first, past, w)) return true;
    return false;
  }

  int64_t group_start(int64_t group) const { return group * p.num_kv_blocks / groups_; }

  // Until each earlier group that has blocks which row tile n lists has passed n. Groups are taken in ascending order, so
  // that each of them runs or is done, and the first that runs waits for nobody.
  void await_turn(int64_t head, int64_t group, int64_t n) const {
    for (int64_t other = 0; other < group; other++) {
      const auto& passed = progress_[head * groups_ + other];
      if (passed.load(std::memory_order_acquire) > n) continue;
      if (!lists_any(head, n, group_start(other), group_start(other + 1))) continue;
      Patience patience;
      while (passed.load(std::memory_order_acquire) <= n) patience.wait();
    }
  }

  // Of scores the weights, and of gradients of weights those of scores, both in place.
  template <bool kHides>
  void differentiate(const Run& run, const KeyTile& tile, const Bounds& bounds, const Panel& panel, T* weights,
                     T* grad_scores) const {
    const int32_t* positions = positions_of(tile);
    for (int j = run.vector; j < run.vector + run.vectors; j++) {
      const Vector<T> lse = load(panel.lse + j * kLanes), delta = load(panel.delta + j * kLanes);
      for (int i = 0; i < tile.keys; i++) {
        T *weight = weights + i * tile_rows_ + j * kLanes, *grad = grad_scores + i * tile_rows_ + j * kLanes;
        Vector<T> x = exp2_of<T>(load(weight) * scale2_ - lse);
        if constexpr (kHides) x = sees(bounds, j, positions[i]) ? x : Vector<T>{};
        store(weight, x);
        x *= load(grad) - delta;
        if constexpr (kHides) x = sees(bounds, j, positions[i]) ? x : Vector<T>{};
        store(grad, x);
      }
    }
  }

  void finish_keys(int64_t head, int64_t first, int64_t past, T* grad_k, const T* grad_v) const {
    const T scale = static_cast<T>(p.scale);
    for (int64_t block = first; block < past; block++)
      for (int64_t slot = 0; slot < p.kv_block_size; slot++) {
        const int32_t row = p.kv_rows[block * p.kv_block_size + slot];
        if (row < 0) continue;
        const int64_t at = ((block - first) * p.kv_block_size + slot) * width_;  // zeros for padding
        for (int64_t d = 0; d < p.head_dim; d++) grad_k[at + d] *= scale;
        write_row(p.grad_k, head, row, grad_k + at);
        write_row(p.grad_v, head, row, grad_v + at);
      }
  }

  void finish_queries(int64_t index, T* out) const {
    const T scale = static_cast<T>(p.scale);
    const int64_t head = index / p.num_q_blocks;
    const int32_t* kept = p.kept_slots + index * p.kept_rows;
    int64_t entry = 0;
    for (int64_t slot = 0; slot < p.q_block_size; slot++) {
      const bool is_kept = entry < p.num_kept[index] && kept[entry] == slot;
      const int32_t row = q_rows_of(index)[slot];
      if (row >= 0) {
        if (is_kept) {
          const int64_t block = index % p.num_q_blocks, part = entry / stride_;
          const T* from = grad_q_of(head * row_tiles_ + block / members_ * parts_ + part) + block % members_ * stride_ +
                          entry % stride_;
          for (int64_t d = 0; d < p.head_dim; d++) out[d] = from[d * tile_rows_] * scale;
          write_row(p.grad_q, head, row, out);
        } else {
          write_zeros(p.grad_q, head, row);
        }
      }
      entry += is_kept;
    }
  }

  int64_t panel_size_ = 0, groups_ = 1;
  bool is_held_ = false;  // the second cache has room for all that belongs to the keys of a group
  Buffer<T> panels_, grad_q_;
  std::vector<std::atomic<int64_t>> progress_;
  std::vector<uint8_t> is_finite_;  // of the queries and their gradients in a row tile
};

}  // namespace

extern "C" BSA_EXPORT int bsa_backward(const Problem* problem) {
  return with_task<Backward>(*problem, [](auto& backward) { backward.run(); });
}
