// Plans: the same bits from any number of threads, from several callers at a time and from a forked child; and steps
// made from random numbers either refuse them or stay inside their memory (which only a sanitizer can tell: see
// run_sanitized.sh). Whether the numbers are right is the matter of kernels_test and of the Python tests.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <thread>

#include "runtime/instruction_sets.hpp"
#include "runtime/moves.hpp"
#include "runtime/plan.hpp"
#include "runtime/steps/average.hpp"
#include "runtime/steps/channelwise.hpp"
#include "runtime/steps/checks.hpp"
#include "runtime/steps/conv.hpp"
#include "runtime/steps/elementwise.hpp"
#include "runtime/steps/linear.hpp"
#include "runtime/steps/norm.hpp"
#include "runtime/steps/repack.hpp"
#include "runtime/steps/vectors.hpp"
#include "runtime/thread_pool.hpp"
#include "testing.hpp"

namespace {

std::atomic<int64_t> allocations{0};

}  // namespace

#if !BUDWOOD_ADDRESS_SANITIZER  // which has operators of its own
// Not inlined: where it sees half of a pair, the compiler warns of two that do not belong together.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* made = std::malloc(bytes ? bytes : 1)) return made;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* made) noexcept { std::free(made); }
[[gnu::noinline]] void operator delete(void* made, std::size_t) noexcept { std::free(made); }
#endif

namespace budwood::testing {
namespace {

constexpr int64_t kChannels = 6, kWide = 12, kHeight = 5, kWidth = 3, kImages = 2, kGroups = 3;

// Hands out places in the arena one after the other.
class Arena {
 public:
  explicit Arena(int64_t lanes) : lanes_(lanes) {}
  Map feature(int64_t channels, int64_t halo) {
    const int64_t channel = (kWidth + 2 * halo) * lanes_, row = channels * channel;
    const Map m{used_ + halo * (row + lanes_), row * (kHeight + 2 * halo), row, channel, 1, kHeight, channels, kWidth, lanes_, halo, halo};
    used_ += m.group;
    return m;
  }
  Map vector(int64_t channels, int64_t images) {
    const Map m{used_, channels, 0, 1, images, 1, channels, 1, 1, 0, 0};
    used_ += channels * images;
    return m;
  }
  int64_t floats() const { return used_; }

