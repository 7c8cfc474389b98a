// Block-sparse attention over the lists of a plan, forward and backward, for any CPU; called through the C functions at
// the end of this file, see library.py.
//
// Legend: B batch, H heads, D numbers of a head, Nq query blocks of Mq slots, of which up to K rows are kept, Nk KV blocks
// of Mk slots. A *row tile* is up to 64 kept rows of a query block; they are the lanes of vectors, so that queries are
// packed transposed, [D, rows]. A *key tile* is up to 64 keys of a KV block.
//
// Results are the same bits for any number of threads: every number is summed by the same additions in the same order.
// A query row and its output belong to one thread. In the backward a thread owns a range of KV blocks, a *group*, and
// walks all query blocks in order; the gradient of a query row gets its addends of one group after those of all groups
// before, for which a thread waits where it has to. Neither order depends on how many groups there are.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "simd.h"
#include "threads.h"
#include "tokens.h"

namespace {

constexpr int64_t kTile = 64;

// As `library.Problem` has it, field by field.
struct Problem {
  int64_t dtype;  // 0 float32, 1 float64, 2 bfloat16, 3 float16
  int64_t threads;            // at most
  int64_t products_a_thread;  // multiplications for which one is started
  int64_t batch, heads, head_dim;
  int64_t num_q_blocks, q_block_size, kept_rows;
  int64_t num_kv_blocks, kv_block_size, num_grid_blocks;
  int64_t before, after;  // of the element rule, far beyond all positions where there is no bound
  double scale;
  Tokens q, k, v, o, grad_o, grad_q, grad_k, grad_v;
  void* lse;             // [B, H, Nq, K] in the compute format, base 2, infinity where a row sees nothing
  const void* grad_lse;  // like lse, or null
  const int32_t* kept_slots;   // [B, H, Nq, K]
  const int32_t* num_kept;     // [B, H, Nq]
  const int32_t* fill;         // [B, H, Nq, Mq]
  const uint32_t* block_bits;  // [B, H, Nq, ceil(Nk / 32)]
  const int32_t* q_rows;       // [Nq, Mq]: where q, o and their gradients hold a slot, -1: nowhere
  const int32_t* q_positions;  // [Nq, Mq]: the token in a slot, by which the element rule is decided
  const int32_t* kv_rows;      // [Nk, Mk]: as q_rows
  const int32_t* kv_positions; // [Nk, Mk]
  const int32_t* kv_counts;    // [Nk]: real keys, which come first in their block
};

// Blocks first to past - 1 whose bit is set, ascending.
template <class Body>
void for_each_listed(const uint32_t* words, int64_t first, int64_t past, Body&& body) {
  for (int64_t w = first / 32; w * 32 < past; w++) {
    uint32_t word = words[w];
    if (w * 32 < first) word &= ~uint32_t{0} << (first - w * 32);
    if (past - w * 32 < 32) word &= (uint32_t{1} << (past - w * 32)) - 1;
    for (; word; word &= word - 1) body(w * 32 + __builtin_ctz(word));
  }
}

bool lists_any(const uint32_t* words, int64_t first, int64_t past) {
  for (int64_t w = first / 32; w * 32 < past; w++) {
    uint32_t word = words[w];
    if (w * 32 < first) word &= ~uint32_t{0} << (first - w * 32);
    if (past - w * 32 < 32) word &= (uint32_t{1} << (past - w * 32)) - 1;
    if (word) return true;
  }
  return false;
}

// Up to 64 kept rows of a query block.
template <class T>
struct RowTile {
  int64_t index;  // of (batch, head, query block)
  int64_t first;  // entry of kept_slots
  int rows;       // real ones
  int vectors;    // that hold them
  // The element rule: a row sees positions between its two; and the ends over all rows.
  typename Simd<T>::Int lowest[kTile];
  typename Simd<T>::Int highest[kTile];
  int64_t least_lowest, greatest_lowest, least_highest, greatest_highest;
};

// Up to 64 keys of a KV block.
struct KeyTile {
  int64_t block;
  int64_t first;  // slot of the block
  int keys;       // real ones
  bool is_cut;    // the rule hides a pair
};

template <class T>
class Attention {
 public:
  static constexpr int64_t kLanes = Simd<T>::kLanes;

