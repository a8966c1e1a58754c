// Convolutions, forward and transposed, as products on AMX tiles: sixteen windows are a tile's rows, and the pixels
// under one tap of sixteen neighbouring windows are a tile's data as they lie in memory. So an image is copied once for
// each column of the kernel (tile_planes.h), not once for each tap, and not at all where windows are pixels.
//
// A transposed convolution of stride s is s x s convolutions of stride 1, as in window_conv.cc.
//
// Invariants: bands and tiles are cut by the shape alone, each element is one chain of products in the order of taps
// and channels: neither threads nor the batch change a bit. run() allocates nothing.
#include "backends/cpu/tile_conv.h"

#include <omp.h>

#include <optional>

#include "backends/cpu/amx_kernels.h"
#include "backends/cpu/bf16.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/tile_planes.h"

namespace sg::cpu {
namespace {

using amx::Bits;
using amx::kDepth;
using amx::kRows;
using amx::kTile;
using amx::kWide;

constexpr Index kNear = 131072;     // numbers of a band's planes, and of the bands that are multiplied together
constexpr Index kDirectRows = 256;  // of a band where windows are pixels
constexpr Index kFewChannels = 64;  // below, planes padded to tiles are wider than windows padded to tiles

// A step along the inner axis: 32 numbers, those from `depth` on zero.
struct InnerTile {
  Index at;   // in the band's data
  Index row;  // of the weights' matrix, its first
  int depth;
};

// Weights as tiles: for each pair of column tiles, all the inner steps.
class Weights {
 public:
  Weights() = default;
  Weights(LowerCtx& ctx, Index columns, Index steps) : columns_(columns), steps_(steps) {
    data_ = static_cast<Bits*>(
        ctx.persistent(static_cast<std::size_t>(ceil_div(columns, 16) * steps * kTile) * sizeof(Bits)));
  }
  Index groups() const { return ceil_div(columns_, kWide); }
  int columns(Index g) const { return static_cast<int>(std::min<Index>(kWide, columns_ - g * kWide)); }
  int wide(Index g) const { return columns(g) > 16 ? 2 : 1; }
  Bits* at(Index g, Index step) const { return data_ + g * steps_ * 2 * kTile + step * wide(g) * kTile; }
  Index steps() const { return steps_; }

 private:
  Index columns_ = 0, steps_ = 0;
  Bits* data_ = nullptr;
};

// Packs each run, or, of a variable's value, when the variable changed. pack(step, group) is called for all tiles.
class PackStep final : public Step {
 public:
  PackStep(const Variable* variable, Index steps, Index groups, std::function<void(Index, Index)> pack)
      : variable_(variable), steps_(steps), groups_(groups), pack_(std::move(pack)) {}
  void run() override {
    if (variable_ && variable_->version() == packed_version_) return;
#pragma omp parallel for schedule(static)
    for (Index i = 0; i < steps_; ++i)
      for (Index g = 0; g < groups_; ++g) pack_(i, g);
    if (variable_) packed_version_ = variable_->version();
  }
  std::string detail() const override { return "tiles"; }

 private:
  const Variable* variable_;
  std::uint64_t packed_version_ = 0;  // versions of variables start at 1
  Index steps_, groups_;
  std::function<void(Index, Index)> pack_;
};

// One of the convolutions of stride 1 (the only one, forward) that a result is made of.
struct Phase {
  enum class Data : std::uint8_t { pixels, windows, planes };  // what a band's tiles are loaded from
  Windows in;
  Data data;
  Bands bands;
  std::optional<Planes> planes;
  Index y_first = 0, y_step = 1, x_first = 0,
        x_step = 1;               // window (i, j) gives pixel first + step * (i, j) of the result
  Index pitch;                    // numbers from one window to the next
  Index units, tile_rows, tiles;  // tiles of a band: an even number, of so many rows
  std::vector<InnerTile> inner;
  std::vector<Index> at;
  std::vector<Index> where;  // of a band's windows in the result, from its first
  Weights weights;