 private:
  int64_t lanes_, used_ = 0;
};

// A plane with a border of one vector, as windows of 3 x 3 want it; the border is filled with `fill`.
struct Bordered {
  explicit Bordered(const Map& m) : row((m.width + 2) * m.lanes), origin(row + m.lanes), scratch((m.height + 2) * row), index(m.lanes, -1) {
    for (int64_t y = -1; y <= m.height; ++y)
      for (int64_t x = -1; x <= m.width; ++x) {
        const bool inside = y >= 0 && y < m.height && x >= 0 && x < m.width;
        moves.push_back({inside ? Move::copy : Move::permute, 0, origin + y * row + x * m.lanes, inside ? y * m.row + x * m.lanes : 0});
      }
    for (int64_t dy = -1; dy <= 1; ++dy)
      for (int64_t dx = -1; dx <= 1; ++dx) taps.push_back(dy * row + dx * m.lanes);
  }
  LocalPlane plane(const Map& m, float fill, int64_t arena_floats) const {
    return {m, moves, index, fill, 1, scratch, arena_floats, m.lanes};
  }
  int64_t row, origin, scratch;
  std::vector<int32_t> index;
  std::vector<Move> moves;
  std::vector<int64_t> taps;
};

std::vector<Move> whole_rows(const Map& m) {
  std::vector<Move> moves;
  for (int64_t y = 0; y < m.height; ++y)
    for (int64_t x = 0; x < m.width; ++x) moves.push_back({Move::copy, 0, y * m.row + x * m.lanes, (y * m.width + x) * m.lanes});
  return moves;
}

// Runs do what their moves do, vector by vector, and no run reaches across a row. Few different numbers, so that many
// vectors are alike.
void test_runs() {
  Random random(7);
  const int64_t lanes = 4;
  std::vector<int32_t> index{0, 1, 2, 3, -1, -1, -1, -1, 3, -1, 0, 2, -1, 0, -1, 0};
  for (int32_t i = 0; i < 6; ++i)  // vectors that gathers walk along
    for (int32_t at : {40, 7, 100, 9}) index.push_back(at == 7 && i < 3 ? -1 : at + 2 * i);
  int64_t fewer = 0, walks = 0, walked = 0;
  for (int n = 0; n < 3000; ++n) {
    std::vector<Move> moves;
    std::vector<int64_t> row{0};
    const auto rows = 1 + random.below(3);
    for (int64_t r = 0, to = 0, from = 0; r < rows; ++r) {
      for (int64_t v = random.below(9), kind = 0, entry = 0, merges = 0; v > 0; --v) {
        if (random.chance(0.3)) kind = random.below(3), entry = random.below(4), merges = random.below(3), from = 100 + random.below(9);
        if (kind == 2 && random.chance(0.7)) entry = entry < 4 || entry > 8 ? 4 : entry + 1, merges = 0;
        if (random.chance(0.1)) to += lanes;
        moves.push_back({kind == 2 ? Move::gather : static_cast<int32_t>(kind), static_cast<int32_t>(entry), to, from});
        for (int64_t m = 0; m < merges; ++m)
          moves.push_back({Move::merge, static_cast<int32_t>((entry + m) % 4), to, from + m + (random.chance(0.1) ? 5 : 0)});
        walks += kind == 2 && merges == 0 && entry > 4;
        to += lanes, from += lanes * (r + 1);
      }
      row.push_back(static_cast<int64_t>(moves.size()));
    }
    std::vector<int64_t> places = row;
    const std::vector<MoveRun> runs = runs_of(moves, index, lanes, places);
    if (places.size() != row.size()) return fail("runs: another number of rows");
    fewer += runs.size() < moves.size();
    for (size_t r = 0; r + 1 < row.size(); ++r) {
      std::vector<Move> wanted(moves.begin() + row[r], moves.begin() + row[r + 1]), found;
      for (int64_t k = places[r]; k < places[r + 1]; ++k)
        for (int64_t i = 0; i < runs[k].count; ++i) {
          const bool fill = runs[k].kind == MoveRun::fill;
          found.push_back({fill ? Move::permute : runs[k].kind, fill ? 1 : runs[k].index, runs[k].to + i * lanes, runs[k].from + i * runs[k].step});
          if (runs[k].kind == MoveRun::gather) walked += i > 0;
        }
      // Vectors in their order, the moves of one vector in theirs.
      std::stable_sort(found.begin(), found.end(), [](const Move& a, const Move& b) { return a.to < b.to; });
      const bool same = std::equal(wanted.begin(), wanted.end(), found.begin(), found.end(), [&](const Move& a, const Move& b) {
        if (a.to != b.to) return false;
        if (a.kind == Move::gather) {  // the same pixels; of none it is a fill, as a permutation of none is
          if (a.index == 1) return b.kind == Move::permute && b.index == 1;
          for (int64_t l = 0; l < lanes; ++l) {
            const int64_t at = index[a.index * lanes + l], of = index[b.index * lanes + l];
            if (at < 0 ? of >= 0 : of < 0 || at != b.from + of) return false;
          }
          return b.kind == Move::gather;
        }
        const bool from = (a.kind == Move::permute && a.index == 1) || a.from == b.from;
        return a.kind == b.kind && (a.kind == Move::copy || a.index == b.index) && from;
      });
      if (!same) fail(label("runs of other moves", {n, static_cast<int64_t>(r)}));
    }
  }
  if (fewer < 1000) fail("runs: hardly any vectors were alike");
  if (walked < walks / 4) fail(label("runs: hardly any gather walks on", {walked, walks}));
}

void refused(const char* what, const std::vector<Move>& moves, const std::vector<int64_t>& row) {
  const Map map{0, 1024, 64, 128, 1, 2, 2, 4, 16, 0, 0};
  try {
    RepackStep(map, map, moves, row, std::vector<int32_t>(16, 0), 0, 1, 4096, 16);
    fail(std::string(what) + " was not refused");
  } catch (const PlanError&) {
  }
}

void test_moves_that_cannot_be() {
  RepackStep({0, 1024, 64, 128, 1, 2, 2, 4, 16, 0, 0}, {0, 1024, 64, 128, 1, 2, 2, 4, 16, 0, 0},
             {{Move::permute, 0, 0, 16}, {Move::merge, 0, 0, 32}}, {0, 2}, std::vector<int32_t>(16, 0), 0, 1, 4096, 16);
  refused("a merge that begins", {{Move::merge, 0, 0, 32}}, {0, 1});
  refused("a merge that goes elsewhere", {{Move::permute, 0, 0, 16}, {Move::merge, 0, 16, 32}}, {0, 2});
  refused("a merge that begins a row", {{Move::permute, 0, 0, 16}, {Move::merge, 0, 0, 32}}, {0, 1, 2});
  refused("a move from far away", {{Move::gather, 0, 0, INT64_MAX}}, {0, 1});
}

// A small network with squeeze-excite: a step of nearly every kind.
struct Network {
  explicit Network(const Kernels& k) : lanes(k.lanes), plane(kHeight * kWidth * lanes) {
    Arena arena(lanes);
    Random random(3);
    const Map a = arena.feature(kChannels, 0), b = arena.feature(kChannels, 0), pooled = arena.feature(kChannels, 0),
              c = arena.feature(kWide, 0), mean = arena.vector(kWide, kImages), gate = arena.vector(kWide, kImages),
              narrow = arena.vector(kChannels, kImages), given = arena.vector(kWide, kImages),
              flat = arena.vector(kWide * kHeight * kWidth * lanes / kImages, kImages);
    const int64_t n = arena.floats();
    plan = std::make_unique<Plan>(k, n);
    plan->segment(kGroups);
    plan->add(std::make_unique<RepackStep>(Outside{0, plane * kChannels / kImages, plane}, kImages, a, whole_rows(a),
                                           std::vector<int64_t>{0, kWidth, kWidth * kHeight}, std::vector<int32_t>{}, 0.0f, plane, n, lanes));
    const Bordered w(a);
    plan->add(std::make_unique<DepthwiseStep>(w.plane(a, 0.0f, n), w.origin, w.row, b, Map{}, w.taps, random.floats(kChannels * 9), -1,
                                              random.floats(kChannels), Activation{Activation::hardswish}, n, lanes));
    plan->add(std::make_unique<PoolStep>(true, w.plane(a, -kInf, n), w.origin, w.row, pooled, w.taps, std::vector<float>{1.0f}, n, lanes));
    plan->add(std::make_unique<ElementwiseStep>(Elementwise::add, b, Beside{Beside::map, pooled, 1, {}}, b, Activation{Activation::gelu}, n, lanes));
    std::vector<int64_t> offsets, start{0};
    std::vector<int32_t> columns;
    for (int64_t i = 0; i < kChannels; ++i) offsets.push_back(i * b.channel);
    for (int32_t m = 0; m < kWide; ++m) {
      for (int32_t i = m % 2; i < kChannels; i += 2) columns.push_back(i);
      start.push_back(static_cast<int64_t>(columns.size()));
    }
    ConvShape shape{};
    shape.lanes = lanes;
    shape.operand = b, shape.out = c, shape.residual = Map{}, shape.offsets = offsets, shape.widest = 2;
    shape.blocks = {0, 4, kChannels}, shape.activation = Activation{Activation::silu}, shape.bias = random.floats(kWide);
    plan->add(std::make_unique<SparseConvStep>(shape, n, random.floats(static_cast<int64_t>(columns.size())), columns, start));
    plan->add(std::make_unique<GlobalAverageStep>(c, mean, std::vector<float>{}, plane / kImages, kImages, n, lanes));
    const std::vector<int32_t> third{0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11};
    plan->add(std::make_unique<SparseLinearStep>(LinearShape{with_images(mean, kImages), with_images(narrow, kImages), random.floats(kChannels), Activation{Activation::relu}},
                                                 random.floats(12), third, std::vector<int64_t>{0, 4, 4, 5, 8, 11, 12}, n, lanes));
    plan->add(std::make_unique<LinearStep>(LinearShape{with_images(narrow, kImages), with_images(gate, kImages), random.floats(kWide), Activation{Activation::sigmoid}},
                                           random.floats(kWide * kChannels), n, lanes));
    plan->add(std::make_unique<VectorInputStep>(1, with_images(given, kImages), n));
    plan->add(std::make_unique<ElementwiseStep>(Elementwise::mul, c, Beside{Beside::gate, given, kImages, {}}, c, Activation{}, n, lanes));
    plan->add(std::make_unique<ElementwiseStep>(Elementwise::mul, c, Beside{Beside::gate, gate, kImages, {}}, c, Activation{}, n, lanes));
    plan->add(std::make_unique<LayerNormStep>(c, c, random.floats(kWide), random.floats(kWide), 1e-5f, n, lanes));
    std::vector<int64_t> at;
    for (int64_t i = 0; i < kImages; ++i)
      for (int64_t y = 0; y < kHeight; ++y)
        for (int64_t x = 0; x < kWidth; ++x)
          for (int64_t l = 0; l < lanes / kImages; ++l) at.push_back(y * c.row + x * lanes + i * (lanes / kImages) + l);
    plan->add(std::make_unique<FlattenStep>(c, flat, kImages, at, n));
    plan->add(std::make_unique<SoftmaxStep>(with_images(flat, kImages), with_images(flat, kImages), n));
    out_image = flat.channels;
    Map each = with_images(flat, kImages);
    plan->add(std::make_unique<OutputStep>(each, Outside{0, out_image, 1}, kImages, std::vector<int64_t>{0, out_image}, n));
    std::vector<Plan::Turn> turns;
    for (int64_t g = 0; g < kGroups; ++g) turns.push_back({0, g});
    plan->order(turns);
    input = random.floats(kGroups * plane * kChannels);
    vectors = random.floats(kGroups * kImages * kWide);
  }