  Attention(const Problem& problem, Format<T> format)
      : p(problem),
        format_(format),
        num_heads_(p.batch * p.heads),
        words_(divide_up(p.num_kv_blocks, 32)),
        row_tiles_(divide_up(p.kept_rows, kTile)),
        tile_rows_(round_up(divide_up(p.kept_rows, row_tiles_), kLanes)),
        key_tiles_(divide_up(p.kv_block_size, kTile)),
        tile_keys_(divide_up(p.kv_block_size, key_tiles_)),
        width_(round_up(p.head_dim, kLanes)),
        scale2_(static_cast<T>(p.scale * kLog2E)) {}

  void forward() {
    prepare_keys();
    struct Scratch {
      Buffer<T> queries, scores, sums, out;
    };
    std::vector<Scratch> scratch;
    const int64_t items = num_heads_ * p.num_q_blocks * row_tiles_;
    const int64_t threads = this->threads();
    for (int64_t i = 0; i < threads; i++)
      scratch.push_back({Buffer<T>(p.head_dim * tile_rows_), Buffer<T>(tile_keys_ * tile_rows_),
                         Buffer<T>(p.head_dim * tile_rows_), Buffer<T>(p.head_dim * tile_rows_)});
    Phase pack(num_heads_ * p.num_kv_blocks, threads, 8), attend(items, threads, 16);
    parallel(threads, [&](int64_t thread) {
      Scratch& own = scratch[thread];
      pack.work([&](int64_t item) { pack_keys(item); });
      pack.wait();
      attend.work([&](int64_t item) {
        attend_tile(item / row_tiles_, item % row_tiles_, own.queries.get(), own.scores.get(), own.sums.get(),
                    own.out.get());
      });
    });
  }

  void backward() {
    prepare_keys();
    const int64_t panels = num_heads_ * p.num_q_blocks * row_tiles_;
    panel_size_ = 2 * p.head_dim * tile_rows_ + 2 * tile_rows_ * width_ + 2 * tile_rows_;
    panels_ = Buffer<T>(panels * panel_size_);
    grad_q_ = Buffer<T>(panels * p.head_dim * tile_rows_);
    // Several groups a thread, so that those that end early find more; one where heads are enough.
    const int64_t wanted = 4 * p.threads;
    groups_ = p.threads == 1 || num_heads_ >= wanted || num_heads_ == 0
                  ? 1
                  : std::min(p.num_kv_blocks, divide_up(wanted, num_heads_));
    const int64_t items = num_heads_ * groups_;
    const int64_t threads = threads_for(std::max(items, panels));
    progress_ = std::vector<std::atomic<int64_t>>(items);
    for (auto& each : progress_) each.store(0, std::memory_order_relaxed);
    const int64_t group_numbers = divide_up(p.num_kv_blocks, groups_) * p.kv_block_size * width_;
    struct Scratch {
      Buffer<T> weights, grad_scores, grad_k, grad_v, out;
    };
    std::vector<Scratch> scratch;
    for (int64_t i = 0; i < threads; i++)
      scratch.push_back({Buffer<T>(tile_keys_ * tile_rows_), Buffer<T>(tile_keys_ * tile_rows_),
                         Buffer<T>(i < items ? group_numbers : 0), Buffer<T>(i < items ? group_numbers : 0),
                         Buffer<T>(p.head_dim)});
    Phase pack(num_heads_ * p.num_kv_blocks, threads, 8), panel(panels, threads, 16), walk(items, threads);
    Phase finish(num_heads_ * p.num_q_blocks, threads, 16);
    parallel(threads, [&](int64_t thread) {
      Scratch& own = scratch[thread];
      pack.work([&](int64_t item) { pack_keys(item); });
      panel.work([&](int64_t item) { pack_tile(item / row_tiles_, item % row_tiles_); });
      pack.wait();
      panel.wait();
      if (own.grad_k.get())  // there are not more groups at once than threads with memory for one
        walk.work([&](int64_t item) {
          walk_group(item, own.weights.get(), own.grad_scores.get(), own.grad_k.get(), own.grad_v.get());
        });
      walk.wait();
      finish.work([&](int64_t item) { finish_queries(item, own.out.get()); });
    });
  }

