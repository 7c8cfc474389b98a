// Block-sparse attention over the lists of a plan, for any CPU: rows and keys in tiles, and the walk over them that the
// forward (attend.cpp) and the backward (backward.cpp) share.
//
// Legend: B batch, H heads, D numbers of a head, Nq query blocks of Mq slots, of which up to K rows are kept, Nk KV blocks
// of Mk slots. A *row tile* has up to 64 kept rows, of one query block or of several that follow each other, its *members*;
// they are the lanes of vectors, so that queries are packed transposed, [D, rows]. A *key tile* is up to 64 keys of a KV
// block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "simd.h"
#include "threads.h"
#include "tokens.h"

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
inline uint32_t bits_between(int64_t first, int64_t past, int64_t word) {
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

// What the passes share: tables, packed keys and values, and the walk. Classes of one file derive from it.
template <class T>
class Tiles {
 public:
  static constexpr int64_t kLanes = Simd<T>::kLanes;

  Tiles(const Problem& problem, Format<T> format)
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

 protected:
  static constexpr int64_t kTogether = 8;  // row tiles that are walked at once, at most

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

  template <class Lanes>
  static bool any(Lanes lanes) {
    uint64_t words[sizeof(Lanes) / 8], found = 0;
    std::memcpy(words, &lanes, sizeof(Lanes));
    for (uint64_t word : words) found |= word;
    return found != 0;
  }

  const Problem& p;
  const Format<T> format_;
  int64_t num_heads_, words_, parts_, stride_, members_, tile_rows_, row_tiles_, key_tiles_, tile_keys_, width_;
  bool has_rule_;
  T scale2_;
  Buffer<T> packed_keys_, packed_values_;
  std::vector<int64_t> first_position_, last_position_;
};