  std::vector<float> run(int threads) const {
    std::vector<float> out(kGroups * kImages * out_image, kCanary);
    run(out, threads);
    return out;
  }
  void run(std::vector<float>& out, int threads) const {
    const float* in[] = {input.data(), vectors.data()};
    float* to = out.data();
    plan->run(in, &to, threads);
  }

  int64_t lanes, plane, out_image;
  std::unique_ptr<Plan> plan;
  std::vector<float> input, vectors;
};

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void test_threads(const Network& network, const std::vector<float>& expected) {
  for (float x : expected)
    if (x == kCanary || std::isnan(x)) return fail("the network's output is not filled");
  for (int threads : {1, 2, 3, 1, 3, 2})
    for (int repeat = 0; repeat < 20; ++repeat)
      if (!same(network.run(threads), expected)) return fail("other bits from " + std::to_string(threads) + " threads");
}

// Pieces that differ, more and fewer than there are threads, each as if it were run alone.
void test_pieces(const Network& network, const std::vector<float>& expected) {
  constexpr int64_t kPieces = 7;
  const std::vector<float> other(network.input.rbegin(), network.input.rend());
  std::vector<std::vector<float>> outs(kPieces), wanted(kPieces);
  std::vector<std::array<const float*, 2>> in;
  std::vector<float*> out;
  std::vector<Plan::Arrays> pieces;
  for (int64_t p = 0; p < kPieces; ++p) {
    in.push_back({p % 2 ? other.data() : network.input.data(), network.vectors.data()});
    outs[p].assign(expected.size(), kCanary);
    wanted[p] = outs[p];
    float* to = wanted[p].data();
    network.plan->run(in[p].data(), &to, 1);
    out.push_back(outs[p].data());
  }
  if (!same(wanted[0], expected) || same(wanted[0], wanted[1])) return fail("pieces that should differ do not");
  for (int64_t p = 0; p < kPieces; ++p) pieces.push_back({in[p].data(), &out[p]});
  for (int threads : {1, 2, 3, 7, 8, 2}) {
    for (auto& piece : outs) std::fill(piece.begin(), piece.end(), kCanary);
    network.plan->run_each(pieces, threads);
    if (outs != wanted) return fail("other bits in pieces from " + std::to_string(threads) + " threads");
  }
}

void test_callers(const Network& network, const std::vector<float>& expected) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&, c] {
      for (int repeat = 0; repeat < 20; ++repeat) wrong += !same(network.run(1 + c % 3), expected);
    });
  for (auto& caller : callers) caller.join();
  if (wrong) fail("other bits from callers side by side");
}