  Index windows() const { return bands.rows * in.x.count; }
  // What a band needs, with what its last tiles read beyond it.
  Index numbers() const {
    if (data == Data::planes) return (planes->count() * planes->pixels() + tiles * tile_rows - windows()) * pitch;
    return tiles * tile_rows * pitch;
  }
};

// Of rows * columns pixels that are windows, one row.
Windows flat(const Windows& in, Index images) {
  const Index all = images * in.of_image();
  return {{all, 1, 0, 1, 1, all}, {1, 1, 0, 1, 1, 1}, in.channels};
}

Index most_windows(const Windows& in, Phase::Data data, Index pitch) {
  if (data == Phase::Data::pixels) return kDirectRows;
  if (data == Phase::Data::windows) return kNear / pitch;
  return kNear / (pitch * in.x.taps * in.y.step);
}

struct Place {
  Index y_first = 0, y_step = 1, x_first = 0, x_step = 1;
};

// `width`, `channels`: of the result. Without its weights. few_as_windows: may read few channels as windows.
Phase make_phase(Index images, Windows in, Place place, Index width, Index channels, bool few_as_windows) {
  using Data = Phase::Data;
  const bool whole = in.channels % kDepth == 0;
  const Data data = in.are_images() && whole                                 ? Data::pixels
                    : few_as_windows && !whole && in.channels < kFewChannels ? Data::windows
                                                                             : Data::planes;
  const Index pitch = round_up(data == Data::windows ? in.depth() : in.channels, kDepth);
  if (data == Data::pixels) in = flat(in, images), images = 1, width = 1;
  const Bands bands(in, most_windows(in, data, pitch));
  Phase p{in,
          data,
          bands,
          {},
          place.y_first,
          place.y_step,
          place.x_first,
          place.x_step,
          pitch,
          images * bands.of_image,
          0,
          0,
          {},
          {},
          {},
          {}};
  const Index pairs = ceil_div(p.windows(), 2 * kRows);
  p.tiles = 2 * pairs, p.tile_rows = ceil_div(p.windows(), p.tiles);
  if (data == Data::planes) p.planes.emplace(in, bands.rows);
  if (data == Data::windows) {
    for (Index k = 0; k < in.depth(); k += kDepth)
      p.inner.push_back({k, k, static_cast<int>(std::min<Index>(kDepth, in.depth() - k))});
  } else {
    for (Index a = 0; a < in.y.taps; ++a)
      for (Index b = 0; b < in.x.taps; ++b)
        for (Index c = 0; c < in.channels; c += kDepth) {
          const Index tap =
              data == Data::planes ? p.planes->plane(a, b) * p.planes->pixels() + p.planes->shift(a) * in.x.count : 0;
          p.inner.push_back({tap * pitch + c, (a * in.x.taps + b) * in.channels + c,
                             static_cast<int>(std::min<Index>(kDepth, in.channels - c))});
        }
  }
  for (const InnerTile& t : p.inner) p.at.push_back(t.at);
  for (Index i = 0; i < bands.rows; ++i)
    for (Index j = 0; j < in.x.count; ++j) p.where.push_back((i * p.y_step * width + j * p.x_step) * channels);
  return p;
}

class ConvStep final : public Step {
 public:
  struct Image {
    Index height, width, channels;
  };
  ConvStep(LowerCtx& ctx, std::vector<Phase> phases, Image result, const void* bias, bool relu)
      : lanes_(omp_get_max_threads()),
        phases_(std::move(phases)),
        result_(result),
        bias_(static_cast<const Bits*>(bias)),
        relu_(relu),
        x_(ctx.in<Bits>(0)),
        y_(ctx.out<Bits>()) {
    for (const Phase& p : phases_) {
      units_ += p.units;
      lane_numbers_ = std::max(lane_numbers_, round_up(p.numbers() * together(p), 64 / sizeof(Bits)));
    }
    scratch_ = Scratch(ctx, static_cast<std::size_t>(lane_numbers_ * lanes_) * sizeof(Bits));
  }

  void run() override {
#pragma omp parallel for schedule(static) num_threads(std::min(lanes_, omp_get_max_threads()))
    for (int lane = 0; lane < lanes_; ++lane) {
      Index unit = units_ * lane / lanes_, end = units_ * (lane + 1) / lanes_, before = 0;
      for (const Phase& p : phases_) {
        const Index last = std::min(end, before + p.units);
        if (unit < last) amx::configure(static_cast<int>(p.tile_rows));
        for (; unit < last; unit = std::min(last, unit + together(p)))
          run_bands(p, unit - before, std::min(last - unit, together(p)), scratch_.at<Bits>() + lane * lane_numbers_);
        before += p.units;
      }
      amx::release();
    }
  }
  std::string detail() const override {
    constexpr const char* kFrom[] = {"pixels", "windows", "planes"};
    return fmt::format("amx tiles of {}{}{}", kFrom[static_cast<int>(phases_[0].data)],
                       phases_.size() > 1 ? fmt::format(" in {} phases", phases_.size()) : "", relu_ ? ", relu" : "");
  }

