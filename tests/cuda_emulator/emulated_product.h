// Products of matrices in host memory, for the stand-in of cuBLASLt: blocked, each sum in one order, accumulated in f32
// (f64 for f64).
#pragma once
#include <cstdint>

namespace sg::cuda::emulated {

enum class Element : std::uint8_t { f32, f64, bf16 };

// Element (i, j) is at data + i * down + j * across, of the next product of a batch `stride` elements on.
struct Matrix {
  unsigned char* data = nullptr;
  Element type = Element::f32;
  std::int64_t down = 0, across = 0, stride = 0;
};

// d = relu?(alpha * a b + beta * c + bias of its row), a: m x k, b: k x n. c is not read where beta is 0.
struct Product {
  Matrix a, b, c, d, bias;  // no bias where its data is null
  std::int64_t m = 0, n = 0, k = 0, batch = 1;
  double alpha = 1, beta = 0;
  bool tf32 = false;  // a and b are rounded to 10 bits of fraction, halves away from zero
  bool relu = false;
};

void multiply(const Product& p);

}  // namespace sg::cuda::emulated
