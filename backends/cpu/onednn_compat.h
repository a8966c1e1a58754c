// oneDNN 2.x and 3.x behind one spelling: the only file that looks at oneDNN's version. 3.x dropped operation
// descriptors: the arguments go to the primitive descriptor.
#pragma once
#include <fmt/format.h>

#include <oneapi/dnnl/dnnl.hpp>
#include <string>

namespace sg::onednn {

using Md = dnnl::memory::desc;
using Dims = dnnl::memory::dims;

// A convolution big -> small in oneDNN's terms: dims are (N,C,H,W) and (O,C,KH,KW) or (G,O/G,C/G,KH,KW) whatever the
// layout; dilation counts the gaps (0: none). Without a bias, bias_md is a zero descriptor.
struct ConvDesc {
  Md src, weights, bias, dst;
  Dims strides, dilation, pad_before, pad_after;
  bool has_bias = false;
  dnnl::algorithm algorithm = dnnl::algorithm::convolution_direct;
  Md forward_weights;  // of the convolution whose gradient this is, where `weights` is in f32 and the rest in bf16

  ConvDesc forward() const {
    ConvDesc d = *this;
    d.weights = forward_weights;
    return d;
  }
};

#if DNNL_VERSION_MAJOR >= 3

inline auto forward_pd(const ConvDesc& d, const dnnl::primitive_attr& attr, const dnnl::engine& engine) {
  using Pd = dnnl::convolution_forward::primitive_desc;
  constexpr auto kind = dnnl::prop_kind::forward_training;
  return d.has_bias ? Pd(engine, kind, d.algorithm, d.src, d.weights, d.bias, d.dst, d.strides, d.dilation,
                         d.pad_before, d.pad_after, attr)
                    : Pd(engine, kind, d.algorithm, d.src, d.weights, d.dst, d.strides, d.dilation, d.pad_before,
                         d.pad_after, attr);
}

inline auto backward_data_pd(const ConvDesc& d, const dnnl::primitive_attr& attr, const dnnl::engine& engine) {
  return dnnl::convolution_backward_data::primitive_desc(engine, d.algorithm, d.src, d.weights, d.dst, d.strides,
                                                         d.dilation, d.pad_before, d.pad_after,
                                                         forward_pd(d, {}, engine), attr);
}

inline auto backward_weights_pd(const ConvDesc& d, const dnnl::primitive_attr& attr, const dnnl::engine& engine) {
  return dnnl::convolution_backward_weights::primitive_desc(engine, d.algorithm, d.src, d.weights, d.dst, d.strides,
                                                            d.dilation, d.pad_before, d.pad_after,
                                                            forward_pd(d.forward(), {}, engine), attr);
}

// bias: a zero descriptor where there is none.
inline auto matmul_pd(const Md& a, const Md& b, const Md& bias, const Md& c, const dnnl::primitive_attr& attr,
                      const dnnl::engine& engine) {
  return bias.is_zero() ? dnnl::matmul::primitive_desc(engine, a, b, c, attr)
                        : dnnl::matmul::primitive_desc(engine, a, b, bias, c, attr);
}

#else

inline auto forward_pd(const ConvDesc& d, const dnnl::primitive_attr& attr, const dnnl::engine& engine) {
  using Desc = dnnl::convolution_forward::desc;
  constexpr auto kind = dnnl::prop_kind::forward_training;
  return dnnl::convolution_forward::primitive_desc(
      d.has_bias
          ? Desc(kind, d.algorithm, d.src, d.weights, d.bias, d.dst, d.strides, d.dilation, d.pad_before,
                 d.pad_after)
          : Desc(kind, d.algorithm, d.src, d.weights, d.dst, d.strides, d.dilation, d.pad_before, d.pad_after),
      attr, engine);
}

inline auto backward_data_pd(const ConvDesc& d, const dnnl::primitive_attr& attr, const dnnl::engine& engine) {
  using Desc = dnnl::convolution_backward_data::desc;
  return dnnl::convolution_backward_data::primitive_desc(
      Desc(d.algorithm, d.src, d.weights, d.dst, d.strides, d.dilation, d.pad_before, d.pad_after), attr, engine,
      forward_pd(d, {}, engine));
}

inline auto backward_weights_pd(const ConvDesc& d, const dnnl::primitive_attr& attr, const dnnl::engine& engine) {
  using Desc = dnnl::convolution_backward_weights::desc;
  return dnnl::convolution_backward_weights::primitive_desc(
      Desc(d.algorithm, d.src, d.weights, d.dst, d.strides, d.dilation, d.pad_before, d.pad_after), attr, engine,
      forward_pd(d.forward(), {}, engine));
}

// bias: a zero descriptor where there is none.
inline auto matmul_pd(const Md& a, const Md& b, const Md& bias, const Md& c, const dnnl::primitive_attr& attr,
                      const dnnl::engine& engine) {
  return dnnl::matmul::primitive_desc(
      bias.is_zero() ? dnnl::matmul::desc(a, b, c) : dnnl::matmul::desc(a, b, bias, c), attr, engine);
}

#endif

// The version of the library that is loaded, which may be newer than the headers.
inline std::string library_version() {
  const auto* v = dnnl::version();
  return fmt::format("{}.{}.{}", v->major, v->minor, v->patch);
}

}  // namespace sg::onednn
