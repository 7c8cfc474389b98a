// The selection of Bidirectional Sparse Attention: which queries of each block are computed, what fills the others, and
// which KV blocks each query block sees; the rules are those of bsa_kernels.methods.bsa, whose torch code is the twin.
//
// Legend: B batch, H heads, D numbers of a head, Nq query blocks of Mq slots, of which up to K rows are kept, Nk KV blocks
// of Mk slots. Blocks of one shape are of one *kind*; those of a kind have the same G groups of up to W slots.
//
// q and k are read once, where they are, block by block: similarities and means are made while a block is in the first
// cache. Scores of all KV blocks are made for a *tile* of query blocks at a time, which are the lanes of vectors: the
// threshold of a row needs no reduction over lanes. Results are the same bits for any number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "simd.h"
#include "threads.h"
#include "tokens.h"

namespace {

enum Fill : int64_t { kNearest, kSimilar, kFlat, kZero };
enum KvRule : int64_t { kEverything, kStatistical, kSoftmaxStat, kTopk, kMass };

// As `library.SelectProblem` has it, field by field.
struct SelectProblem {
  int64_t dtype;  // 0 float32, 1 float64, 2 bfloat16, 3 float16
  int64_t threads;           // at most
  int64_t numbers_a_thread;  // of q and k, for which one is started
  int64_t batch, heads, head_dim;
  int64_t num_q_blocks, q_block_size, kept_rows;
  int64_t num_kv_blocks, kv_block_size;
  int64_t num_groups, group_size, centre_size;
  int64_t keeps_queries;  // all of them: no groups
  int64_t fill_rule, kv_rule;
  int64_t least;  // of `topk` the number of blocks, of `mass` the least
  double scale;
  double threshold;  // of the statistical rules in deviations above the mean; of `mass` the sum
  Tokens q, k;
  int32_t* kept_slots;   // [B, H, Nq, K]
  int32_t* num_kept;     // [B, H, Nq]
  int32_t* fill;         // [B, H, Nq, Mq]
  uint32_t* block_bits;  // [B, H, Nq, ceil(Nk / 32)]
  const int32_t* q_rows;    // [Nq, Mq]: where q holds a slot, -1: nowhere
  const int32_t* q_counts;  // [Nq]: real tokens, which come first in their block
  const int32_t* kv_rows;   // [Nk, Mk]
  const int32_t* kv_counts; // [Nk]
  const int32_t* kinds;     // [Nq]
  const int32_t* members;   // [kinds, G, W]: slots of a group, ascending, then -1
  const int32_t* keep;      // [kinds, G]: how many are kept
  const int32_t* centres;   // [kinds, G, C]: slots whose mean is the centre, then -1
  const int32_t* points;    // [kinds, Mq, 4]: t, h, w inside the block, and the place in its flat order
};

template <class T>
T sum_of_lanes(Vector<T> x) {
  constexpr int kLanes = Simd<T>::kLanes;
  T lanes[kLanes];
  std::memcpy(lanes, &x, sizeof(lanes));
#pragma GCC unroll 8
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int i = 0; i < step; i++) lanes[i] += lanes[i + step];
  return lanes[0];
}

// `width` is whole vectors.
template <class T>
T dot(const T* a, const T* b, int64_t width) {
  Vector<T> sum{};
  for (int64_t d = 0; d < width; d += Simd<T>::kLanes) sum += load(a + d) * load(b + d);
  return sum_of_lanes<T>(sum);
}

template <class T>
void add_to(T* to, const T* from, int64_t width) {
  for (int64_t d = 0; d < width; d += Simd<T>::kLanes) store(to + d, load(to + d) + load(from + d));
}

template <class T>
class Selection {
 public:
  Selection(const SelectProblem& problem, Format<T> format)
      : p(problem),
        format_(format),
        num_heads_(p.batch * p.heads),
        width_(round_up(p.head_dim, kLanes)),
        words_(divide_up(p.num_kv_blocks, 32)),
        tile_vectors_(p.num_q_blocks > kLanes ? 2 : 1),
        tile_rows_(tile_vectors_ * kLanes),
        tiles_(divide_up(p.num_q_blocks, tile_rows_)),
        pools_(p.kv_rule != kEverything) {}

