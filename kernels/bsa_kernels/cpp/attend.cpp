// Block-sparse attention over the lists of a plan, forward and backward, for any CPU; called through the C functions at
// the end of this file, see library.py.
//
// Legend: B batch, H heads, D numbers of a head, Nq query blocks of Mq slots, of which up to K rows are kept, Nk KV blocks
// of Mk slots. A *row tile* has up to 64 kept rows, of one query block or of several that follow each other, its *members*;
// they are the lanes of vectors, so that queries are packed transposed, [D, rows]. A *key tile* is up to 64 keys of a KV
// block.
//
// Results are the same bits for any number of threads: every number is summed by the same additions in the same order.
// A query row and its output belong to one thread. In the backward a thread owns a range of KV blocks, a *group*, and
// walks all row tiles in order; the gradient of a query row gets its addends of one group after those of all groups
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

// The bits of a word of block_bits that are of blocks first to past - 1.
uint32_t bits_between(int64_t first, int64_t past, int64_t word) {
  uint32_t bits = ~uint32_t{0};
  if (word * 32 < first) bits &= ~uint32_t{0} << (first - word * 32);
  if (past - word * 32 < 32) bits &= (uint32_t{1} << (past - word * 32)) - 1;
  return bits;
}

using Mask = uint64_t;  // of the members of a row tile, or of its vectors

constexpr Mask ones(int64_t count) { return count >= 64 ? ~Mask{0} : (Mask{1} << count) - 1; }

template <class Body>
void for_each_one(Mask mask, Body&& body) {
  for (; mask; mask &= mask - 1) body(__builtin_ctzll(mask));
}

// Up to 64 kept rows.
template <class T>
struct RowTile {
  using Int = typename Simd<T>::Int;
  int64_t head;
  int64_t index;  // of (batch, head, query block) of the first member
  int64_t first;  // entry of kept_slots in its first lane; zero where there are several members
  int members;
  int rows[kTile];        // of a member, real ones
  Mask vectors[kTile];    // that hold the rows of a member
  const uint32_t* words;  // block_bits of the first member
  // The element rule: a row sees positions between its two; and the ends over all rows of a member.
  Int lowest[kTile], highest[kTile];
  struct Ends {
    int64_t least_lowest, greatest_lowest, least_highest, greatest_highest;
  } ends[kTile];
};

// Up to 64 keys of a KV block.
struct KeyTile {
  int64_t block;
  int64_t first;  // slot of the block
  int keys;       // real ones
};

// Which members of a row tile list a key tile and see something of it, and of which the rule hides a pair.
struct Viewers {
  Mask see, cut;
};

// Vectors of a row tile side by side, each with a row that lists a key tile.
struct Run {
  int vector, vectors;
  int row, past_row;  // lanes from the first to behind the last that lists
  Mask members;       // that list
  bool hides;         // a pair, by the element rule or because a row does not list
  bool is_shared;     // with rows that do not list
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
        parts_(divide_up(p.kept_rows, kTile)),
        stride_(stride_of(divide_up(p.kept_rows, parts_))),
        members_(parts_ > 1 ? 1 : std::max<int64_t>(1, std::min(kTile / stride_, p.num_q_blocks))),
        tile_rows_(round_up(members_ * stride_, kLanes)),
        row_tiles_(divide_up(p.num_q_blocks, members_) * parts_),
        key_tiles_(divide_up(p.kv_block_size, kTile)),
        tile_keys_(divide_up(p.kv_block_size, key_tiles_)),
        width_(round_up(p.head_dim, kLanes)),
        has_rule_(p.before < std::numeric_limits<int32_t>::max() || p.after < std::numeric_limits<int32_t>::max()),
        scale2_(static_cast<T>(p.scale * kLog2E)) {}

