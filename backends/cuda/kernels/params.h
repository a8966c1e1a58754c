// Structures that kernels take by value, and what the host needs to fill them. Included by both sides.
//
// Counts of elements fit 31 bits, so that an index is taken apart by multiplications; offsets have 64 bits.
#pragma once

namespace sg::cuda {

constexpr int kMaxAxes = 6;

// n / d for n < 2^31 by a product and a shift (Granlund, Montgomery: "Division by invariant integers using
// multiplication", PLDI 1994).
struct Divisor {
  unsigned d = 1, magic = 1, shift = 0;
};

// dst[i . dst] = src[i . src] for all i in dims, in words of the kernel's size. Axes from the innermost outwards.
struct StridedCopy {
  unsigned n = 0;
  int rank = 0;
  Divisor dims[kMaxAxes];
  long long src[kMaxAxes] = {}, dst[kMaxAxes] = {};
};

// Matrices rows x cols, contiguous along cols in src and along rows in dst, inside outer axes.
struct TiledCopy {
  unsigned rows = 1, cols = 1;
  long long src_row = 1, dst_col = 1;  // strides in words
  Divisor row_tiles, col_tiles;
  StridedCopy outer;
};

// Element o of an axis of the output is element (o - before) / step of the input where that is whole and inside.
struct PadAxes {
  unsigned n = 0;  // elements of the output
  int rank = 0;
  Divisor out[kMaxAxes], step[kMaxAxes];
  int before[kMaxAxes] = {};
  unsigned in[kMaxAxes] = {};
  long long src[kMaxAxes] = {};
};

// Where element i of a set of axes lies: taken apart from the innermost axis outwards.
struct Walk {
  int rank = 0;
  Divisor dims[3];
  long long strides[3] = {};
};

// Result r is made of x[kept(r) + reduced(j)] for all j < extent, in `parts` parts of `piece` elements each.
// Part p of result r goes to out[p * results + r].
struct Reduction {
  unsigned results = 1, extent = 1, parts = 1, piece = 1;
  Walk kept, reduced;
};

// An index outside [0, bound) is written to flags[slot], the lowest position first, and flags[0] is raised. See
// index_check.h.
struct IndexGuard {
  unsigned long long* flags = nullptr;
  unsigned slot = 0, bound = 0;
};

// NHWC pooling. y[n,i,j,c] = sum of x over the window at (i sh - top, j sw - left), times scale.
struct Pooling {
  unsigned n = 0;  // elements of the output
  Divisor channels, width, height;
  int in_height = 0, in_width = 0;
  int window_h = 1, window_w = 1, stride_h = 1, stride_w = 1, top = 0, left = 0;
  double scale = 1;
};

// x (N,H,W,groups C) <-> columns (N,HO,WO,groups,KH,KW,C), C being the channels of one group.
struct Columns {
  unsigned n = 0;  // elements of what is written
  Divisor channels, groups, kernel_w, kernel_h, out_w, out_h, width, height;
  int stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1, top = 0, left = 0;
};

}  // namespace sg::cuda
