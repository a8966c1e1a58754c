// Winograd convolution, F(4x4, r x r): transform tiles of the input and the weights, one matrix product over channels
// at each point, transform back. It needs (n/m)^2 products where direct convolution needs r^2, n = m + r - 1: 2.25 to
// 9 for r = 3, 1.56 to 4 for r = 2.
//
// A kernel of r * stride taps is a sum of stride^2 phases: phase (p, q) is a convolution with stride 1 and the taps
// p, p + stride, .. of the pixels whose row and column fall on p and q. Forward, phases are more input channels;
// transposed, each phase gives its own pixels.
//
// Invariants: each result is a sum in an order that neither the number of threads nor the cutting into chunks changes,
// so its bits do not depend on them. run() allocates nothing. Nothing is kept between runs.
#include "backends/cpu/winograd.h"

#include <omp.h>

#include <atomic>
#include <limits>
#include <vector>

#include "backends/cpu/kernels.h"

namespace sg {
namespace {

std::atomic<WinogradUse>& chosen_use() {
  static std::atomic<WinogradUse> use{WinogradUse::where_faster};
  return use;
}

}  // namespace

WinogradUse winograd_use() { return chosen_use(); }
void set_winograd(WinogradUse use) { chosen_use() = use; }

namespace cpu {
namespace {

using simd::Winograd;
using simd::WinogradTile;

constexpr Index kMostPixels = 36;  // of a tile
constexpr Index kSkew = 48;        // floats between points, so that they do not fall on the same lines of a cache
constexpr Index kRowSkew = 16;     // and between tiles
constexpr Index kBlock = 64;       // channels of either side that a gradient of weights sums at a time
constexpr Index kLine = 16;        // floats of a line of a cache
constexpr std::int32_t kOutside = -1;

// The square images of `size` x `size` pixels that the tiles of one image cover: offsets of pixels in floats.
struct Window {
  Index images = 0;  // floats of one image
  Index pixels = 0;  // of one tile
  std::vector<std::int32_t> offsets;

  const std::int32_t* tile(Index i) const { return offsets.data() + i * pixels; }
};

// One axis of a window: pixel k of tile i is at first + step * (i * m + k), of `extent`.
struct Axis {
  Index first, step, extent;
};

struct TileGrid {
  Index rows = 0, cols = 0;
  Index count() const { return rows * cols; }
};

Window make_window(const TileGrid& grid, Index m, Index size, Axis y, Axis x, Index channels) {
  Window w;
  w.images = y.extent * x.extent * channels;
  w.pixels = size * size;
  w.offsets.reserve(static_cast<std::size_t>(grid.count() * w.pixels));
  for (Index i = 0; i < grid.rows; ++i)
    for (Index j = 0; j < grid.cols; ++j)
      for (Index r = 0; r < size; ++r)
        for (Index c = 0; c < size; ++c) {
          const Index row = y.first + y.step * (i * m + r), col = x.first + x.step * (j * m + c);
          const bool inside = row >= 0 && row < y.extent && col >= 0 && col < x.extent;
          w.offsets.push_back(inside ? static_cast<std::int32_t>((row * x.extent + col) * channels) : kOutside);
        }
  return w;
}

// What the three ops share: the algorithm for a shape and its phases.
struct Plan {
  const Winograd* kernels = nullptr;
  const WinogradTile* f = nullptr;
  const char* isa = "";
  ConvShape s{};
  Index n = 0, points = 0, phases = 0;  // n points a side; phases a side