  void select() {
    const int64_t q_items = num_heads_ * p.num_q_blocks, k_items = pools_ ? num_heads_ * p.num_kv_blocks : 0;
    const int64_t tiles = num_heads_ * tiles_;
    pooled_q_ = Buffer<T>(pools_ ? q_items * width_ : 0);
    pooled_k_ = Buffer<T>(k_items * width_);
    lengths_ = Buffer<T>(k_items);
    const int64_t numbers = (q_items * p.q_block_size + k_items * p.kv_block_size) * p.head_dim;
    const int64_t threads = threads_for(p.threads, std::max(q_items, k_items), numbers, p.numbers_a_thread);
    std::vector<Scratch> scratch;
    for (int64_t i = 0; i < threads; i++) scratch.emplace_back(*this);
    Phase choose(q_items, threads, 8), pool(k_items, threads, 8), decide(tiles, threads);
    parallel(threads, [&](int64_t thread) {
      Scratch& own = scratch[thread];
      choose.work([&](int64_t item) { choose_queries(item, own); });
      pool.work([&](int64_t item) { pool_keys(item, own); });
      choose.wait();
      pool.wait();
      decide.work([&](int64_t item) { decide_tile(item, own); });
    });
  }

 private:
  static constexpr int64_t kLanes = Simd<T>::kLanes;

  // What a thread works in.
  struct Scratch {
    explicit Scratch(const Selection& of)
        : rows(std::max(of.p.q_block_size, of.p.kv_block_size) * of.width_),
          centre(of.width_),
          lengths(of.p.q_block_size),
          nearness(round_up(of.p.group_size, kLanes)),
          queries(of.pools_ ? of.width_ * of.tile_rows_ : 0),
          scores(of.pools_ ? of.p.num_kv_blocks * of.tile_rows_ : 0),
          kept(of.p.group_size),
          entries(of.p.q_block_size),
          keys(of.pools_ ? of.p.num_kv_blocks : 0),
          order(of.pools_ ? of.p.num_kv_blocks : 0) {
      std::memset(rows.get(), 0, std::max(of.p.q_block_size, of.p.kv_block_size) * of.width_ * sizeof(T));
    }
    Buffer<T> rows;      // [Mq or Mk, width] of a block, zeros past D
    Buffer<T> centre;    // [width]
    Buffer<T> lengths;   // [Mq]
    Buffer<T> nearness;  // [W] to the centre of the group
    Buffer<T> queries;   // [width, tile rows]
    Buffer<T> scores;    // [Nk, tile rows]
    std::vector<int32_t> kept;     // [W]: slots of a group
    std::vector<int32_t> entries;  // [Mq]: of kept_slots, -1 where pruned
    std::vector<const T*> keys;    // [Nk]: pooled
    std::vector<int32_t> order;    // [Nk]
  };

  // Reads the rows of a block to `row_of(slot)`, and asks for those of the next, which the same thread reads then.
  template <class RowOf>
  void read_block(const Tokens& tokens, int64_t head, int64_t block, const int32_t* rows, const int32_t* counts,
                  int64_t num_blocks, int64_t block_size, RowOf&& row_of) const {
    const HeadRows from(tokens, p.heads, head, format_.bytes);
    const int64_t num_next = block + 1 < num_blocks ? counts[block + 1] : 0;
    rows += block * block_size;
    for (int64_t slot = 0; slot < counts[block]; slot++) {
      if (slot < num_next) from.prefetch(rows[block_size + slot], p.head_dim * format_.bytes);
      format_.read(from.row(rows[slot]), row_of(slot), p.head_dim);
    }
  }