// Once every thread has had its part, a run asks the system for no memory. (Counted where the address sanitizer is not.)
void test_allocations(const Network& network) {
  std::vector<float> out(kGroups * kImages * network.out_image), beside(out);
  const float* in[] = {network.input.data(), network.vectors.data()};
  float* to[] = {out.data(), beside.data()};
  const Plan::Arrays pieces[] = {{in, &to[0]}, {in, &to[1]}};
  int64_t asked = 1;
  for (int tries = 0; tries < 50 && asked; ++tries) {
    const int64_t before = allocations;
    for (int repeat = 0; repeat < 20; ++repeat) {
      network.run(out, 2);
      network.plan->run_each(pieces, 2);
    }
    asked = allocations - before;
  }
  if (asked) fail("20 runs asked for memory " + std::to_string(asked) + " times");
}

// The thread sanitizer cannot follow threads that a forked child starts.
#if BUDWOOD_THREAD_SANITIZER
constexpr int kThreadsOfChild = 1;
#else
constexpr int kThreadsOfChild = 3;
#endif

// A child of a process whose pool is at work. Nothing but the main thread allocates meanwhile: the allocator of the
// address sanitizer does not survive a fork while another thread is in it.
void test_fork(const Network& network, const std::vector<float>& expected) {
  std::atomic<bool> stop{false};
  std::atomic<int64_t> loops{0}, items{0};
  std::thread busy([&] {
    for (; !stop; ++loops) ThreadPool::instance().run(3, 60, 1, [&](int64_t begin, int64_t end) { items += end - begin; });
  });
  while (loops < 1000) std::this_thread::yield();
  for (int child = 0; child < 5; ++child) {
    const pid_t id = fork();
    if (id == 0) _exit(same(network.run(kThreadsOfChild), expected) && same(network.run(1), expected) ? 0 : 1);
    int status = -1;
    waitpid(id, &status, 0);
    if (status != 0) fail("a forked child answered " + std::to_string(status));
  }
  stop = true;
  busy.join();
  if (items != 60 * loops) fail("a loop lost items while its process forked");
  if (!same(network.run(3), expected)) fail("other bits after forks");
}