  Index tap_row() const { return phases * s.kw * s.c * s.o; }
  Index tap_col() const { return phases * s.c * s.o; }
  Index phase_weights(Index p, Index q) const { return (p * s.kw + q) * s.c * s.o; }
  std::string detail() const { return fmt::format("winograd f{}x{}, {}", f->m, f->r, isa); }
};

// Whether the algorithm is expected to take less time than direct convolution, in multiply-adds of its products. The
// weights were set by times of one thread with AVX-512 (docs/decisions/013-winograd.md).
bool faster(const Plan& plan, ConvOp op) {
  constexpr double kTransform = 16, kWeights = 30;  // of one number
  const ConvShape& s = plan.s;
  const auto product = [](auto... factors) { return (static_cast<double>(factors) * ...); };
  const double direct_rate = op == ConvOp::forward ? 0.8 : op == ConvOp::transposed ? 0.95 : 0.85;
  const Index tiles = s.n * ceil_div(s.ho, plan.f->m) * ceil_div(s.wo, plan.f->m), k = s.c * plan.phases * plan.phases;
  // A gradient of weights transforms its inputs once for each block of channels on the other side.
  const Index in_times = op == ConvOp::weight_grad ? ceil_div(s.o, kBlock) : 1;
  const Index out_times = op == ConvOp::weight_grad ? ceil_div(k, kBlock) : 1;
  return static_cast<double>(plan.points) *
             (product(tiles, k, s.o) + kTransform * product(tiles, k * in_times + s.o * out_times) +
              kWeights * product(k, s.o)) <
         direct_rate * product(s.n, s.ho, s.wo, s.kh, s.kw, s.c, s.o);
}

// What a product over channels is to be made of, or kernels == null.
Plan make_plan(const ConvShape& s, ConvOp op, WinogradUse use) {
  Plan plan;
  const Winograd& kernels = simd_table().winograd;
  constexpr Index kMostFloats = std::numeric_limits<std::int32_t>::max();  // of an image: offsets are 32 bits wide
  if (s.h * s.w * s.c > kMostFloats || s.ho * s.wo * s.o > kMostFloats) return plan;
  if (use == WinogradUse::never || kernels.lanes == 0 || s.empty() || s.groups != 1) return plan;
  if (s.kh != s.kw || s.stride_h != s.stride_w || s.dilation_h != 1 || s.dilation_w != 1) return plan;
  if (s.c % (2 * kernels.lanes) != 0 || s.o % (2 * kernels.lanes) != 0 || s.kh % s.stride_h != 0) return plan;
  for (const WinogradTile* f : {&kernels.f4x3, &kernels.f4x2})
    if (f->r == s.kh / s.stride_h) plan.f = f;
  if (plan.f == nullptr) return plan;
  plan.isa = simd_table().name;
  plan.s = s;
  plan.n = plan.f->m + plan.f->r - 1;
  plan.points = plan.n * plan.n;
  plan.phases = s.stride_h;
  if (use == WinogradUse::always || faster(plan, op)) plan.kernels = &kernels;
  return plan;
}

TileGrid grid_over(Index rows, Index cols, Index m) { return {ceil_div(rows, m), ceil_div(cols, m)}; }

void read_pixels(const Window& w, Index tile_of_image, const float* image, const float* zeros, const float** pixels) {
  const std::int32_t* offsets = w.tile(tile_of_image);
  for (Index k = 0; k < w.pixels; ++k) pixels[k] = offsets[k] == kOutside ? zeros : image + offsets[k];
}

// Asks the caches for what is needed soon. Part i of n of an image: `channels` of each pixel, these `step` apart.
void prefetch_part(const float* image, Index pixels, Index step, Index channels, Index i, Index n) {
  for (Index k = pixels * i / n; k < pixels * (i + 1) / n; ++k)
    for (Index c = 0; c < channels; c += kLine) __builtin_prefetch(image + k * step + c, 0, 2);
}
void prefetch_to_write(const float* p, Index count) {
  for (Index c = 0; c < count; c += kLine) __builtin_prefetch(p + c, 1);
}

// A convolution with stride 1 over tiles: windows of its input (one for each phase, side by side as channels), windows
// of its output.
struct Part {
  TileGrid grid;
  std::vector<Window> in, out;
  std::vector<Index> in_weights, out_weights;  // offset of each phase's first tap
};

struct Layout {
  Index in_channels, out_channels;  // of one phase
  Index k_step, n_step;             // of the weights, from channel to channel
  Index tap_row, tap_col;
};

class ConvStep final : public Step {
 public:
  ConvStep(LowerCtx& ctx, const Plan& plan, std::vector<Part> parts, const Layout& layout, const float* x,
           const float* w, const float* bias, const float* skip, bool relu, float* y)
      : plan_(plan),
        parts_(std::move(parts)),
        layout_(layout),
        x_(x),
        w_(w),
        bias_(bias),
        skip_(skip),
        relu_(relu),
        y_(y) {
    threads_ = omp_get_max_threads();
    k_ = layout.in_channels * static_cast<Index>(parts_[0].in.size());
    n_ = layout.out_channels * static_cast<Index>(parts_[0].out.size());
    tiles_ = plan.s.n * parts_[0].grid.count();
    const Index widest = std::max(k_, n_), most = std::clamp(kNearData / widest, kFewTiles, kManyTiles);
    pieces_ = std::min(tiles_, round_up(ceil_div(tiles_, most), threads_));
    weights_point_ = k_ * n_ + kSkew;
    weights_floats_ = round_up(plan.points * weights_point_, kLine);
    point_ = ceil_div(tiles_, pieces_) * (widest + kRowSkew) + kSkew;
    // Products take the place of data one point before: a point more is enough for both.
    thread_floats_ = round_up((plan.points + 1) * point_, kLine);
    scratch_ = Scratch(
        ctx, static_cast<std::size_t>(part_count() * weights_floats_ + threads_ * thread_floats_) * sizeof(float));
    zeros_ = static_cast<const float*>(ctx.persistent(static_cast<std::size_t>(layout.in_channels) * sizeof(float)));
  }

