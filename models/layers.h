// Layers: modules of one or a few parameters. Activations are NHWC. Initial values are those of PyTorch's layers.
// Each call opens a scope of the layer's name and records at the caller's line. A layer computes in the type of its
// input: parameters are f32 and are cast to bf16 where that is bf16 (norms compute in f32 and cast back).
#pragma once
#include <array>

#include "models/module.h"
#include "ops/conv.h"

namespace sg {

// (..., in) -> (..., out): x W + b, W (in, out).
class Linear : public Module {
 public:
  Linear(Module& parent, std::string_view name, std::int64_t in, std::int64_t out, bool bias = true);
  Value operator()(Operand x) const;

 private:
  Variable* weight_;
  Variable* bias_;  // null without one
};

// (N,H,W,in) -> (N,HO,WO,out), a square kernel unless said otherwise. W (KH,KW,in/groups,out).
class Conv2d : public Module {
 public:
  Conv2d(Module& parent, std::string_view name, std::int64_t in, std::int64_t out, std::int64_t kernel,
         std::int64_t stride = 1, std::int64_t pad = 0, bool bias = true);
  Conv2d(Module& parent, std::string_view name, std::int64_t in, std::int64_t out, std::array<std::int64_t, 2> kernel,
         ConvOptions options, bool bias = true);
  Value operator()(Operand x) const;

 private:
  ConvOptions options_;
  Variable* weight_;
  Variable* bias_;
};

// (N,H,W,in) -> (N,H',W',out), H' = (H-1) stride - 2 pad + kernel. W (KH,KW,out,in): the layout of the convolution
// whose gradient this is.
class ConvTranspose2d : public Module {
 public:
  ConvTranspose2d(Module& parent, std::string_view name, std::int64_t in, std::int64_t out, std::int64_t kernel,
                  std::int64_t stride = 1, std::int64_t pad = 0, bool bias = true);
  Value operator()(Operand x) const;

 private:
  ConvOptions options_;
  Variable* weight_;
  Variable* bias_;
};

// (N,...,C) -> the same shape, normalised over each of `groups` groups of channels of an image. Error{attribute}: C is
// no multiple.
class GroupNorm : public Module {
 public:
  GroupNorm(Module& parent, std::string_view name, std::int64_t groups, std::int64_t channels, double eps = 1e-5);
  Value operator()(Operand x) const;

 private:
  std::int64_t groups_;
  double eps_;
  Variable* gamma_;
  Variable* beta_;
};

// (..., features) -> the same shape, each row of the last axis normalised.
class LayerNorm : public Module {
 public:
  LayerNorm(Module& parent, std::string_view name, std::int64_t features, double eps = 1e-5);
  Value operator()(Operand x) const;

 private:
  double eps_;
  Variable* gamma_;
  Variable* beta_;
};

// indices i32 S -> S + [dim]. Rows start as N(0, 1).
class Embedding : public Module {
 public:
  Embedding(Module& parent, std::string_view name, std::int64_t rows, std::int64_t dim);
  Value operator()(Operand indices) const;

 private:
  Variable* weight_;
};

// x + conv1x1(relu(conv3x3(relu(x)))): channels -> hidden -> channels. (The block of van den Oord et al. 1711.00937.)
class ResidualBlock : public Module {
 public:
  ResidualBlock(Module& parent, std::string_view name, std::int64_t channels, std::int64_t hidden);
  Value operator()(Operand x) const;

 private:
  Conv2d conv1_, conv2_;
};

}  // namespace sg