  // How many the forward starts.
  int64_t threads() const { return threads_for(num_heads_ * p.num_q_blocks * row_tiles_); }

  // FLOP of the products over pairs, as `multiply` is called.
  int64_t flop(bool is_backward) {
    find_positions();
    int64_t total = 0;
    RowTile<T> rows;
    for (int64_t index = 0; index < num_heads_ * p.num_q_blocks; index++)
      for (int64_t t = 0; t < row_tiles_; t++) {
        if (!describe(index, t, rows)) continue;
        for_each_tile(rows, 0, p.num_kv_blocks, [&](const KeyTile& tile, const KeyTile*) {
          const int64_t lanes = rows.vectors * kLanes;
          const int64_t by_rows = tile.keys * lanes * p.head_dim;           // scores, weights @ v and their like
          const int64_t by_numbers = tile.keys * rows.rows * width_;        // gradients of k and v
          total += is_backward ? 2 * (3 * by_rows + 2 * by_numbers) : 2 * (2 * by_rows);
        });
      }
    return total;
  }

 private:
  int64_t threads_for(int64_t items) const {
    int64_t listed = 0;
    for (int64_t w = 0; w < num_heads_ * p.num_q_blocks * words_; w++) listed += __builtin_popcount(p.block_bits[w]);
    const int64_t products = listed * p.kept_rows * p.kv_block_size * p.head_dim * 2;
    return ::threads_for(p.threads, items, products, p.products_a_thread);
  }

  int64_t offset_of(const Tokens& tokens, int64_t head, int64_t row) const {
    return tokens.offset_of(p.heads, head, row);
  }
  void* place_of(const Tokens& tokens, int64_t head, int64_t row) const {
    return static_cast<char*>(tokens.data) + offset_of(tokens, head, row) * format_.bytes;
  }
  void read_row(const Tokens& tokens, int64_t head, int64_t row, T* to) const {
    format_.read(place_of(tokens, head, row), to, p.head_dim);
  }
  void write_row(const Tokens& tokens, int64_t head, int64_t row, const T* from) const {
    format_.write(from, place_of(tokens, head, row), p.head_dim);
  }
  void write_zeros(const Tokens& tokens, int64_t head, int64_t row) const {
    std::memset(place_of(tokens, head, row), 0, p.head_dim * format_.bytes);
  }

  // A copy of keys and values in the compute format, block by block. Read where they are, the rows of a block have strides
  // of powers of two, which share a few sets of the first cache, and lie in as many pages, where this is in huge ones: a
  // copy takes the time of a few percent of the products, which are then made in three quarters of theirs (16,384 tokens,
  // AMD EPYC, 2026-11-27).
  void prepare_keys() {
    const int64_t per_head = p.num_kv_blocks * p.kv_block_size * p.head_dim;
    packed_keys_ = Buffer<T>(num_heads_ * per_head);
    packed_values_ = Buffer<T>(num_heads_ * per_head);
    find_positions();
  }

  // The first and the last position of each key tile.
  void find_positions() {
    first_position_.resize(p.num_kv_blocks * key_tiles_);
    last_position_.resize(p.num_kv_blocks * key_tiles_);
    for (int64_t block = 0; block < p.num_kv_blocks; block++)
      for (int64_t t = 0; t < key_tiles_; t++) {
        int64_t first = std::numeric_limits<int64_t>::max(), last = std::numeric_limits<int64_t>::min();
        for (int64_t slot = t * tile_keys_; slot < t * tile_keys_ + keys_in(block, t); slot++) {
          const int64_t position = p.kv_positions[block * p.kv_block_size + slot];
          first = std::min(first, position);
          last = std::max(last, position);
        }
        first_position_[block * key_tiles_ + t] = first;
        last_position_[block * key_tiles_ + t] = last;
      }
  }

