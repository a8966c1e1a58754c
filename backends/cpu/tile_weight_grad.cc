// The gradient of a convolution's weights as products on AMX tiles: row (tap, channel), column o is the sum over
// windows of the pixel under the tap times the result's gradient. The inner axis of a tile is 32 neighbouring windows.
// The gradient is transposed once, so that a tile's rows are o; the pixels of a block of channels are copied to planes
// (tile_planes.h) in pairs, as the other operand wants them, and every tap reads them at its row of the plane. Where
// that is an odd number of pixels, it reads a second copy, whose pairs begin one pixel later.
//
// A job is a block of channels, some columns of the kernel (all, where there are blocks enough: the gradient is
// read once for each job, and is the most that a job reads) and a range of o. It goes through all images and writes its
// part of the result once, or, where their planes would not stay near, once for each group of bands.
//
// Behind the last window of a band the gradient is zero and the pixels are what lies there: an infinity in the input
// may make other taps of its channel NaN than those that see it.
//
// Invariants: groups and jobs are cut by the shape alone, each sum is one chain in the order of the windows: threads
// change no bit. run() allocates nothing.
#include <omp.h>

#include "backends/cpu/amx_kernels.h"
#include "backends/cpu/tile_conv.h"
#include "backends/cpu/tile_planes.h"

namespace sg::cpu {
namespace {

using amx::Bits;
using amx::kDepth;
using amx::kRows;
using amx::kTile;
using amx::kWide;

constexpr Index kBlock = 2 * kRows;            // channels of a job
constexpr Index kJobs = 8;                     // to share out, at least
constexpr Index kNearPlanes = Index{5} << 17;  // numbers in the planes of a job's group of bands
constexpr Index kGroup = Index{1} << 22;       // numbers in a group's gradient, and in its windows
constexpr Index kBandWindows = 4096;
alignas(64) constexpr Bits kZeros[kDepth] = {};
constexpr Index kFewChannels = 32;  // below, windows padded to a tile are narrower than planes

Windows of_windows(const Windows& in, Index pitch) {
  return {{in.y.count, 1, 0, 1, 1, in.y.count}, {in.x.count, 1, 0, 1, 1, in.x.count}, pitch};
}

class WeightGradStep final : public Step {
 public:
  WeightGradStep(LowerCtx& ctx, const ConvShape& s)
      : lanes_(omp_get_max_threads()),
        image_(forward_windows(s)),
        as_windows_(image_.channels < kFewChannels && !image_.are_images()),
        pitch_(as_windows_ ? round_up(image_.depth(), kDepth) : image_.channels),
        in_(as_windows_ ? of_windows(image_, pitch_) : image_),
        channels_(as_windows_ ? image_.depth() : image_.channels),
        o_(s.o),
        bands_(in_, kBandWindows),
        planes_(in_, bands_.rows),
        units_(s.n * bands_.of_image),
        x_(ctx.in<Bits>(0)),
        y_(ctx.in<Bits>(1)),
        dtype_(ctx.out_type().dtype),
        w_(ctx.out<void>()) {
    const Index windows = bands_.rows * in_.x.count;
    tiles_ = ceil_div(windows, kDepth);
    plane_ =
        round_up(std::max(planes_.pixels(), planes_.shift(in_.y.taps - 1) * in_.x.count + tiles_ * kDepth), kDepth);
    for (Index a = 0; a < in_.y.taps; ++a)
      if (offset(a) % 2 != 0) copies_ = 2;
    copy_ = kBlock * plane_;
    column_planes_ = planes_.count() / in_.x.taps;
    blocks_ = ceil_div(channels_, kBlock), wides_ = ceil_div(o_, kWide);
    columns_ = blocks_ >= kJobs ? in_.x.taps : 1;
    ranges_ = std::min(wides_, ceil_div(kJobs, blocks_ * in_.x.taps / columns_));
    const Index unit_planes = columns_ * column_planes_ * copies_ * copy_,
                unit_gradient = tiles_ * kDepth * wides_ * kWide, unit_windows = as_windows_ ? windows * pitch_ : 0;
    const Index most =
        std::max<Index>(std::min(kNearPlanes / unit_planes, kGroup / std::max(unit_gradient, unit_windows)), 1);
    group_ = ceil_div(units_, ceil_div(units_, most));
    // In scratch: each lane's planes, then what all lanes read, then sums.
    lane_numbers_ = round_up(group_ * unit_planes, kLine);
    gradient_at_ = lane_numbers_ * lanes_;
    windows_at_ = gradient_at_ + group_ * unit_gradient;
    const Index sums_at = windows_at_ + round_up(group_ * unit_windows, kLine);
    sums_at_ = static_cast<std::size_t>(sums_at) * sizeof(Bits);
    const std::size_t sums = dtype_ == DType::f32 ? 0 : static_cast<std::size_t>(rows() * o_) * sizeof(float);
    scratch_ = Scratch(ctx, sums_at_ + sums);
  }