  void choose_queries(int64_t item, Scratch& own) const {
    const int64_t head = item / p.num_q_blocks, block = item % p.num_q_blocks;
    const int64_t count = p.q_counts[block];
    int32_t* entries = own.entries.data();
    if (pools_ || !p.keeps_queries) {
      read_block(p.q, head, block, p.q_rows, p.q_counts, p.num_q_blocks, p.q_block_size,
                 [&](int64_t slot) { return own.rows.get() + slot * width_; });
    }
    const int64_t kind = p.kinds[block];
    if (p.keeps_queries) {
      for (int64_t slot = 0; slot < p.q_block_size; slot++) entries[slot] = 0;
    } else {
      for (int64_t slot = 0; slot < p.q_block_size; slot++) entries[slot] = -1;
      for (int64_t slot = 0; slot < count; slot++) {
        const T* row = own.rows.get() + slot * width_;
        own.lengths.get()[slot] = std::sqrt(dot(row, row, width_));
      }
      for (int64_t group = 0; group < p.num_groups; group++) mark_kept(kind * p.num_groups + group, own);
    }
    const int64_t num_kept = number_kept(item, count, own);
    if (pools_) pool_kept(item, count, num_kept, own);
    int32_t* fill = p.fill + item * p.q_block_size;
    std::copy(entries, entries + p.q_block_size, fill);
    if (!p.keeps_queries && p.fill_rule != kZero)
      for (int64_t group = 0; group < p.num_groups; group++) fill_group(kind, group, own, fill);
  }

  // Marks the entries of those of a group that are least similar to its centre, by zero.
  void mark_kept(int64_t group, Scratch& own) const {
    const int32_t* members = p.members + group * p.group_size;
    const int64_t size = std::find(members, members + p.group_size, -1) - members;
    const int32_t* centres = p.centres + group * p.centre_size;
    const T* centre = own.rows.get() + centres[0] * width_;
    if (size == 0) return;
    int num_centres = 1;
    while (num_centres < p.centre_size && centres[num_centres] >= 0) num_centres++;
    if (num_centres > 1) {
      std::memcpy(own.centre.get(), centre, width_ * sizeof(T));
      for (int c = 1; c < num_centres; c++) add_to(own.centre.get(), own.rows.get() + centres[c] * width_, width_);
      for (int64_t d = 0; d < width_; d++) own.centre.get()[d] /= static_cast<T>(num_centres);
      centre = own.centre.get();
    }
    const T length = num_centres > 1 ? std::sqrt(dot(centre, centre, width_)) : own.lengths.get()[centres[0]];
    T* nearness = own.nearness.get();
    for (int64_t i = 0; i < size; i++) {
      const T lengths = length * own.lengths.get()[members[i]];
      const T cosine = dot(own.rows.get() + members[i] * width_, centre, width_) / (lengths == 0 ? T(1) : lengths);
      nearness[i] = cosine == cosine ? cosine : std::numeric_limits<T>::infinity();  // what is no number comes last
    }
    std::fill(nearness + size, nearness + round_up(size, kLanes), std::numeric_limits<T>::infinity());
    for (int64_t i = 0; i < size; i += kLanes) {
      const Ints<T> ranks = ranks_of(nearness, i, size);
      for (int64_t lane = 0; lane < std::min(kLanes, size - i); lane++)
        if (ranks[lane] < p.keep[group]) own.entries[members[i + lane]] = 0;
    }
  }

  // How many of `size` values come before each of a vector of them, ascending, ties to the lower index.
  static Ints<T> ranks_of(const T* values, int64_t first, int64_t size) {
    using Int = typename Simd<T>::Int;
    const Vector<T> own = load(values + first);
    Ints<T> ranks{}, index{};
    for (int lane = 0; lane < kLanes; lane++) index[lane] = static_cast<Int>(first + lane);
    for (int64_t j = 0; j < size; j++)
      ranks -= (values[j] < own) | ((values[j] == own) & (static_cast<Int>(j) < index));
    return ranks;
  }