 private:
  // Bands that share a pass over the weights.
  static Index together(const Phase& p) { return std::clamp<Index>(kNear / p.numbers(), 1, 8); }

  void run_bands(const Phase& p, Index first, Index count, Bits* memory) const {
    alignas(64) float sums[2 * kRows * kWide];
    const Bits* data[8];
    for (Index u = 0; u < count; ++u) data[u] = load(p, p.bands.of(p.in, first + u), memory + u * p.numbers());
    for (Index g = 0; g < p.weights.groups(); ++g) {
      const Bits* bias = bias_ == nullptr ? nullptr : bias_ + g * kWide;
      for (Index u = 0; u < count; ++u) {
        const Bands::Band band = p.bands.of(p.in, first + u);
        const Index windows = band.rows * p.in.x.count;
        Bits* out = y_ + g * kWide;
        if (p.data == Phase::Data::pixels)
          out += band.first * result_.channels;
        else
          out += ((band.image * result_.height + p.y_first + band.first * p.y_step) * result_.width + p.x_first) *
                 result_.channels;
        for (Index w = 0; w < windows; w += 2 * p.tile_rows) {
          amx::product(data[u] + w * p.pitch, p.pitch, p.tile_rows * p.pitch, p.at.data(), p.weights.steps(),
                       p.weights.at(g, 0), p.weights.wide(g), sums);
          // The second tile's rows are behind 16 of the first's, however many it has.
          const Index* where = p.where.data() + w;
          const Index left = windows - w;
          amx::finish(sums, std::min(left, p.tile_rows), p.weights.columns(g), bias, relu_, out, where);
          if (left > p.tile_rows)
            amx::finish(sums + kRows * kWide, std::min(left - p.tile_rows, p.tile_rows), p.weights.columns(g), bias,
                        relu_, out, where + p.tile_rows);
        }
      }
    }
  }

  // The data of a band's tiles: in place, or made in `memory`.
  const Bits* load(const Phase& p, const Bands::Band& band, Bits* memory) const {
    const Index windows = band.rows * p.in.x.count, c = p.in.channels;
    if (p.data == Phase::Data::pixels) {
      const Bits* pixels = x_ + band.first * c;
      if (windows == p.windows() && windows == p.tiles * p.tile_rows) return pixels;
      std::copy_n(pixels, windows * c, memory);  // its last tiles would read beyond the image
      return memory;
    }
    if (p.data == Phase::Data::windows) {
      read_windows(p.in, x_, band.image * p.in.of_image() + band.first * p.in.x.count, windows, p.pitch, memory);
      return memory;
    }
    const Bits* image = x_ + band.image * p.in.y.extent * p.in.x.extent * c;
    Bits* to = memory;
    for (Index k = 0; k < p.planes->count(); ++k) {
      const auto [b, r] = (*p.planes)[k];
      for (Index i = 0; i < p.planes->rows(); ++i, to += p.in.x.count * p.pitch) {
        const Index y = p.planes->y(band.first, r, i);
        if (y < 0 || y >= p.in.y.extent)
          std::fill_n(to, p.in.x.count * p.pitch, Bits{0});
        else
          load_row(p, image + y * p.in.x.extent * c, b, to);
      }
    }
    return memory;
  }
  static void load_row(const Phase& p, const Bits* row, Index b, Bits* to) {
    const Index c = p.in.channels, count = p.in.x.count, first = p.planes->x(b, 0), step = p.in.x.step;
    // Columns that lie in the image.
    const Index from = std::clamp<Index>(ceil_div(std::max<Index>(-first, 0), step), 0, count),
                end =
                    std::clamp<Index>(first >= p.in.x.extent ? 0 : ceil_div(p.in.x.extent - first, step), from, count);
    std::fill_n(to, from * p.pitch, Bits{0});
    if (step == 1 && c == p.pitch)
      std::copy_n(row + (first + from) * c, (end - from) * c, to + from * c);
    else
      for (Index j = from; j < end; ++j) {
        std::copy_n(row + (first + j * step) * c, c, to + j * p.pitch);
        std::fill_n(to + j * p.pitch + c, p.pitch - c, Bits{0});
      }
    std::fill_n(to + end * p.pitch, (count - end) * p.pitch, Bits{0});
  }