  void run() override {
    const int threads = std::min(threads_, omp_get_max_threads());
    const Index panels = n_ / (2 * plan_.kernels->lanes), slices = k_ / plan_.kernels->lanes;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (Index i = 0; i < part_count() * panels * slices; ++i)
      weights(i / (panels * slices), i / slices % panels, i % slices);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (Index i = 0; i < part_count() * pieces_; ++i) {
      const Index piece = i % pieces_, first = tiles_ * piece / pieces_;
      tiles(i / pieces_, first, tiles_ * (piece + 1) / pieces_ - first,
            scratch_.at<float>() + part_count() * weights_floats_ + omp_get_thread_num() * thread_floats_);
    }
  }
  std::string detail() const override { return plan_.detail() + (skip_ ? ", skip" : "") + (relu_ ? ", relu" : ""); }

 private:
  // Tiles of a piece: the more there are the more often transformed weights are used once they are near, the fewer the
  // nearer their own data stay. kNearData: floats of a point.
  static constexpr Index kNearData = 16384, kFewTiles = 56, kManyTiles = 80;

  Index part_count() const { return static_cast<Index>(parts_.size()); }
  const Part& part(Index i) const { return parts_[static_cast<std::size_t>(i)]; }
  float* transformed_weights(Index i) const { return scratch_.at<float>() + i * weights_floats_; }
  // A row of a tile, skewed so that rows do not fall on the same lines of a cache.
  Index k_row() const { return k_ + kRowSkew; }
  Index n_row() const { return n_ + kRowSkew; }

  // Weights of `lanes` input channels for one panel of output channels.
  void weights(Index i, Index panel, Index slice) const {
    const Part& p = part(i);
    const Index lanes = plan_.kernels->lanes;
    float* out = transformed_weights(i) + panel * k_ * 2 * lanes;
    for (Index k = slice * lanes; k < (slice + 1) * lanes; ++k)
      for (Index half = 0; half < 2; ++half) {
        const Index n = (2 * panel + half) * lanes;
        const float* w = w_ + p.in_weights[static_cast<std::size_t>(k / layout_.in_channels)] +
                         p.out_weights[static_cast<std::size_t>(n / layout_.out_channels)] +
                         k % layout_.in_channels * layout_.k_step + n % layout_.out_channels * layout_.n_step;
        plan_.f->weights(w, layout_.tap_row, layout_.tap_col, layout_.n_step, out + (2 * k + half) * lanes,
                         weights_point_);
      }
  }