  // Numbers the marked slots; how many there are.
  int64_t number_kept(int64_t item, int64_t count, Scratch& own) const {
    int32_t* slots = p.kept_slots + item * p.kept_rows;
    int32_t num_kept = 0;
    for (int64_t slot = 0; slot < p.q_block_size; slot++) {
      const bool is_kept = slot < count && own.entries[slot] == 0;
      own.entries[slot] = is_kept ? num_kept : -1;
      if (is_kept) slots[num_kept++] = static_cast<int32_t>(slot);
    }
    std::fill(slots + num_kept, slots + p.kept_rows, -1);
    p.num_kept[item] = num_kept;
    return num_kept;
  }

  void pool_kept(int64_t item, int64_t count, int64_t num_kept, Scratch& own) const {
    T* pooled = pooled_q_.get() + item * width_;
    std::memset(pooled, 0, width_ * sizeof(T));
    for (int64_t slot = 0; slot < count; slot++)
      if (own.entries[slot] >= 0) add_to(pooled, own.rows.get() + slot * width_, width_);
    for (int64_t d = 0; d < width_; d++) pooled[d] /= static_cast<T>(num_kept);
  }

  // Gives the pruned of a group the entry of the kept member that they take after.
  void fill_group(int64_t kind, int64_t group, Scratch& own, int32_t* fill) const {
    const int32_t* members = p.members + (kind * p.num_groups + group) * p.group_size;
    const int32_t* points = p.points + kind * p.q_block_size * 4;
    int32_t* kept = own.kept.data();
    int64_t size = 0, num_kept = 0;
    for (; size < p.group_size && members[size] >= 0; size++)
      if (own.entries[members[size]] >= 0) kept[num_kept++] = members[size];
    for (int64_t i = 0; i < size; i++) {
      const int32_t slot = members[i];
      if (own.entries[slot] >= 0) continue;
      const int32_t source = p.fill_rule == kSimilar ? most_similar(slot, kept, num_kept, own)
                                                     : nearest(points, slot, kept, num_kept);
      fill[slot] = own.entries[source];
    }
  }

  int32_t most_similar(int32_t slot, const int32_t* kept, int64_t num_kept, const Scratch& own) const {
    int32_t best = kept[0];
    T highest = cosine_of(slot, best, own);
    for (int64_t j = 1; j < num_kept; j++) {
      const T cosine = cosine_of(slot, kept[j], own);
      if (cosine > highest) {
        highest = cosine;
        best = kept[j];
      }
    }
    return best;
  }

  // In three dimensions, or along the flat order.
  int32_t nearest(const int32_t* points, int32_t slot, const int32_t* kept, int64_t num_kept) const {
    const int32_t* from = points + slot * 4;
    int32_t best = kept[0], least = std::numeric_limits<int32_t>::max();
    for (int64_t j = 0; j < num_kept; j++) {
      const int32_t* to = points + kept[j] * 4;
      const int32_t t = from[0] - to[0], h = from[1] - to[1], w = from[2] - to[2];
      const int32_t far = p.fill_rule == kFlat ? std::abs(from[3] - to[3]) : t * t + h * h + w * w;
      best = far < least ? kept[j] : best;
      least = std::min(least, far);
    }
    return best;
  }

  T cosine_of(int32_t slot, int32_t other, const Scratch& own) const {
    const T lengths = own.lengths.get()[slot] * own.lengths.get()[other];
    return dot(own.rows.get() + slot * width_, own.rows.get() + other * width_, width_) / (lengths == 0 ? T(1) : lengths);
  }

  void pool_keys(int64_t item, Scratch& own) const {
    const int64_t head = item / p.num_kv_blocks, block = item % p.num_kv_blocks;
    const int64_t count = p.kv_counts[block];
    read_block(p.k, head, block, p.kv_rows, p.kv_counts, p.num_kv_blocks, p.kv_block_size,
               [&](int64_t slot) { return own.rows.get() + slot * width_; });
    T* pooled = pooled_k_.get() + item * width_;
    std::memset(pooled, 0, width_ * sizeof(T));
    for (int64_t slot = 0; slot < count; slot++) add_to(pooled, own.rows.get() + slot * width_, width_);
    for (int64_t d = 0; d < width_; d++) pooled[d] /= static_cast<T>(count);
    lengths_.get()[item] = std::sqrt(dot(pooled, pooled, width_));
  }