  void run() override {
    float* sums = dtype_ == DType::f32 ? static_cast<float*>(w_) : scratch_.at<float>(sums_at_);
    const Index jobs = blocks_ * (in_.x.taps / columns_) * ranges_;
    const int threads = std::min(lanes_, omp_get_max_threads());
    for (Index first = 0; first < units_; first += group_) {
      const Index count = std::min(group_, units_ - first);
#pragma omp parallel for schedule(static) num_threads(threads)
      for (Index u = 0; u < count; ++u) prepare(first, u, count);
#pragma omp parallel for schedule(static) num_threads(threads)
      for (int lane = 0; lane < lanes_; ++lane) {
        amx::configure(kRows);
        for (Index job = jobs * lane / lanes_; job < jobs * (lane + 1) / lanes_; ++job)
          run_job(job, first, count, scratch_.at<Bits>() + lane * lane_numbers_, sums);
        amx::release();
      }
    }
    if (dtype_ == DType::bf16)
      parallel_chunks(rows() * o_, kGrain, kLine, [&](Index begin, Index end) {
        simd_table().narrow(sums + begin, static_cast<Bits*>(w_) + begin, end - begin);
      });
  }
  std::string detail() const override {
    return fmt::format("amx tiles of {} in pairs, {} groups of {} bands", as_windows_ ? "windows" : "planes",
                       ceil_div(units_, group_), group_);
  }

 private:
  static constexpr Index kLine = 32;

  Index rows() const { return image_.depth(); }
  Index unit_gradient() const { return kWide * tiles_ * kDepth; }
  Bits* gradient(Index wide, Index count) const {
    return scratch_.at<Bits>() + gradient_at_ + wide * count * unit_gradient();
  }
  Index offset(Index a) const { return planes_.shift(a) * in_.x.count; }  // of a tap in its plane, in pixels

  // The gradient of a band, transposed: 32 rows (o) of windows; and its windows.
  void prepare(Index group_first, Index u, Index count) const {
    const Bands::Band band = bands_.of(in_, group_first + u);
    const Index windows = band.rows * in_.x.count, first = band.image * in_.of_image() + band.first * in_.x.count;
    for (Index wide = 0; wide < wides_; ++wide) {
      Bits* to = gradient(wide, count) + u * unit_gradient();
      const int columns = static_cast<int>(std::min<Index>(kWide, o_ - wide * kWide));
      for (Index w = 0; w < tiles_ * kDepth; w += kDepth) {
        const Bits* rows[kDepth];
        for (Index i = 0; i < kDepth; ++i)
          rows[i] = w + i < windows ? y_ + (first + w + i) * o_ + wide * kWide : kZeros;
        amx::transpose(rows, columns, to + w, tiles_ * kDepth);
      }
    }
    if (as_windows_)
      read_windows(image_, x_, first, windows, pitch_, scratch_.at<Bits>() + windows_at_ + u * unit_windows());
  }
  Index unit_windows() const { return bands_.rows * in_.x.count * pitch_; }

