// Small dense matrices in double, to write declared Jacobians down from the formulas, independently of the library.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace sg::test {

using Row = std::vector<double>;

struct Matrix {
  std::size_t rows = 0, columns = 0;
  Row data;
  Matrix(std::size_t r, std::size_t c) : rows(r), columns(c), data(r * c, 0.0) {}
  double& at(std::size_t i, std::size_t j) { return data[i * columns + j]; }
  double at(std::size_t i, std::size_t j) const { return data[i * columns + j]; }
};

inline Row operator*(double s, Row a) {
  for (double& x : a) x *= s;
  return a;
}
inline Row operator+(Row a, const Row& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}
inline Row operator-(const Row& a, const Row& b) { return a + -1.0 * b; }
inline double inner(const Row& a, const Row& b) {
  double s = 0;
  for (std::size_t i = 0; i < a.size(); ++i) s += a[i] * b[i];
  return s;
}
inline double length(const Row& a) { return std::sqrt(inner(a, a)); }
inline Row unit(const Row& a) { return 1 / length(a) * a; }

inline Matrix operator*(double s, Matrix a) {
  a.data = s * a.data;
  return a;
}
inline Matrix operator+(Matrix a, const Matrix& b) {
  a.data = a.data + b.data;
  return a;
}
inline Matrix operator-(const Matrix& a, const Matrix& b) { return a + -1.0 * b; }
inline Matrix operator*(const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.columns);
  for (std::size_t i = 0; i < a.rows; ++i)
    for (std::size_t j = 0; j < b.columns; ++j)
      for (std::size_t k = 0; k < a.columns; ++k) c.at(i, j) += a.at(i, k) * b.at(k, j);
  return c;
}
inline Row operator*(const Matrix& a, const Row& x) {
  Row y(a.rows, 0.0);
  for (std::size_t i = 0; i < a.rows; ++i)
    for (std::size_t j = 0; j < a.columns; ++j) y[i] += a.at(i, j) * x[j];
  return y;
}

inline Matrix zero(std::size_t n) { return {n, n}; }
inline Matrix diagonal(const Row& values) {
  Matrix m(values.size(), values.size());
  for (std::size_t i = 0; i < values.size(); ++i) m.at(i, i) = values[i];
  return m;
}
inline Matrix identity(std::size_t n) { return diagonal(Row(n, 1.0)); }
inline Matrix outer(const Row& a, const Row& b) {
  Matrix m(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    for (std::size_t j = 0; j < b.size(); ++j) m.at(i, j) = a[i] * b[j];
  return m;
}

// The rotation of u = z/|z| onto v = q/|q| in their plane, from the paper's formula written another way than the
// library has it: R = I - (u+v)(u+v)^T / (1 + u.v) + 2 v u^T.
inline Matrix rotation_of(const Row& z, const Row& q) {
  const Row u = unit(z), v = unit(q);
  return identity(z.size()) - 1 / (1 + inner(u, v)) * outer(u + v, u + v) + 2.0 * outer(v, u);
}
inline Matrix reflection_of(const Row& z, const Row& q) {
  const Row r = unit(unit(z) - unit(q));
  return identity(z.size()) - 2.0 * outer(r, r);
}

inline Row row_of(const Tensor& t, std::int64_t row) {
  const std::int64_t d = t.shape()[-1];
  Row r;
  for (std::int64_t i = 0; i < d; ++i) r.push_back(t.at(row * d + i));
  return r;
}

// The blocks on the diagonal of a matrix of their own size times their number, zeros elsewhere.
inline Matrix block_diagonal(const std::vector<Matrix>& blocks) {
  std::size_t rows = 0, columns = 0;
  for (const Matrix& b : blocks) rows += b.rows, columns += b.columns;
  Matrix m(rows, columns);
  std::size_t row = 0, column = 0;
  for (const Matrix& b : blocks) {
    for (std::size_t i = 0; i < b.rows; ++i)
      for (std::size_t j = 0; j < b.columns; ++j) m.at(row + i, column + j) = b.at(i, j);
    row += b.rows, column += b.columns;
  }
  return m;
}

// The largest |got - wanted| / max(1, |wanted|); infinite where the shapes differ or a number is not finite.
inline double error_of_matrix(const Tensor& got, const Matrix& wanted) {
  if (got.shape() != Shape{static_cast<std::int64_t>(wanted.rows), static_cast<std::int64_t>(wanted.columns)})
    return INFINITY;
  double worst = 0;
  for (std::size_t i = 0; i < wanted.data.size(); ++i) {
    const double error =
        std::abs(got.at(static_cast<std::int64_t>(i)) - wanted.data[i]) / std::max(1.0, std::abs(wanted.data[i]));
    if (!std::isfinite(error)) return INFINITY;
    worst = std::max(worst, error);
  }
  return worst;
}

}  // namespace sg::test