// What an item throws reaches the caller, once all threads are done with the loop, and the pool goes on.
void test_throwing() {
  ThreadPool& pool = ThreadPool::instance();
  for (int64_t thrower = 0; thrower < 40; ++thrower) {
    std::atomic<int64_t> done{0};
    std::string caught;
    try {
      pool.run(4, 40, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          if (i == thrower || i == 39 - thrower) throw std::runtime_error("item");
        done += end - begin;
      });
    } catch (const std::runtime_error& error) {
      caught = error.what();
    }
    if (caught != "item") fail("an exception in a loop was lost");
    done = 0;
    pool.run(4, 1000, 7, [&](int64_t begin, int64_t end) { done += end - begin; });
    if (done != 1000) fail("a loop after an exception did " + std::to_string(done) + " of 1000 items");
  }
}

// ---- steps from random numbers

constexpr int64_t kFloats = 4000;

class Fuzz {
 public:
  Fuzz(const Kernels& kernels, unsigned seed) : k_(kernels), random_(seed) {}

  int64_t number() {
    const int64_t edges[] = {0, 1, 2, 3, 5, k_.lanes, 4 * k_.lanes, 64, 100, kFloats, int64_t(1) << 39, -1, -k_.lanes};
    return random_.chance(0.02) ? edges[random_.below(13)] : random_.below(4) + 1;
  }
  // Mostly a sensible map, so that the checks behind the first are reached as well.
  Map map(int64_t lanes) {
    Map m{random_.below(400), random_.below(200), random_.below(8) * 32, random_.below(5) * 16, 1 + random_.below(3), sizes_[0], sizes_[1],
          sizes_[2], lanes, random_.below(2), random_.below(2)};
    if (random_.chance(0.3)) {
      int64_t* field[] = {&m.offset, &m.group, &m.row, &m.channel, &m.groups, &m.height, &m.channels, &m.width, &m.lanes};
      *field[random_.below(9)] = number();
    }
    return m;
  }
  Map vector(int64_t images) {
    Map m{random_.below(3000), 8, 0, 1, images, 1, sizes_[1], 1, 1, 0, 0};
    if (random_.chance(0.3)) (random_.chance(0.5) ? m.channels : m.group) = number();
    return m;
  }
  std::vector<int64_t> offsets(int64_t count) {
    std::vector<int64_t> v(count);
    for (int64_t& x : v) x = random_.chance(0.02) ? (random_.below(2) ? INT64_MAX : -2000) : random_.below(3) * 16 - 8;
    return v;
  }
  std::vector<int32_t> columns(int64_t count) {
    std::vector<int32_t> v(count);
    for (int32_t& x : v) x = static_cast<int32_t>(random_.chance(0.05) ? number() : random_.below(sizes_[1]));
    return v;
  }
  // Where the rows of a matrix of so many entries begin.
  std::vector<int64_t> starts(int64_t rows, int64_t entries) {
    std::vector<int64_t> v{0};
    for (int64_t m = 1; m <= rows; ++m) v.push_back(m == rows ? entries : random_.chance(0.05) ? number() : std::min(entries, v.back() + random_.below(2)));
    return v;
  }
  std::vector<int32_t> index() {
    std::vector<int32_t> index(k_.lanes);
    for (int32_t& i : index) i = static_cast<int32_t>(random_.below(k_.lanes + 1)) - 1;
    return index;
  }
  std::vector<Move> moves() {
    std::vector<Move> moves;
    for (int32_t kind = 0; kind <= Move::gather; ++kind) {
      const int64_t to = kind == Move::merge && !random_.chance(0.05) ? moves.back().to : random_.below(8) * 16;
      moves.push_back({kind, random_.chance(0.05) ? 1 : 0, to, random_.chance(0.05) ? kFloats - k_.lanes : random_.below(300)});
    }
    return moves;
  }
  LocalPlane plane() { return {map(k_.lanes), moves(), index(), 0, 1 + random_.below(2), 64 + random_.below(400), kFloats, k_.lanes}; }
  void sizes() {
    for (int64_t& s : sizes_) s = 1 + random_.below(4);
  }