  void pack_keys(int64_t item) const {
    const int64_t head = item / p.num_kv_blocks, block = item % p.num_kv_blocks;
    const HeadRows keys(p.k, p.heads, head, format_.bytes), values(p.v, p.heads, head, format_.bytes);
    const int32_t* rows = p.kv_rows + block * p.kv_block_size;
    const int64_t first = slot_offset(head, block, 0), count = p.kv_counts[block];
    for (int64_t slot = 0; slot < count; slot++)
      format_.read(keys.row(rows[slot]), packed_keys_.get() + first + slot * p.head_dim, p.head_dim);
    for (int64_t slot = 0; slot < count; slot++)
      format_.read(values.row(rows[slot]), packed_values_.get() + first + slot * p.head_dim, p.head_dim);
  }

  // Where the packed row of a slot is.
  int64_t slot_offset(int64_t head, int64_t block, int64_t slot) const {
    return ((head * p.num_kv_blocks + block) * p.kv_block_size + slot) * p.head_dim;
  }

  int64_t keys_in(int64_t block, int64_t tile) const {
    const int64_t left = p.kv_counts[block] - tile * tile_keys_;
    return std::max<int64_t>(0, std::min(left, tile_keys_));
  }

  // Fills in a row tile; false where it has no row.
  bool describe(int64_t index, int64_t tile, RowTile<T>& rows) const {
    const int64_t left = p.num_kept[index] - tile * tile_rows_;
    if (left <= 0) return false;
    rows.index = index;
    rows.first = tile * tile_rows_;
    rows.rows = static_cast<int>(std::min(left, tile_rows_));
    rows.vectors = static_cast<int>(divide_up(rows.rows, kLanes));
    rows.least_lowest = rows.least_highest = std::numeric_limits<int64_t>::max();
    rows.greatest_lowest = rows.greatest_highest = std::numeric_limits<int64_t>::min();
    for (int r = 0; r < rows.vectors * kLanes; r++) {
      const int64_t entry = index * p.kept_rows + rows.first + std::min(r, rows.rows - 1);
      const int64_t block = index % p.num_q_blocks;
      const int64_t position = p.q_positions[block * p.q_block_size + p.kept_slots[entry]];
      const int64_t lowest = std::max<int64_t>(position - p.before, std::numeric_limits<int32_t>::min());
      const int64_t highest = std::min<int64_t>(position + p.after, std::numeric_limits<int32_t>::max());
      rows.lowest[r] = static_cast<typename Simd<T>::Int>(lowest);
      rows.highest[r] = static_cast<typename Simd<T>::Int>(highest);
      rows.least_lowest = std::min(rows.least_lowest, lowest);
      rows.greatest_lowest = std::max(rows.greatest_lowest, lowest);
      rows.least_highest = std::min(rows.least_highest, highest);
      rows.greatest_highest = std::max(rows.greatest_highest, highest);
    }
    return true;
  }

  // Key tiles that the rows list and see something of, in blocks first to past - 1, ascending; each with the next or null.
  template <class Body>
  void for_each_tile(const RowTile<T>& rows, int64_t first, int64_t past, Body&& body) const {
    KeyTile held{};
    for_each_listed(p.block_bits + rows.index * words_, first, past, [&](int64_t block) {
      for (int64_t t = 0; t < key_tiles_; t++) {
        const int keys = static_cast<int>(keys_in(block, t));
        if (keys == 0) break;
        bool is_cut = false;
        if (block < p.num_grid_blocks) {  // everybody sees the prefix behind them
          const int64_t from = first_position_[block * key_tiles_ + t], to = last_position_[block * key_tiles_ + t];
          if (from > rows.greatest_highest || to < rows.least_lowest) continue;
          is_cut = to > rows.least_highest || from < rows.greatest_lowest;
        }
        const KeyTile tile{block, t * tile_keys_, keys, is_cut};
        if (held.keys) body(held, &tile);
        held = tile;
      }
    });
    if (held.keys) body(held, static_cast<const KeyTile*>(nullptr));
  }