  // The KV blocks of a tile of query blocks.
  void decide_tile(int64_t item, Scratch& own) const {
    const int64_t head = item / tiles_, first = item % tiles_ * tile_rows_;
    const int64_t rows = std::min(tile_rows_, p.num_q_blocks - first);
    uint32_t* bits = p.block_bits + (head * p.num_q_blocks + first) * words_;
    if (!pools_) {
      for (int64_t r = 0; r < rows; r++)
        for (int64_t w = 0; w < words_; w++) bits[r * words_ + w] = valid_bits(w);
      return;
    }
    T* queries = own.queries.get();
    alignas(64) T lengths[2 * kLanes] = {};
    for (int64_t r = 0; r < tile_rows_; r++) {
      const T* from = pooled_q_.get() + (head * p.num_q_blocks + first + r) * width_;
      for (int64_t d = 0; d < width_; d++) queries[d * tile_rows_ + r] = r < rows ? from[d] : T(0);
      if (r < rows) lengths[r] = std::sqrt(dot(from, from, width_));
    }
    T longest = 0;
    for (int64_t n = 0; n < p.num_kv_blocks; n++) {
      own.keys[n] = pooled_k_.get() + (head * p.num_kv_blocks + n) * width_;
      longest = std::max(longest, lengths_.get()[head * p.num_kv_blocks + n]);
    }
    Ahead ahead;
    multiply<T, false>(static_cast<int>(p.num_kv_blocks), own.keys.data(), queries, static_cast<int>(tile_rows_),
                       own.scores.get(), static_cast<int>(tile_rows_), static_cast<int>(tile_vectors_),
                       static_cast<int>(p.head_dim), false, ahead);
    for (int64_t j = 0; j < tile_vectors_ && j * kLanes < rows; j++) {
      const Vector<T> magnitude = load(lengths + j * kLanes) * longest * static_cast<T>(std::abs(p.scale));
      decide_rows(own.scores.get() + j * kLanes, magnitude, std::min(kLanes, rows - j * kLanes),
                  bits + j * kLanes * words_, own);
    }
  }

  uint32_t valid_bits(int64_t word) const {
    const int64_t left = p.num_kv_blocks - word * 32;
    return left >= 32 ? ~uint32_t{0} : (uint32_t{1} << left) - 1;
  }

  // Decides a vector of rows; `column` [Nk, row stride] has their scores, not scaled.
  void decide_rows(T* column, Vector<T> magnitude, int64_t rows, uint32_t* bits, Scratch& own) const {
    const int64_t n = p.num_kv_blocks;
    const T scale = static_cast<T>(p.scale);
    Vector<T> low = load(column) * scale, high = low;
    Ints<T> best{};
    for (int64_t i = 0; i < n; i++) {
      const Vector<T> x = load(column + i * tile_rows_) * scale;
      store(column + i * tile_rows_, x);
      // The first that is no number is the highest, as torch has it.
      const auto is_higher = (x > high) | ((x != x) & (high == high));
      best = is_higher ? Ints<T>{} + static_cast<typename Simd<T>::Int>(i) : best;
      high = is_higher ? x : high;
      low = x < low ? x : low;
    }
    if (p.kv_rule == kSoftmaxStat || p.kv_rule == kMass) make_softmax(column, high);
    if (p.kv_rule == kTopk || p.kv_rule == kMass) {
      for (int64_t r = 0; r < rows; r++) take_highest(column + r, bits + r * words_, own);
      return;
    }
    const Vector<T> mean = sum_over(column, [](Vector<T> x) { return x; }) / static_cast<T>(n);
    const Vector<T> variance = sum_over(column, [&](Vector<T> x) { return (x - mean) * (x - mean); }) / static_cast<T>(n);
    Vector<T> threshold;
    for (int64_t r = 0; r < kLanes; r++) threshold[r] = std::sqrt(variance[r]);
    threshold = mean + threshold * static_cast<T>(p.threshold);
    constexpr T kConstant = 16 * std::numeric_limits<T>::epsilon();
    const auto is_constant = high - low <= magnitude * kConstant;
    for (int64_t w = 0; w < words_; w++) {
      Ints<T> word{};
      for (int64_t i = w * 32; i < std::min(n, w * 32 + 32); i++) {
        const auto is_seen = (load(column + i * tile_rows_) >= threshold) | is_constant |
                             (best == static_cast<typename Simd<T>::Int>(i));
        word |= is_seen & static_cast<typename Simd<T>::Int>(int64_t{1} << (i - w * 32));
      }
      for (int64_t r = 0; r < rows; r++) bits[r * words_ + w] = static_cast<uint32_t>(word[r]);
    }
  }