  std::unique_ptr<Step> step() {
    sizes();
    const int64_t L = k_.lanes, c = sizes_[1], images = random_.chance(0.5) ? 1 : 2;
    const Activation f{static_cast<Activation::Kind>(random_.below(Activation::kinds)), 0.1f, -1, 1};
    switch (random_.below(11)) {
      case 9: return std::make_unique<RepackStep>(map(L), map(L), moves(), std::vector<int64_t>{0, 1 + random_.below(3), 4}, index(), 0.0f,
                                                  1 + random_.below(2), kFloats, L);
      case 10: return std::make_unique<SparseLinearStep>(LinearShape{with_images(vector(2), images), with_images(vector(2), images), random_.floats(c), f},
                                                         random_.floats(3), columns(3), starts(c, 3), kFloats, L);
      case 0: return std::make_unique<ElementwiseStep>(random_.chance(0.5) ? Elementwise::add : Elementwise::mul, map(L),
                                                       random_.chance(0.5) ? Beside{Beside::map, map(L), 1, {}} : Beside{Beside::gate, vector(2), images, {}},
                                                       map(L), f, kFloats, L);
      case 1: return std::make_unique<DepthwiseStep>(plane(), number() * 8, random_.below(3) * 16, map(L), random_.chance(0.5) ? Map{} : map(L), offsets(3),
                                                     random_.floats(3 * c), -1, random_.floats(c), f, kFloats, L);
      case 2: return std::make_unique<PoolStep>(random_.chance(0.5), plane(), number() * 8, random_.below(3) * 16, map(L), offsets(3), std::vector<float>{0.5f},
                                                kFloats, L);
      case 3: return std::make_unique<GlobalAverageStep>(map(L), vector(2), std::vector<float>{}, 3, images, kFloats, L);
      case 4: return std::make_unique<AdaptiveAverageStep>(map(L), map(1), std::vector<int64_t>{0, 2, 3}, offsets(3), offsets(2), kFloats);
      case 5: return std::make_unique<LinearStep>(LinearShape{with_images(vector(2), images), with_images(vector(2), images), random_.floats(c), f},
                                                  random_.floats(c * c), kFloats, L);
      case 6: return std::make_unique<LayerNormStep>(map(L), map(L), random_.floats(c), random_.floats(c), 1e-5f, kFloats, L);
      case 7: return std::make_unique<CopyStep>(map(L), map(L), offsets(c), kFloats);
      default: return std::make_unique<FlattenStep>(map(L), vector(2), images, offsets(2), kFloats);
    }
  }

  // The number of steps that were not refused; each is run, on memory of exactly the arena's size.
  int run(int count) {
    int made = 0;
    for (int n = 0; n < count; ++n) {
      std::unique_ptr<Step> one;
      try {
        one = step();
      } catch (const PlanError&) {
        continue;
      }
      ++made;
      const std::unique_ptr<float[]> arena(new float[kFloats]());
      const Run run{&k_, arena.get(), nullptr, nullptr};
      for (int64_t group : {0, 1, 5})
        for (int64_t item = 0; item < one->items(); ++item) one->run(run, group, item);
    }
    return made;
  }