  void tiles(Index i, Index first, Index count, float* buffer) const {
    const Part& p = part(i);
    const Index lanes = plan_.kernels->lanes, of_image = p.grid.count();
    const Index in_blocks = layout_.in_channels / lanes, out_blocks = layout_.out_channels / lanes;
    const float* pixels[kMostPixels];
    for (Index t = 0; t < count; ++t) {
      const Index image = (first + t) / of_image, tile = (first + t) % of_image;
      float* data = buffer + point_ + t * k_row();
      const Index c = layout_.in_channels, images = p.in[0].images;
      if (image + 1 < plan_.s.n) prefetch_part(x_ + (image + 1) * images, images / c, c, c, tile, of_image);
      for (const Window& w : p.in) {
        read_pixels(w, tile, x_ + image * w.images, zeros_, pixels);
        plan_.f->data(pixels, in_blocks, data, point_);
        data += layout_.in_channels;
      }
    }
    const float* u = transformed_weights(i);
    for (Index q = 0; q < plan_.points; ++q)
      plan_.kernels->product(buffer + (q + 1) * point_, k_row(), u + q * weights_point_, buffer + q * point_, n_row(),
                             count, k_, n_ / (2 * lanes));
    float* results[kMostPixels];
    const float* skips[kMostPixels];
    for (Index t = 0; t < count; ++t) {
      const Index image = (first + t) / of_image, tile = (first + t) % of_image;
      const float* products = buffer + t * n_row();
      for (const Window& w : p.out) {
        const std::int32_t* offsets = w.tile(tile);
        for (Index k = 0; k < w.pixels; ++k) {
          const Index at = image * w.images + offsets[k];
          results[k] = offsets[k] == kOutside ? nullptr : y_ + at;
          if (skip_ != nullptr && results[k] != nullptr) skips[k] = skip_ + at;
          if (results[k] != nullptr && image + 1 < plan_.s.n)
            prefetch_to_write(results[k] + w.images, layout_.out_channels);
        }
        plan_.f->output(products, point_, out_blocks, bias_, skip_ != nullptr ? skips : nullptr, relu_, results);
        products += layout_.out_channels;
      }
    }
  }

  Plan plan_;
  std::vector<Part> parts_;
  Layout layout_;
  const float *x_, *w_, *bias_, *skip_;
  bool relu_;
  float* y_;
  int threads_ = 1;
  Index k_ = 0, n_ = 0;  // channels of the products
  Index tiles_ = 0, pieces_ = 1;
  Index weights_point_ = 0, weights_floats_ = 0, point_ = 0, thread_floats_ = 0;
  Scratch scratch_;
  const float* zeros_ = nullptr;
};

// A job sums over all tiles for some channels of a phase of the input and some of the output, at all points: its sums
// stay in the second-level cache, at the price of transforming the input once for each block of the output and the
// reverse.
class WeightGradStep final : public Step {
 public:
  WeightGradStep(LowerCtx& ctx, const Plan& plan, TileGrid grid, std::vector<Window> in, Window gradient)
      : plan_(plan),
        grid_(grid),
        in_(std::move(in)),
        gradient_(std::move(gradient)),
        x_(ctx.in<float>(0)),
        y_(ctx.in<float>(1)),
        w_(ctx.out<float>()),
        threads_(omp_get_max_threads()),
        c_(plan.s.c),
        o_(plan.s.o) {
    const Index unit = 2 * plan.kernels->lanes;
    while (c_ * o_ > kBlock * kBlock || jobs() < threads_) {
      Index& larger = c_ >= o_ ? c_ : o_;
      if (larger % (2 * unit) != 0) break;
      larger /= 2;
    }
    sums_point_ = c_ * o_ + kSkew;
    data_point_ = kTiles * (c_ + kRowSkew) + kSkew;
    gradient_point_ = kTiles * (o_ + kRowSkew) + kSkew;
    thread_floats_ = round_up(plan.points * (sums_point_ + data_point_ + gradient_point_), kLine);
    scratch_ = Scratch(ctx, static_cast<std::size_t>(thread_floats_ * threads_) * sizeof(float));
    zeros_ = static_cast<const float*>(ctx.persistent(static_cast<std::size_t>(std::max(c_, o_)) * sizeof(float)));
  }

  void run() override {
    const int threads = std::min(threads_, omp_get_max_threads());
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (Index i = 0; i < jobs(); ++i) job(i, scratch_.at<float>() + thread_floats_ * omp_get_thread_num());
  }
  std::string detail() const override { return plan_.detail(); }

 private:
  static constexpr Index kTiles = 36;

  Index jobs() const { return static_cast<Index>(in_.size()) * (plan_.s.c / c_) * (plan_.s.o / o_); }