  // Pointers to the rows of the keys and values of a tile.
  void point_at(int64_t head, const KeyTile& tile, const T** keys, const T** values) const {
    const int64_t first = slot_offset(head, tile.block, tile.first);
    for (int i = 0; i < tile.keys; i++) {
      keys[i] = packed_keys_.get() + first + i * p.head_dim;
      values[i] = packed_values_.get() + first + i * p.head_dim;
    }
  }
  // What the products of a tile read.
  void ask_for(int64_t head, const KeyTile* tile, Ahead& ahead) const {
    if (!tile) return;
    const int64_t first = slot_offset(head, tile->block, tile->first), bytes = tile->keys * p.head_dim * sizeof(T);
    ahead.add(packed_keys_.get() + first, bytes);
    ahead.add(packed_values_.get() + first, bytes);
  }
  const int32_t* positions_of(const KeyTile& tile) const {
    return p.kv_positions + tile.block * p.kv_block_size + tile.first;
  }
  const int32_t* q_rows_of(int64_t index) const { return p.q_rows + index % p.num_q_blocks * p.q_block_size; }

  // Which of a vector of rows see a key.
  static Ints<T> sees(const RowTile<T>& rows, int vector, int32_t position) {
    const Ints<T> at = Ints<T>{} + position;
    const auto lowest = *reinterpret_cast<const Ints<T>*>(rows.lowest + vector * kLanes);
    const auto highest = *reinterpret_cast<const Ints<T>*>(rows.highest + vector * kLanes);
    return (at >= lowest) & (at <= highest);
  }

  // Rows [.., row stride] to [D, tile_rows], zeros in the lanes past the last row.
  void transpose(const RowTile<T>& rows, const T* from, int64_t row_stride, T* to) const {
    for (int64_t d = 0; d < p.head_dim; d++)
      for (int r = 0; r < rows.vectors * kLanes; r++)
        to[d * tile_rows_ + r] = r < rows.rows ? from[r * row_stride + d] : T(0);
  }

  int32_t q_row_of(const RowTile<T>& rows, int r) const {
    return q_rows_of(rows.index)[p.kept_slots[rows.index * p.kept_rows + rows.first + r]];
  }

  void attend_tile(int64_t index, int64_t t, T* queries, T* scores, T* sums, T* out) const {
    const int64_t head = index / p.num_q_blocks;
    RowTile<T> rows;
    alignas(64) T top[kTile], total[kTile];
    bool is_first = true;
    const bool has_rows = describe(index, t, rows);
    if (has_rows) {
      for (int r = 0; r < rows.rows; r++) read_row(p.q, head, q_row_of(rows, r), out + r * p.head_dim);
      transpose(rows, out, p.head_dim, queries);
      for (int r = 0; r < kTile; r++) {
        top[r] = Simd<T>::kLowest;
        total[r] = 0;
      }
      const T *keys[kTile], *values[kTile];
      const int stride = static_cast<int>(tile_rows_);
      for_each_tile(rows, 0, p.num_kv_blocks, [&](const KeyTile& tile, const KeyTile* next) {
        Ahead ahead;
        ask_for(head, next, ahead);
        point_at(head, tile, keys, values);
        multiply<T, false>(tile.keys, keys, queries, stride, scores, stride, rows.vectors,
                           static_cast<int>(p.head_dim), false, ahead);
        if (tile.is_cut)
          weigh<true>(rows, tile, scores, top, total, is_first ? nullptr : sums);
        else
          weigh<false>(rows, tile, scores, top, total, is_first ? nullptr : sums);
        multiply<T, true>(static_cast<int>(p.head_dim), values, scores, stride, sums, stride, rows.vectors, tile.keys,
                          !is_first, ahead);
        is_first = false;
      });
      for (int r = 0; r < rows.rows; r++) {
        const T share = total[r] == 0 ? T(0) : T(1) / total[r];
        for (int64_t d = 0; d < p.head_dim; d++)
          out[r * p.head_dim + d] = is_first ? T(0) : sums[d * tile_rows_ + r] * share;
      }
    }
    T* lse = static_cast<T*>(p.lse) + index * p.kept_rows + t * tile_rows_;
    for (int64_t r = 0; r < std::min(tile_rows_, p.kept_rows - t * tile_rows_); r++) {
      const bool sees_any = has_rows && r < rows.rows && total[r] != 0;
      lse[r] = sees_any ? top[r] + std::log2(total[r]) : std::numeric_limits<T>::infinity();
    }
    for (int64_t slot = 0; slot < p.q_block_size; slot++) {
      const int32_t row = q_rows_of(index)[slot];
      const int64_t entry = p.fill[index * p.q_block_size + slot];
      if (row < 0) continue;
      if (entry < 0) {
        if (t == 0) write_zeros(p.o, head, row);
      } else if (has_rows && entry >= rows.first && entry < rows.first + rows.rows) {
        write_row(p.o, head, row, out + (entry - rows.first) * p.head_dim);
      }
    }
  }