 private:
  const Kernels& k_;
  Random random_;
  int64_t sizes_[3];  // height, channels, width of the step at hand
};

// Rows of a block and part of the channels: each channel once, in the order of their entries; entries where CSR has them.
void test_sparse_packing() {
  Random random(3);
  const int64_t lanes = 4, depth = 40, channels = 44;
  ConvShape shape{};
  shape.out.channels = channels, shape.lanes = lanes, shape.blocks = {0, 13, 13, 30, depth};
  for (int64_t k = 0; k < depth; ++k) shape.offsets.push_back((k * 7 % depth - 20) * lanes);
  std::vector<int32_t> columns;
  std::vector<int64_t> start{0};
  for (int64_t m = 0; m < channels; ++m) {
    for (int64_t k = 0; k < depth; ++k)
      if (m % 11 != 5 && random.chance(m % 3 * 0.1 + 0.05)) columns.push_back(static_cast<int32_t>(k));
    start.push_back(static_cast<int64_t>(columns.size()));
  }
  const auto part = parts_of_channels(channels, 1);
  const SparsePacking packing(shape, part, columns, start);
  const auto parts = static_cast<int64_t>(part.size()) - 1, blocks = static_cast<int64_t>(shape.blocks.size()) - 1;
  std::vector<int64_t> met(columns.size(), 0);
  int64_t rises = 0, falls = 0;
  for (int64_t n = 0; n < blocks * parts; ++n) {
    const int64_t b = n / parts, p = n % parts;
    int64_t entry = packing.begin[n].entry;
    std::vector<int64_t> rows(channels, 0);
    for (int64_t r = packing.begin[n].row; r < packing.begin[n + 1].row; ++r) {
      const SparseRow row = packing.rows[r];
      if (row.channel < part[p] || row.channel >= part[p + 1] || rows[row.channel]++) fail(label("packing: a channel is of another part, or twice", {n, r}));
      if (r > packing.begin[n].row) {
        rises += packing.rows[r - 1].entries < row.entries, falls += packing.rows[r - 1].entries > row.entries;
        if (n % 2 ? packing.rows[r - 1].entries < row.entries : packing.rows[r - 1].entries > row.entries) fail(label("packing: rows are not in order", {n, r}));
      }
      for (int32_t i = 0; i < row.entries; ++i, ++entry) {
        const int64_t at = packing.order[entry], k = columns[at];
        if (at < start[row.channel] || at >= start[row.channel + 1] || k < shape.blocks[b] || k >= shape.blocks[b + 1]) fail(label("packing: an entry of another row or block", {n, r}));
        if (packing.lowest[b] + packing.places[entry] * lanes != shape.offsets[k]) fail(label("packing: a wrong place", {n, r}));
        ++met[at];
      }
    }
    for (int64_t m = part[p]; m < part[p + 1]; ++m)
      if ((b == 0 || b == blocks - 1) && !rows[m]) fail(label("packing: a channel is neither begun nor ended", {n, m}));
    if (entry != packing.begin[n + 1].entry) fail(label("packing: rows and entries do not agree", {n}));
  }
  if (parts < 3 || !rises || !falls) fail("packing: the case is too small");
  if (std::count(met.begin(), met.end(), 1) != static_cast<int64_t>(met.size())) fail("packing: an entry is missing");
}

}  // namespace
}  // namespace budwood::testing

int main() {
  using namespace budwood::testing;
  test_throwing();
  test_runs();
  test_sparse_packing();
  test_moves_that_cannot_be();
  for (const auto& set : budwood::instruction_sets()) {
    if (!set.available()) continue;
    const Network network(set.kernels);
    const auto expected = network.run(1);
    test_threads(network, expected);
    test_pieces(network, expected);
    test_allocations(network);
    test_callers(network, expected);
    if (!std::getenv("BUDWOOD_NO_FORK")) test_fork(network, expected);
    const int made = Fuzz(set.kernels, 5).run(20000);
    std::printf("%s: %d of 20000 random steps were possible\n", set.name, made);
  }
  return finish("plan_test");
}
