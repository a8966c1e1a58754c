// Quantizers whose codes are the points of a grid, fixed once and for all: each dimension is rounded to one of its
// levels. There is no codebook to store or to train.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/quantizers/quantizer.h"

namespace sg {

// The points of a grid, numbered in mixed radix: index = sum_i n_i prod_{j<i} levels_j, so that the first dimension
// runs fastest. The number of points is the product of the levels; it fits an i32.
class Grid {
 public:
  // Level n of `levels` has the value (slope n - offset) / divisor.
  struct Axis {
    std::int64_t levels;
    double slope, offset, divisor;
    double value(std::int64_t n) const { return (slope * static_cast<double>(n) - offset) / divisor; }
  };
  Grid(std::string_view what, std::vector<Axis> axes);  // Error{usage}: no axis, or too many points

  const std::vector<Axis>& axes() const { return axes_; }
  std::int64_t dim() const { return static_cast<std::int64_t>(axes_.size()); }
  std::int64_t codes() const { return codes_; }
  // Exact in every type: no index passes through a float that cannot hold it.
  Value index(Value levels) const;                 // i32 S + [D] -> i32 S
  Value code(Operand indices, DType dtype) const;  // i32 S -> S + [D]; out of range: Error{attribute} at run time
  Value levels(Value codes) const;                 // S + [D] -> i32 S + [D]: of the nearest point
  Value constant(Tape& tape, DType dtype, std::span<const double> per_axis) const;  // (D)

 private:
  struct Part {  // neighbouring axes that share a table of codes
    std::int64_t first, axes, codes, stride;
  };
  std::vector<Axis> axes_;
  std::vector<Part> parts_;
  std::int64_t codes_ = 1;
};

// What grid quantizers share. z_q = graft(code, smooth(z)): the code forward, bit for bit, and the Jacobian of a smooth
// map backward. A row of NaN gets some index of the grid.
class GridQuantizer : public Quantizer {
 public:
  Quantized operator()(Operand z, const QuantizeContext& context = {}) const final;
  Value decode(Operand indices) const final;
  Value requantize(Operand indices) const final;
  std::int64_t dim() const final { return grid_.dim(); }
  std::int64_t codes() const final { return grid_.codes(); }
  std::string describe() const final;
  const Grid& grid() const { return grid_; }

 protected:
  GridQuantizer(Module& parent, std::string_view name, std::string_view what, Grid grid)
      : Quantizer(parent, name), what_(what), grid_(std::move(grid)) {}

  struct Assigned {
    Value smooth;  // (N,D) in the space of the codes: Quantized::z
    Value levels;  // i32 (N,D)
  };
  virtual Assigned assign(Value rows) const = 0;
  // Forward value of z_q where it is not the code.
  virtual Value forward(Value code, Value smooth, const QuantizeContext& context) const {
    (void)smooth, (void)context;
    return code;
  }
  // mask: f32 (N), see ops/masks.h.
  virtual std::vector<LossTerm> losses(Value smooth, Value code, Value mask) const {
    (void)smooth, (void)code, (void)mask;
    return {};
  }

 private:
  std::string what_;
  Grid grid_;
};

}  // namespace sg