  void job(Index i, float* sums) const {
    const ConvShape& s = plan_.s;
    const Index blocks = s.o / o_, groups = s.c / c_, lanes = plan_.kernels->lanes;
    const Index first_o = i % blocks * o_, first_c = i / blocks % groups * c_, phase = i / blocks / groups;
    const Window& in = in_[static_cast<std::size_t>(phase)];
    const Index tiles = s.n * grid_.count(), data_row = c_ + kRowSkew, gradient_row = o_ + kRowSkew;
    float* data = sums + plan_.points * sums_point_;
    float* gradient = data + plan_.points * data_point_;
    std::fill_n(sums, plan_.points * sums_point_, 0.0f);
    const float* pixels[kMostPixels];
    for (Index first = 0; first < tiles; first += kTiles) {
      const Index count = std::min(kTiles, tiles - first);
      for (Index t = 0; t < count; ++t) {
        const Index image = (first + t) / grid_.count(), tile = (first + t) % grid_.count();
        const float *x = x_ + image * in.images + first_c, *y = y_ + image * gradient_.images + first_o;
        if (image + 1 < s.n) {
          prefetch_part(x + in.images, s.h * s.w, s.c, c_, tile, grid_.count());
          prefetch_part(y + gradient_.images, s.ho * s.wo, s.o, o_, tile, grid_.count());
        }
        read_pixels(in, tile, x, zeros_, pixels);
        plan_.f->data(pixels, c_ / lanes, data + t * data_row, data_point_);
        read_pixels(gradient_, tile, y, zeros_, pixels);
        plan_.f->gradient(pixels, o_ / lanes, gradient + t * gradient_row, gradient_point_);
      }
      for (Index q = 0; q < plan_.points; ++q)
        plan_.kernels->tile_product(data + q * data_point_, data_row, c_, gradient + q * gradient_point_, gradient_row,
                                    o_, sums + q * sums_point_, count);
    }
    float* w = w_ + plan_.phase_weights(phase / plan_.phases, phase % plan_.phases) + first_c * s.o + first_o;
    for (Index c = 0; c < c_; ++c)
      for (Index o = 0; o < o_; o += lanes)
        plan_.f->weight_gradient(sums + c * o_ + o, sums_point_, w + c * s.o + o, plan_.tap_row(), plan_.tap_col());
  }

  Plan plan_;
  TileGrid grid_;
  std::vector<Window> in_;
  Window gradient_;
  const float *x_, *y_;
  float* w_;
  int threads_;
  Index c_, o_;  // channels of a job
  Index sums_point_ = 0, data_point_ = 0, gradient_point_ = 0, thread_floats_ = 0;
  Scratch scratch_;
  const float* zeros_ = nullptr;
};

// Windows of `big` that give the taps of each phase for the outputs that `grid` covers.
std::vector<Window> phase_windows(const Plan& plan, const TileGrid& grid) {
  const ConvShape& s = plan.s;
  std::vector<Window> windows;
  for (Index p = 0; p < plan.phases; ++p)
    for (Index q = 0; q < plan.phases; ++q)
      windows.push_back(make_window(grid, plan.f->m, plan.n, {p - s.pad_top, plan.phases, s.h},
                                    {q - s.pad_left, plan.phases, s.w}, s.c));
  return windows;
}

std::vector<Index> phase_offsets(const Plan& plan) {
  std::vector<Index> offsets;
  for (Index p = 0; p < plan.phases; ++p)
    for (Index q = 0; q < plan.phases; ++q) offsets.push_back(plan.phase_weights(p, q));
  return offsets;
}

// One axis of `big` seen from `small`: pixel p - pad + phases * u of `big` belongs to phase p and is reached by the
// taps of pixels u - r + 1 .. u of `small`. Where one range of u covers the pixels of all phases without more tiles
// than each needs, the phases share it, else each starts at its own first pixel.
class PhaseAxis {
 public:
  PhaseAxis(Index pad, Index phases, Index extent, Index m) : pad_(pad), phases_(phases) {
    Index end = 0, most = 0;
    shared_first_ = extent;
    for (Index p = 0; p < phases; ++p) {
      const Index first = own_first(p), pixel = p - pad + phases * first;
      const Index count = pixel < extent ? ceil_div(extent - pixel, phases) : 0;
      shared_first_ = std::min(shared_first_, first), end = std::max(end, first + count), most = std::max(most, count);
    }
    tiles = ceil_div(most, m);
    shared = ceil_div(end - shared_first_, m) == tiles;
  }
  Index first(Index p, bool all_share) const { return all_share ? shared_first_ : own_first(p); }

