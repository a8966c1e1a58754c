// Where the pixels under a convolution's kernel lie: shared by the implementations that read them side by side.
#pragma once
#include "backends/cpu/lowering.h"
#include "backends/cpu/plain_loops.h"

namespace sg::cpu {

// Windows of NHWC images: window (i, j) has taps_h x taps_w pixels, `tap` apart, the first at first + step * (i, j).
// What lies outside of the image is zero.
struct Windows {
  struct Axis {
    Index count, taps, first, step, tap, extent;
    // Window i is pixel i.
    bool is_image() const { return taps == 1 && first == 0 && step == 1 && count == extent; }
  } y, x;
  Index channels;

  Index of_image() const { return y.count * x.count; }
  Index depth() const { return y.taps * x.taps * channels; }
  bool are_images() const { return y.is_image() && x.is_image(); }
};

inline Windows forward_windows(const ConvShape& s) {
  return {{s.ho, s.kh, -s.pad_top, s.stride_h, s.dilation_h, s.h},
          {s.wo, s.kw, -s.pad_left, s.stride_w, s.dilation_w, s.w},
          s.c};
}

// Of one axis of a transposed convolution, the windows of phase p: pixel p + stride * i sees the taps first_tap +
// stride * k, of which the k-th lies over place (i + offset - k) of the other side. The window has them in order of
// that place, that is in reverse.
struct PhaseAxis {
  Index first_tap, taps, pixels, offset, stride;
  PhaseAxis(Index p, Index step, Index kernel, Index pad, Index extent)
      : first_tap((p + pad) % step),
        taps(ceil_div(kernel - first_tap, step)),
        pixels(ceil_div(extent - p, step)),
        offset((p + pad) / step),
        stride(step) {}
  Windows::Axis windows(Index places) const { return {pixels, taps, offset - taps + 1, 1, 1, places}; }
  // The kernel's tap that is the window's tap i.
  Index tap(Index i) const { return first_tap + stride * (taps - 1 - i); }
};

// Windows first to first + count - 1 of all images, one after the other, `pitch` numbers apart.
void read_windows(const Windows& w, const std::uint16_t* images, Index first, Index count, Index pitch,
                  std::uint16_t* out);

// Each phase of the transposed convolution has a tap.
inline bool has_phases(const ConvShape& s) {
  return s.dilation_h == 1 && s.dilation_w == 1 && s.kh >= s.stride_h && s.kw >= s.stride_w && s.h >= s.stride_h &&
         s.w >= s.stride_w;
}

}  // namespace sg::cpu