  // In parts, so that rounding grows with the square root of their size and not with the number of blocks.
  template <class Function>
  Vector<T> sum_over(const T* column, Function&& function) const {
    constexpr int64_t kPart = 32;
    Vector<T> sum{};
    for (int64_t first = 0; first < p.num_kv_blocks; first += kPart) {
      Vector<T> part{};
      for (int64_t i = first; i < std::min(first + kPart, p.num_kv_blocks); i++)
        part += function(load(column + i * tile_rows_));
      sum += part;
    }
    return sum;
  }

  void make_softmax(T* column, Vector<T> high) const {
    for (int64_t i = 0; i < p.num_kv_blocks; i++) {
      T* at = column + i * tile_rows_;
      store(at, exp2_of<T>((load(at) - high) * static_cast<T>(kLog2E)));
    }
    const Vector<T> sum = sum_over(column, [](Vector<T> x) { return x; });
    for (int64_t i = 0; i < p.num_kv_blocks; i++) {
      T* at = column + i * tile_rows_;
      store(at, load(at) / sum);
    }
  }

  // The highest of a row, ties to the lowest index: so many, or until their sum is reached.
  void take_highest(const T* column, uint32_t* bits, Scratch& own) const {
    const int64_t n = p.num_kv_blocks;
    const auto value = [&](int32_t i) { return column[i * tile_rows_]; };
    const auto key = [&](int32_t i) { return value(i) == value(i) ? value(i) : std::numeric_limits<T>::infinity(); };
    for (int64_t i = 0; i < n; i++) own.order[i] = static_cast<int32_t>(i);
    const auto comes_first = [&](int32_t a, int32_t b) { return key(a) != key(b) ? key(a) > key(b) : a < b; };
    int64_t taken = std::min(n, p.least);
    if (p.kv_rule == kTopk) {
      if (taken < n) std::nth_element(own.order.begin(), own.order.begin() + taken, own.order.end(), comes_first);
    } else {
      std::sort(own.order.begin(), own.order.end(), comes_first);
      double sum = 0;
      for (int64_t i = 0; i < n; i++) {
        const T mass = value(own.order[i]);
        sum += mass;
        if (static_cast<T>(sum) - mass < static_cast<T>(p.threshold) && i >= taken) taken = i + 1;
      }
    }
    std::fill(bits, bits + words_, 0);
    for (int64_t i = 0; i < taken; i++) bits[own.order[i] / 32] |= uint32_t{1} << own.order[i] % 32;
  }

  const SelectProblem& p;
  const Format<T> format_;
  int64_t num_heads_, width_, words_, tile_vectors_, tile_rows_, tiles_;
  bool pools_;
  Buffer<T> pooled_q_, pooled_k_, lengths_;
};

}  // namespace

extern "C" {

BSA_EXPORT int64_t bsa_select_problem_bytes() { return sizeof(SelectProblem); }

BSA_EXPORT int bsa_select(const SelectProblem* problem) {
  return with_task<Selection>(*problem, [](auto& selection) { selection.select(); });
}
}
