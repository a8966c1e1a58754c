// The pixels that a convolution's products read, laid out so that a tile can be loaded from them: see tile_conv.cc.
#pragma once
#include <vector>

#include "backends/cpu/amx_kernels.h"
#include "backends/cpu/window_geometry.h"

namespace sg::cpu {

// Rows of windows of an image, cut by its shape alone. The last band of an image may have fewer.
struct Bands {
  Index rows, of_image;
  Bands(const Windows& in, Index most_windows)
      : rows(std::clamp<Index>(most_windows / in.x.count, 1, in.y.count)), of_image(ceil_div(in.y.count, rows)) {}
  struct Band {
    Index image, first, rows;
  };
  Band of(const Windows& in, Index unit) const {
    const Index first = unit % of_image * rows;
    return {unit / of_image, first, std::min(rows, in.y.count - first)};
  }
};

// Planes of a band: plane (b, r) has, for window column j, the pixel under tap (., b) of the windows of column j; its
// row i is row r + i * step of the image, counted from the band's first window. So the pixels under tap (a, b) of all
// the band's windows, row after row, are one run of the plane (b, a * tap % step), from row a * tap / step on: no
// pixel is copied more than once for each column of the kernel, whatever its height.
struct Planes {
  struct Plane {
    Index column, residue;
  };
  Planes(const Windows& in, Index band_rows) : in_(in) {
    for (Index b = 0; b < in.x.taps; ++b)
      for (Index r = 0; r < in.y.step; ++r)
        if (used(r)) planes_.push_back({b, r});
    rows_ = band_rows + shift(in.y.taps - 1);
  }
  // Those of one column of the kernel follow each other.
  Index count() const { return static_cast<Index>(planes_.size()); }
  Index rows() const { return rows_; }
  Index pixels() const { return rows_ * in_.x.count; }
  const Plane& operator[](Index i) const { return planes_[static_cast<std::size_t>(i)]; }
  // Of tap (a, b): its plane, and its first row there.
  Index plane(Index a, Index b) const {
    for (Index i = 0;; ++i)
      if (planes_[static_cast<std::size_t>(i)].column == b &&
          planes_[static_cast<std::size_t>(i)].residue == residue(a))
        return i;
  }
  Index shift(Index a) const { return a * in_.y.tap / in_.y.step; }
  // Row i of a plane of residue r, in a band that starts at window row `first`; outside of [0, extent): zeros.
  Index y(Index first, Index r, Index i) const { return in_.y.first + (first + i) * in_.y.step + r; }
  Index x(Index b, Index j) const { return in_.x.first + j * in_.x.step + b * in_.x.tap; }

 private:
  Index residue(Index a) const { return a * in_.y.tap % in_.y.step; }
  bool used(Index r) const {
    for (Index a = 0; a < in_.y.taps; ++a)
      if (residue(a) == r) return true;
    return false;
  }
  Windows in_;
  std::vector<Plane> planes_;
  Index rows_;
};

}  // namespace sg::cpu