  void forward() {
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

  void backward() {
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

  // How many the forward starts.
  int64_t threads() const { return threads_for(num_heads_ * row_tiles_); }

  // FLOP of the products over pairs, as `multiply` is called.
  int64_t flop(bool is_backward) {
    find_positions();
    int64_t total = 0;
    RowTile<T> rows;
    const RowTile<T>* const one[] = {&rows};
    for (int64_t tile = 0; tile < num_heads_ * row_tiles_; tile++) {
      describe(tile / row_tiles_, tile % row_tiles_, rows);
      for_each_tile(one, 1, 0, p.num_kv_blocks, [&](const KeyTile& keys, const Viewers* viewers, const KeyTile*) {
        for_each_run(rows, viewers[0], [&](const Run& run) {
          const int64_t by_rows = keys.keys * run.vectors * kLanes * p.head_dim;     // scores, weights @ v and their like
          const int64_t by_numbers = keys.keys * (run.past_row - run.row) * width_;  // gradients of k and v
          total += is_backward ? 2 * (3 * by_rows + 2 * by_numbers) : 2 * (2 * by_rows);
        });
      });
    }
    return total;
  }

 private:
  static constexpr int64_t kTogether = 8;
  static constexpr int64_t kGroupBytes = int64_t{1} << 20;

  // Lanes of a member: a power of two that divides a vector, or whole vectors, so that no member lies in more vectors than
  // it needs.
  static int64_t stride_of(int64_t rows) {
    if (rows >= kLanes) return round_up(rows, kLanes);
    int64_t stride = 1;
    while (stride < rows) stride *= 2;
    return stride;
  }

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

  // Fills in a row tile of a head.
  void describe(int64_t head, int64_t tile, RowTile<T>& rows) const {
    const int64_t first_block = tile / parts_ * members_;
    rows.head = head;
    rows.index = head * p.num_q_blocks + first_block;
    rows.first = tile % parts_ * stride_;
    rows.members = static_cast<int>(std::min(members_, p.num_q_blocks - first_block));
    rows.words = p.block_bits + rows.index * words_;
    for (int m = 0; m < rows.members; m++) {
      const int64_t count = std::min(stride_, p.num_kept[rows.index + m] - rows.first), lane = m * stride_;
      rows.rows[m] = static_cast<int>(std::max<int64_t>(0, count));
      rows.vectors[m] = count <= 0 ? 0 : ones(divide_up(lane + count, kLanes)) & ~ones(lane / kLanes);
      const int32_t* kept = p.kept_slots + (rows.index + m) * p.kept_rows + rows.first;
      const int32_t* positions = p.q_positions + (first_block + m) * p.q_block_size;
      typename RowTile<T>::Ends ends = {std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min(),
                                        std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()};
      for (int64_t r = 0; r < count; r++) {
        const int64_t position = positions[kept[r]];
        const int64_t lowest = std::max<int64_t>(position - p.before, std::numeric_limits<int32_t>::min());
        const int64_t highest = std::min<int64_t>(position + p.after, std::numeric_limits<int32_t>::max());
        rows.lowest[lane + r] = static_cast<typename Simd<T>::Int>(lowest);
        rows.highest[lane + r] = static_cast<typename Simd<T>::Int>(highest);
        ends.least_lowest = std::min(ends.least_lowest, lowest);
        ends.greatest_lowest = std::max(ends.greatest_lowest, lowest);
        ends.least_highest = std::min(ends.least_highest, highest);
        ends.greatest_highest = std::max(ends.greatest_highest, highest);
      }
      rows.ends[m] = ends;
    }
  }

  // The word of block_bits that any of the row tiles has.
  uint32_t word_of(const RowTile<T>& rows, int64_t w) const {
    uint32_t word = 0;
    for (int m = 0; m < rows.members; m++) word |= rows.words[m * words_ + w];
    return word;
  }

  // Key tiles that some row tiles of a head list and see something of, in blocks first to past - 1, ascending; each with
  // who sees it, for each row tile, and the next or null.
  template <class Body>
  void for_each_tile(const RowTile<T>* const* rows, int64_t count, int64_t first, int64_t past, Body&& body) const {
    KeyTile held{};
    Viewers viewers[2][kTogether];
    int current = 0;
    for (int64_t w = first / 32; w * 32 < past; w++) {
      uint32_t word = 0;
      for (int64_t i = 0; i < count; i++) word |= word_of(*rows[i], w);
      word &= bits_between(first, past, w);
      for (; word; word &= word - 1) {
        const int64_t block = w * 32 + __builtin_ctz(word);
        for (int64_t t = 0; t < key_tiles_; t++) {
          const KeyTile tile{block, t * tile_keys_, static_cast<int>(keys_in(block, t))};
          if (tile.keys == 0) break;
          bool is_seen = false;
          for (int64_t i = 0; i < count; i++) {
            viewers[current][i] = viewers_of(*rows[i], block, t);
            is_seen = is_seen || viewers[current][i].see != 0;
          }
          if (!is_seen) continue;
          if (held.keys) body(held, static_cast<const Viewers*>(viewers[1 - current]), &tile);
          held = tile;
          current = 1 - current;
        }
      }
    }
    if (held.keys) body(held, static_cast<const Viewers*>(viewers[1 - current]), static_cast<const KeyTile*>(nullptr));
  }

  Viewers viewers_of(const RowTile<T>& rows, int64_t block, int64_t tile) const {
    Viewers viewers{};
    const uint32_t* words = rows.words + block / 32;
    for (int m = 0; m < rows.members; m++) {
      const Mask lists = words[m * words_] >> block % 32 & 1;
      viewers.see |= (rows.rows[m] ? lists : 0) << m;
    }
    // Everybody sees the prefix, which is behind the grid's blocks.
    if (block >= p.num_grid_blocks || !has_rule_) return viewers;
    const int64_t from = first_position_[block * key_tiles_ + tile], to = last_position_[block * key_tiles_ + tile];
    for_each_one(viewers.see, [&](int m) {
      const auto& ends = rows.ends[m];
      if (from > ends.greatest_highest || to < ends.least_lowest)
        viewers.see &= ~(Mask{1} << m);
      else if (to > ends.least_highest || from < ends.greatest_lowest)
        viewers.cut |= Mask{1} << m;
    });
    return viewers;
  }

  template <class Body>
  void for_each_run(const RowTile<T>& rows, const Viewers& viewers, Body&& body) const {
    Mask busy = 0;
    for_each_one(viewers.see, [&](int m) { busy |= rows.vectors[m]; });
    while (busy) {
      Run run{};
      run.vector = __builtin_ctzll(busy);
      const Mask rest = ~(busy >> run.vector);
      run.vectors = rest ? __builtin_ctzll(rest) : 64;
      const Mask vectors = ones(run.vectors) << run.vector;
      busy &= ~vectors;
      const int64_t from = run.vector * kLanes / stride_, to = divide_up((run.vector + run.vectors) * kLanes, stride_);
      const Mask here = ones(std::min<int64_t>(to, rows.members)) & ~ones(from);
      run.members = viewers.see & here;
      const int last = 63 - __builtin_clzll(run.members);
      run.row = static_cast<int>(__builtin_ctzll(run.members) * stride_);
      run.past_row = static_cast<int>(last * stride_) + rows.rows[last];
      for_each_one(here & ~viewers.see, [&](int m) { run.is_shared = run.is_shared || rows.rows[m] != 0; });
      run.hides = run.is_shared || (viewers.cut & here) != 0;
      body(run);
    }
  }

  // Between which positions each lane of a run sees keys of a tile.
  struct Bounds {
    typename Simd<T>::Int lowest[kTile], highest[kTile];
  };
  void bound(const RowTile<T>& rows, const KeyTile& tile, const Run& run, Bounds& bounds) const {
    using Limits = std::numeric_limits<typename Simd<T>::Int>;
    const bool has_rule = tile.block < p.num_grid_blocks;
    for (int64_t lane = run.vector * kLanes; lane < (run.vector + run.vectors) * kLanes; lane++) {
      bounds.lowest[lane] = Limits::max();
      bounds.highest[lane] = Limits::min();
    }
    for_each_one(run.members, [&](int m) {
      for (int64_t lane = m * stride_; lane < m * stride_ + rows.rows[m]; lane++) {
        bounds.lowest[lane] = has_rule ? rows.lowest[lane] : Limits::min();
        bounds.highest[lane] = has_rule ? rows.highest[lane] : Limits::max();
      }
    });
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
  static Ints<T> sees(const Bounds& bounds, int64_t vector, int32_t position) {
    const Ints<T> at = Ints<T>{} + position;
    const auto lowest = *reinterpret_cast<const Ints<T>*>(bounds.lowest + vector * kLanes);
    const auto highest = *reinterpret_cast<const Ints<T>*>(bounds.highest + vector * kLanes);
    return (at >= lowest) & (at <= highest);
  }

  // Calls body(lane, member, row) for each real row of a tile.
  template <class Body>
  void for_each_row(const RowTile<T>& rows, Body&& body) const {
    for (int m = 0; m < rows.members; m++)
      for (int r = 0; r < rows.rows[m]; r++) body(m * stride_ + r, m, r);
  }

  // Rows [tile_rows, row stride] to [D, tile_rows].
  void transpose(const T* from, int64_t row_stride, T* to) const {
    for (int64_t d = 0; d < p.head_dim; d++)
      for (int64_t lane = 0; lane < tile_rows_; lane++) to[d * tile_rows_ + lane] = from[lane * row_stride + d];
  }

  // Where q holds the row of a member.
  int32_t q_row_of(const RowTile<T>& rows, int member, int r) const {
    const int64_t index = rows.index + member;
    return q_rows_of(index)[p.kept_slots[index * p.kept_rows + rows.first + r]];
  }

  // Some row tiles, and what is summed of them.
  struct ForwardScratch {
    struct Part {
      RowTile<T> rows;
      alignas(64) T top[kTile], total[kTile];
      T *queries, *sums;  // [D, tile_rows]
    };
    ForwardScratch(const Attention& of, int64_t together)
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

  // C[rows, lanes of a run] += A B, A by pointers to its columns; in lanes that list alone, for what others do not list may
  // hold numbers that are none, which are not made zero by a weight of zero.
  void multiply_into(int count, const T* const* a, const T* b, T* c, const Run& run, int depth, const Bounds& bounds,
                     T* product, Ahead& ahead) const {
    const int stride = static_cast<int>(tile_rows_);
    if (!run.is_shared) {
      multiply<T, true>(count, a, b, stride, c, stride, run.vectors, depth, true, ahead);
      return;
    }
    multiply<T, true>(count, a, b, stride, product, stride, run.vectors, depth, false, ahead);
    for (int j = 0; j < run.vectors; j++) {
      const auto lowest = *reinterpret_cast<const Ints<T>*>(bounds.lowest + (run.vector + j) * kLanes);
      const auto lists = lowest != std::numeric_limits<typename Simd<T>::Int>::max();
      for (int64_t d = 0; d < count; d++) {
        const Vector<T> more = load(product + d * tile_rows_ + j * kLanes);
        T* at = c + d * tile_rows_ + j * kLanes;
        store(at, load(at) + (lists ? more : Vector<T>{}));
      }
    }
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

  template <class Lanes>
  static bool any(Lanes lanes) {
    uint64_t words[sizeof(Lanes) / 8], found = 0;
    std::memcpy(words, &lanes, sizeof(Lanes));
    for (uint64_t word : words) found |= word;
    return found != 0;
  }

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

  const Problem& p;
  const Format<T> format_;
  int64_t num_heads_, words_, parts_, stride_, members_, tile_rows_, row_tiles_, key_tiles_, tile_keys_, width_;
  bool has_rule_;
  T scale2_;
  Buffer<T> packed_keys_, packed_values_;
  std::vector<int64_t> first_position_, last_position_;
  int64_t panel_size_ = 0, groups_ = 1;
  bool is_held_ = false;  // the second cache has room for all that belongs to the keys of a group
  Buffer<T> panels_, grad_q_;
  std::vector<std::atomic<int64_t>> progress_;
  std::vector<uint8_t> is_finite_;  // of the queries and their gradients in a row tile
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