  void run_job(Index job, Index group_first, Index count, Bits* planes, float* sums) const {
    const Index range = job % ranges_, parts = in_.x.taps / columns_, b_first = job / ranges_ % parts * columns_,
                c = job / ranges_ / parts * kBlock, of_column = column_planes_ * copies_ * copy_,
                unit = columns_ * of_column;
    const int channels = static_cast<int>(std::min<Index>(kBlock, channels_ - c)),
              stored = static_cast<int>(std::min<Index>(kBlock, pitch_ - c));
    for (Index u = 0; u < count; ++u)
      for (Index b = 0; b < columns_; ++b)
        load(group_first, u, b_first + b, c, stored, planes + u * unit + b * of_column);
    for (Index wide = wides_ * range / ranges_; wide < wides_ * (range + 1) / ranges_; ++wide) {
      const int columns = static_cast<int>(std::min<Index>(kWide, o_ - wide * kWide));
      for (Index tap = 0; tap < in_.y.taps * columns_; ++tap) {
        const Index a = tap / columns_, b = b_first + tap % columns_;
        const Index odd = offset(a) % 2;
        const Bits* from = planes + ((planes_.plane(a, b) - b_first * column_planes_) * copies_ + odd) * copy_ +
                           (offset(a) - odd) / 2 * kDepth;
        alignas(64) float part[kWide * kBlock];
        amx::sum_product(gradient(wide, count), tiles_ * kDepth, unit_gradient(), from, copy_ / 2, unit, count, tiles_,
                         part);
        amx::store_transposed(part, columns, channels, group_first != 0,
                              sums + ((a * in_.x.taps + b) * channels_ + c) * o_ + wide * kWide, o_);
      }
    }
  }

  // Channels c to c + 31 of the planes of kernel column b of a band, in pairs of pixels: 16 channels, then the others.
  void load(Index group_first, Index u, Index b, Index c, int channels, Bits* to) const {
    const Bands::Band band = bands_.of(in_, group_first + u);
    const Bits* image = (as_windows_ ? scratch_.at<Bits>() + windows_at_ + u * unit_windows()
                                     : x_ + band.image * in_.y.extent * in_.x.extent * pitch_) +
                        c;
    // Windows were made for the band alone.
    const Index top = as_windows_ ? band.first : 0, bottom = as_windows_ ? band.first + band.rows : in_.y.extent;
    for (Index k = 0; k < column_planes_; ++k) {
      const Index residue = planes_[b * column_planes_ + k].residue;
      Index i = 0, j = 0;
      const Bits* before = nullptr;  // the last pixel that was looked up
      for (Index pixel = 0; pixel < plane_; pixel += kDepth) {
        const Bits* rows[kDepth + 1];
        rows[0] = before;
        for (Index r = pixel == 0 ? 0 : 1; r <= kDepth; ++r) {
          const Index y = planes_.y(band.first, residue, i), x = planes_.x(b, j);
          const bool inside = i < planes_.rows() && y >= top && y < bottom && x >= 0 && x < in_.x.extent;
          rows[r] = inside ? image + ((y - top) * in_.x.extent + x) * pitch_ : kZeros;
          if (++j == in_.x.count) j = 0, ++i;
        }
        for (Index odd = 0; odd < copies_; ++odd) {
          Bits* low = to + odd * copy_ + pixel / 2 * kDepth;
          amx::pack_rows(rows + odd, channels, low, low + copy_ / 2);
        }
        before = rows[kDepth];
      }
      to += copies_ * copy_;
    }
  }

  int lanes_;
  Windows image_;    // as the convolution has them
  bool as_windows_;  // few channels: windows are made first, and are then the pixels of one tap
  Index pitch_;      // from a pixel to the next
  Windows in_;
  Index channels_, o_;  // rows of the result for each tap of in_
  Bands bands_;
  Planes planes_;
  Index units_;
  const Bits *x_, *y_;
  DType dtype_;
  void* w_;
  Index tiles_ = 0, plane_ = 0, column_planes_ = 0, columns_ = 0, copies_ = 1, copy_ = 0, blocks_ = 0, wides_ = 0,
        ranges_ = 0, group_ = 0;
  Index lane_numbers_ = 0, gradient_at_ = 0, windows_at_ = 0;
  std::size_t sums_at_ = 0;
  Scratch scratch_;
};

}  // namespace

StepPtr tiles_weight_grad(LowerCtx& ctx, const ConvShape& s) { return std::make_unique<WeightGradStep>(ctx, s); }

}  // namespace sg::cpu