  // Makes weights [keys, rows] of scores, in place, by the running maximum and sum of each row; scales what was summed
  // before (null: nothing was) where a maximum grew.
  template <bool kCut>
  void weigh(const RowTile<T>& rows, const KeyTile& tile, T* scores, T* top, T* total, T* sums) const {
    const int32_t* positions = positions_of(tile);
    const Vector<T> hidden = splat<T>(-std::numeric_limits<T>::infinity());
    for (int j = 0; j < rows.vectors; j++) {
      T* column = scores + j * kLanes;
      const Vector<T> before = load(top + j * kLanes);
      Vector<T> most = before, other = before;
      int i = 0;
      if constexpr (kCut) {
        for (; i < tile.keys; i++) {
          Vector<T> x = load(column + i * tile_rows_) * scale2_;
          x = sees(rows, j, positions[i]) ? x : hidden;
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
      const T scale = kCut ? T(1) : scale2_;
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
      if (sums && any(most > before))
        for (int64_t d = 0; d < p.head_dim; d++) {
          T* at = sums + d * tile_rows_ + j * kLanes;
          store(at, load(at) * factor);
        }
    }
  }

  template <class Mask>
  static bool any(Mask mask) {
    uint64_t words[sizeof(Mask) / 8], found = 0;
    std::memcpy(words, &mask, sizeof(Mask));
    for (uint64_t word : words) found |= word;
    return found != 0;
  }

  // What the backward needs of a row tile, in one piece of memory.
  struct Panel {
    T *queries, *grads;                        // [D, tile_rows]
    T *query_rows, *grad_rows;                 // [tile_rows, width]
    T *lse, *delta;                            // [tile_rows]
  };
  Panel panel_of(int64_t index, int64_t t) const {
    T* at = panels_.get() + (index * row_tiles_ + t) * panel_size_;
    const int64_t by_rows = p.head_dim * tile_rows_, by_numbers = tile_rows_ * width_;
    T* rows = at + 2 * by_rows;
    T* ends = rows + 2 * by_numbers;
    return {at, at + by_rows, rows, rows + by_numbers, ends, ends + tile_rows_};
  }
  T* grad_q_of(int64_t index, int64_t t) const {
    return grad_q_.get() + (index * row_tiles_ + t) * p.head_dim * tile_rows_;
  }

  void pack_tile(int64_t index, int64_t t) const {
    RowTile<T> rows;
    if (!describe(index, t, rows)) return;
    const int64_t head = index / p.num_q_blocks, block = index * p.q_block_size;
    const Panel panel = panel_of(index, t);
    std::memset(grad_q_of(index, t), 0, p.head_dim * tile_rows_ * sizeof(T));
    std::memset(panel.query_rows, 0, 2 * tile_rows_ * width_ * sizeof(T));
    // A kept row receives the gradients of all tokens that took its output.
    for (int64_t slot = 0; slot < p.q_block_size; slot++) {
      const int64_t entry = p.fill[block + slot] - rows.first;
      const int32_t row = q_rows_of(index)[slot];
      if (row < 0 || p.fill[block + slot] < 0 || entry < 0 || entry >= rows.rows) continue;
      read_row(p.grad_o, head, row, panel.queries);  // for the moment
      T* to = panel.grad_rows + entry * width_;
      for (int64_t d = 0; d < p.head_dim; d++) to[d] += panel.queries[d];
    }
    const T* lse = static_cast<const T*>(p.lse) + index * p.kept_rows + rows.first;
    const T* grad_lse = static_cast<const T*>(p.grad_lse);
    if (grad_lse) grad_lse += index * p.kept_rows + rows.first;
    for (int r = 0; r < tile_rows_; r++) {
      panel.lse[r] = std::numeric_limits<T>::infinity();
      panel.delta[r] = 0;
      if (r >= rows.rows) continue;
      read_row(p.q, head, q_row_of(rows, r), panel.query_rows + r * width_);
      read_row(p.o, head, q_row_of(rows, r), panel.queries);
      T delta = 0;
      for (int64_t d = 0; d < p.head_dim; d++) delta += panel.grad_rows[r * width_ + d] * panel.queries[d];
      panel.lse[r] = lse[r];
      panel.delta[r] = grad_lse ? delta - grad_lse[r] * static_cast<T>(kLog2E) : delta;
    }
    transpose(rows, panel.query_rows, width_, panel.queries);
    transpose(rows, panel.grad_rows, width_, panel.grads);
  }

  // All that the KV blocks of a group have to do with: their own gradients, and addends to those of queries.
  void walk_group(int64_t item, T* weights, T* grad_scores, T* grad_k, T* grad_v) {
    const int64_t head = item / groups_, group = item % groups_;
    const int64_t first = group_start(group), past = group_start(group + 1);
    const int64_t numbers = (past - first) * p.kv_block_size * width_;
    std::memset(grad_k, 0, numbers * sizeof(T));
    std::memset(grad_v, 0, numbers * sizeof(T));
    const int stride = static_cast<int>(tile_rows_), width = static_cast<int>(width_);
    const int vectors_of_width = static_cast<int>(width_ / kLanes), head_dim = static_cast<int>(p.head_dim);
    const T *weight_rows[kTile], *grad_score_rows[kTile], *keys[kTile], *values[kTile];
    for (int i = 0; i < tile_keys_; i++) {
      weight_rows[i] = weights + i * tile_rows_;
      grad_score_rows[i] = grad_scores + i * tile_rows_;
    }
    RowTile<T> rows;
    for (int64_t n = 0; n < p.num_q_blocks; n++) {
      const int64_t index = head * p.num_q_blocks + n;
      bool may_add = groups_ == 1;
      for (int64_t t = 0; t < row_tiles_; t++) {
        if (!describe(index, t, rows)) continue;
        const Panel panel = panel_of(index, t);
        for_each_tile(rows, first, past, [&](const KeyTile& tile, const KeyTile* next) {
          Ahead ahead;
          ask_for(head, next, ahead);
          if (next) {
            const int64_t to = ((next->block - first) * p.kv_block_size + next->first) * width_;
            ahead.add(grad_v + to, next->keys * width_ * sizeof(T));
            ahead.add(grad_k + to, next->keys * width_ * sizeof(T));
          }
          point_at(head, tile, keys, values);
          multiply<T, false>(tile.keys, keys, panel.queries, stride, weights, stride, rows.vectors, head_dim, false,
                             ahead);
          multiply<T, false>(tile.keys, values, panel.grads, stride, grad_scores, stride, rows.vectors, head_dim, false,
                             ahead);
          if (tile.is_cut)
            differentiate<true>(rows, tile, panel, weights, grad_scores);
          else
            differentiate<false>(rows, tile, panel, weights, grad_scores);
          const int64_t at = ((tile.block - first) * p.kv_block_size + tile.first) * width_;
          multiply<T, false>(tile.keys, weight_rows, panel.grad_rows, width, grad_v + at, width, vectors_of_width,
                             rows.rows, true, ahead);
          multiply<T, false>(tile.keys, grad_score_rows, panel.query_rows, width, grad_k + at, width, vectors_of_width,
                             rows.rows, true, ahead);
          if (!may_add) {
            await_turn(head, group, n);
            may_add = true;
          }
          multiply<T, true>(head_dim, keys, grad_scores, stride, grad_q_of(index, t), stride, rows.vectors, tile.keys,
                            true, ahead);
        });
      }
      progress_[item].store(n + 1, std::memory_order_release);
    }
    finish_keys(head, first, past, grad_k, grad_v);
  }

  int64_t group_start(int64_t group) const { return group * p.num_kv_blocks / groups_; }

  // Until each earlier group that has blocks which query block n lists has passed n. Groups are taken in ascending order,
  // so that each of them runs or is done, and the first that runs waits for nobody.
  void await_turn(int64_t head, int64_t group, int64_t n) const {
    const uint32_t* words = p.block_bits + (head * p.num_q_blocks + n) * words_;
    for (int64_t other = 0; other < group; other++) {
      const auto& passed = progress_[head * groups_ + other];
      if (passed.load(std::memory_order_acquire) > n) continue;
      if (!lists_any(words, group_start(other), group_start(other + 1))) continue;
      Patience patience;
      while (passed.load(std::memory_order_acquire) <= n) patience.wait();
    }
  }

  // Of scores the weights, and of gradients of weights those of scores, both in place.
  template <bool kCut>
  void differentiate(const RowTile<T>& rows, const KeyTile& tile, const Panel& panel, T* weights,
                     T* grad_scores) const {
    const int32_t* positions = positions_of(tile);
    for (int j = 0; j < rows.vectors; j++) {
      const Vector<T> lse = load(panel.lse + j * kLanes), delta = load(panel.delta + j * kLanes);
      for (int i = 0; i < tile.keys; i++) {
        T *weight = weights + i * tile_rows_ + j * kLanes, *grad = grad_scores + i * tile_rows_ + j * kLanes;
        Vector<T> x = exp2_of<T>(load(weight) * scale2_ - lse);
        if constexpr (kCut) x = sees(rows, j, positions[i]) ? x : Vector<T>{};
        store(weight, x);
        store(grad, x * (load(grad) - delta));
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
          const T* from = grad_q_of(index, entry / tile_rows_) + entry % tile_rows_;
          for (int64_t d = 0; d < p.head_dim; d++) out[d] = from[d * tile_rows_] * scale;
          write_row(p.grad_q, head, row, out);
        } else {
          write_zeros(p.grad_q, head, row);
        }
      }
      entry += is_kept;
    }
  }

  const Problem& p;
  const Format<T> format_;
  int64_t num_heads_, words_, row_tiles_, tile_rows_, key_tiles_, tile_keys_, width_;
  T scale2_;
  Buffer<T> packed_keys_, packed_values_;
  std::vector<int64_t> first_position_, last_position_;
  int64_t panel_size_ = 0, groups_ = 1;
  Buffer<T> panels_, grad_q_;
  std::vector<std::atomic<int64_t>> progress_;
};

}  // namespace

extern "C" {

BSA_EXPORT int64_t bsa_problem_bytes() { return sizeof(Problem); }

BSA_EXPORT int bsa_forward(const Problem* problem) {
  return with_task<Attention>(*problem, [](auto& attention) { attention.forward(); });
}

BSA_EXPORT int bsa_threads(const Problem* problem, int64_t* threads) {
  return with_task<Attention>(*problem, [&](auto& attention) { *threads = attention.threads(); });
}

BSA_EXPORT int bsa_backward(const Problem* problem) {
  return with_task<Attention>(*problem, [](auto& attention) { attention.backward(); });
}

BSA_EXPORT int bsa_flop(const Problem* problem, int is_backward, int64_t* flop) {
  return with_task<Attention>(*problem, [&](auto& attention) { *flop = attention.flop(is_backward != 0); });
}

#ifdef BSA_COUNT_FLOP
BSA_EXPORT int64_t bsa_counted_flop() { return counted_flop.exchange(0); }
#endif
}