  Index tiles = 0;
  bool shared = false;

 private:
  Index own_first(Index p) const { return pad_ > p ? ceil_div(pad_ - p, phases_) : 0; }
  Index pad_, phases_, shared_first_ = 0;
};

}  // namespace

StepPtr winograd_forward(LowerCtx& ctx, const ConvShape& s, WinogradUse use, const float* bias, const float* skip,
                         bool relu) {
  const Plan plan = make_plan(s, ConvOp::forward, use);
  if (plan.kernels == nullptr) return nullptr;
  Part part;
  part.grid = grid_over(s.ho, s.wo, plan.f->m);
  part.in = phase_windows(plan, part.grid);
  part.in_weights = phase_offsets(plan);
  part.out.push_back(make_window(part.grid, plan.f->m, plan.f->m, {0, 1, s.ho}, {0, 1, s.wo}, s.o));
  part.out_weights = {0};
  return std::make_unique<ConvStep>(ctx, plan, std::vector<Part>{std::move(part)},
                                    Layout{s.c, s.o, s.o, 1, plan.tap_row(), plan.tap_col()}, ctx.in<float>(0),
                                    ctx.in<float>(1), bias, skip, relu, ctx.out<float>());
}

StepPtr winograd_transposed(LowerCtx& ctx, const ConvShape& s, WinogradUse use) {
  const Plan plan = make_plan(s, ConvOp::transposed, use);
  if (plan.kernels == nullptr) return nullptr;
  const Index m = plan.f->m, r = plan.f->r;
  // The taps run backwards from the last one.
  const Index last_tap = (r - 1) * (plan.tap_row() + plan.tap_col());
  const PhaseAxis rows(s.pad_top, plan.phases, s.h, m), cols(s.pad_left, plan.phases, s.w, m);
  const TileGrid grid{rows.tiles, cols.tiles};
  const bool shared = rows.shared && cols.shared;
  std::vector<Part> parts;
  for (Index p = 0; p < plan.phases; ++p)
    for (Index q = 0; q < plan.phases; ++q) {
      const Index y = rows.first(p, shared), x = cols.first(q, shared);
      if (!shared || parts.empty()) {
        Part part;
        part.grid = grid;
        part.in.push_back(make_window(grid, m, plan.n, {y - r + 1, 1, s.ho}, {x - r + 1, 1, s.wo}, s.o));
        part.in_weights = {last_tap};
        parts.push_back(std::move(part));
      }
      parts.back().out.push_back(make_window(grid, m, m, {p - s.pad_top + plan.phases * y, plan.phases, s.h},
                                             {q - s.pad_left + plan.phases * x, plan.phases, s.w}, s.c));
      parts.back().out_weights.push_back(plan.phase_weights(p, q));
    }
  return std::make_unique<ConvStep>(ctx, plan, std::move(parts),
                                    Layout{s.o, s.c, 1, s.o, -plan.tap_row(), -plan.tap_col()}, ctx.in<float>(0),
                                    ctx.in<float>(1), nullptr, nullptr, false, ctx.out<float>());
}

StepPtr winograd_weight_grad(LowerCtx& ctx, const ConvShape& s, WinogradUse use) {
  const Plan plan = make_plan(s, ConvOp::weight_grad, use);
  if (plan.kernels == nullptr) return nullptr;
  const TileGrid grid = grid_over(s.ho, s.wo, plan.f->m);
  return std::make_unique<WeightGradStep>(ctx, plan, grid, phase_windows(plan, grid),
                                          make_window(grid, plan.f->m, plan.f->m, {0, 1, s.ho}, {0, 1, s.wo}, s.o));
}

bool winograd_takes(const ConvShape& s, ConvOp op, WinogradUse use) { return make_plan(s, op, use).kernels != nullptr; }

}  // namespace cpu
}  // namespace sg