  int lanes_;
  std::vector<Phase> phases_;
  Image result_;
  const Bits* bias_;
  bool relu_;
  const Bits* x_;
  Bits* y_;
  Index units_ = 0, lane_numbers_ = 0;
  Scratch scratch_;
};

}  // namespace

bool tiles_possible(const ConvShape& s, ConvOp op) {
  if (!amx::compiled() || !has_amx() || isa_name() != "avx512" || s.empty() || s.groups != 1) return false;
  return op != ConvOp::transposed || has_phases(s);
}

bool tiles_faster(const ConvShape& s, ConvOp op) {
  // Few windows leave a tile's rows empty, few numbers its depth.
  constexpr Index kFewWindows = 8, kFewNumbers = 32;
  const bool pixels = s.kh * s.kw == 1 && s.stride_h * s.stride_w == 1;
  // A gradient of weights: copying planes transposed must pay off in taps.
  if (op == ConvOp::weight_grad && (s.kh * s.kw == 1 || s.c < kDepth)) return false;
  const Index windows = op == ConvOp::transposed ? s.h * s.w / (s.stride_h * s.stride_w) : s.ho * s.wo;
  const Index numbers = op == ConvOp::forward      ? s.kh * s.kw * s.c
                        : op == ConvOp::transposed ? s.kh * s.kw * s.o / (s.stride_h * s.stride_w)
                                                   : kFewNumbers;
  return (pixels || windows >= kFewWindows) && numbers >= kFewNumbers;
}

StepPtr tiles_forward(LowerCtx& ctx, const ConvShape& s, const void* bias, bool relu) {
  Phase p = make_phase(s.n, forward_windows(s), {}, s.wo, s.o, true);
  p.weights = Weights(ctx, s.o, static_cast<Index>(p.inner.size()));
  ctx.prelude("pack", std::make_unique<PackStep>(
                          ctx.variable(ctx.instr().inputs[1]), p.weights.steps(), p.weights.groups(),
                          [inner = p.inner, to = p.weights, w = ctx.in<Bits>(1), o = s.o](Index i, Index g) {
                            const InnerTile& t = inner[static_cast<std::size_t>(i)];
                            amx::pack(w + t.row * o + g * kWide, o, t.depth, to.columns(g), to.wide(g), to.at(g, i));
                          }));
  std::vector<Phase> phases;
  phases.push_back(std::move(p));
  return std::make_unique<ConvStep>(ctx, std::move(phases), ConvStep::Image{s.ho, s.wo, s.o}, bias, relu);
}

StepPtr tiles_transposed(LowerCtx& ctx, const ConvShape& s) {
  std::vector<Phase> phases;
  for (Index p = 0; p < s.stride_h; ++p)
    for (Index q = 0; q < s.stride_w; ++q) {
      const PhaseAxis y(p, s.stride_h, s.kh, s.pad_top, s.h), x(q, s.stride_w, s.kw, s.pad_left, s.w);
      Phase phase =
          make_phase(s.n, {y.windows(s.ho), x.windows(s.wo), s.o}, {p, s.stride_h, q, s.stride_w}, s.w, s.c, false);
      phase.weights = Weights(ctx, s.c, static_cast<Index>(phase.inner.size()));
      ctx.prelude("pack",
                  std::make_unique<PackStep>(
                      ctx.variable(ctx.instr().inputs[1]), phase.weights.steps(), phase.weights.groups(),
                      [s, y, x, inner = phase.inner, to = phase.weights, w = ctx.in<Bits>(1)](Index i, Index g) {
                        const InnerTile& t = inner[static_cast<std::size_t>(i)];
                        const Index tap = t.row / s.o, a = tap / x.taps, b = tap % x.taps;
                        const Bits* from = w + ((y.tap(a) * s.kw + x.tap(b)) * s.c + g * kWide) * s.o;
                        amx::pack_transposed(from + t.row % s.o, s.o, t.depth, to.columns(g), to.wide(g), to.at(g, i));
                      }));
      phases.push_back(std::move(phase));
    }
  return std::make_unique<ConvStep>(ctx, std::move(phases), ConvStep::Image{s.h, s.w, s.c}, nullptr, false);
}

}  // namespace sg::cpu
