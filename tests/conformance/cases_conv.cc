// Cases of convolutions and pooling: kernel sizes, strides, asymmetric padding, dilation, groups, single channels,
// sizes that strides do not divide, and the layers of the VQ-VAE baseline at a small batch.
#include <set>

#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/op_ids.h"
#include "tests/conformance/cases.h"

namespace sg::test {
namespace {

using In = std::span<const Value>;
using List = std::vector<std::int64_t>;

struct Layer {
  const char* name;
  std::int64_t n, h, w, c, o, kh, kw;
  ConvOptions options;
  bool small;  // gradcheck runs on it
};

ConvOptions with(std::array<std::int64_t, 2> stride, std::array<std::int64_t, 4> pad,
                 std::array<std::int64_t, 2> dilation = {1, 1}, std::int64_t groups = 1) {
  return {stride, pad, dilation, groups};
}

const std::vector<Layer>& layers() {
  static const std::vector<Layer> all{
      {"k1", 2, 3, 4, 3, 5, 1, 1, {}, true},
      {"k3", 1, 5, 6, 2, 3, 3, 3, {}, true},
      {"k3p1", 2, 4, 5, 3, 2, 3, 3, ConvOptions::square(1, 1), true},
      {"k3s2p1", 1, 7, 6, 2, 3, 3, 3, ConvOptions::square(2, 1), true},
      {"k4s2p1", 1, 6, 8, 3, 2, 4, 4, ConvOptions::square(2, 1), true},
      {"k2s3_leftover", 1, 8, 9, 2, 2, 2, 2, with({3, 3}, {0, 0, 0, 0}), true},
      {"asymmetric_pad", 1, 4, 5, 2, 3, 3, 3, with({1, 1}, {0, 1, 2, 0}), true},
      {"asymmetric_pad_s2", 1, 7, 7, 2, 3, 3, 3, with({2, 2}, {0, 0, 1, 1}), true},
      {"stride_differs", 1, 7, 8, 2, 2, 3, 3, with({2, 1}, {1, 1, 1, 1}), true},
      {"kernel_differs", 1, 5, 6, 2, 2, 1, 4, with({1, 2}, {0, 1, 0, 2}), true},
      {"dilated", 1, 7, 7, 2, 2, 3, 3, with({1, 1}, {2, 2, 2, 2}, {2, 2}), true},
      {"dilated_s2", 1, 9, 8, 2, 2, 3, 2, with({2, 2}, {1, 2, 1, 0}, {2, 3}), true},
      {"groups2", 1, 4, 4, 4, 6, 3, 3, with({1, 1}, {1, 1, 1, 1}, {1, 1}, 2), true},
      {"depthwise", 1, 5, 5, 4, 4, 3, 3, with({1, 1}, {1, 1, 1, 1}, {1, 1}, 4), true},
      {"depthwise_s2", 2, 6, 5, 3, 6, 3, 3, with({2, 2}, {1, 1, 1, 1}, {1, 1}, 3), true},
      {"one_in", 2, 6, 6, 1, 4, 3, 3, ConvOptions::square(1, 1), true},
      {"one_out", 2, 6, 6, 4, 1, 3, 3, ConvOptions::square(1, 1), true},
      {"one_pixel", 2, 1, 1, 3, 4, 3, 3, ConvOptions::square(1, 1), true},
      {"whole_image", 2, 4, 4, 3, 5, 4, 4, {}, true},
      {"first_layer", 4, 28, 28, 1, 32, 4, 4, ConvOptions::square(2, 1), false},
      {"second_layer", 4, 14, 14, 32, 64, 4, 4, ConvOptions::square(2, 1), false},
      {"residual", 3, 7, 7, 64, 32, 3, 3, ConvOptions::square(1, 1), false},
      {"odd_channels", 2, 13, 11, 17, 23, 3, 3, ConvOptions::square(1, 1), false},
      {"grouped_wide", 2, 9, 9, 32, 48, 3, 3, with({1, 1}, {1, 1, 1, 1}, {1, 1}, 4), false},
      // Channels in whole blocks: what the cpu backend's tiles of 4x4 outputs can do, with tiles that the image cuts
      // off.
      {"tiles_odd", 2, 5, 7, 32, 64, 3, 3, ConvOptions::square(1, 1), false},
      {"tiles_one", 1, 4, 4, 64, 32, 3, 3, ConvOptions::square(1, 1), false},
      {"tiles_one_cut", 3, 3, 2, 32, 32, 3, 3, ConvOptions::square(1, 1), false},
      {"tiles_no_pad", 2, 6, 11, 32, 32, 3, 3, {}, false},
      {"tiles_full_pad", 1, 5, 6, 32, 32, 3, 3, ConvOptions::square(1, 2), false},
      {"tiles_asymmetric_pad", 1, 6, 5, 32, 32, 3, 3, with({1, 1}, {0, 1, 2, 0}), false},
      {"tiles_k2", 2, 6, 5, 32, 32, 2, 2, with({1, 1}, {1, 0, 0, 1}), false},
      {"tiles_s2", 2, 14, 14, 32, 64, 4, 4, ConvOptions::square(2, 1), false},
      {"tiles_s2_even", 1, 16, 16, 32, 32, 4, 4, ConvOptions::square(2, 1), false},
      {"tiles_s2_odd", 2, 11, 8, 64, 32, 4, 4, ConvOptions::square(2, 1), false},
      {"tiles_s2_asymmetric", 1, 9, 10, 32, 32, 4, 4, with({2, 2}, {2, 0, 1, 3}), false},
      {"tiles_k6s2", 1, 9, 12, 32, 32, 6, 6, ConvOptions::square(2, 2), false},
      {"tiles_k6s3", 1, 12, 10, 32, 32, 6, 6, ConvOptions::square(3, 2), false},
      {"tiles_not_blocks", 2, 7, 7, 48, 32, 3, 3, ConvOptions::square(1, 1), false},
      {"wide_3x3", 24, 7, 7, 64, 96, 3, 3, ConvOptions::square(1, 1), false},
      {"wide_4x4s2", 32, 14, 14, 32, 96, 4, 4, ConvOptions::square(2, 1), false},
      {"last_layer", 2, 28, 28, 32, 3, 3, 3, ConvOptions::square(1, 1), false},
      {"pointwise_wide", 3, 14, 14, 64, 65, 1, 1, {}, false},
  };
  return all;
}

std::int64_t extent(std::int64_t in, std::int64_t before, std::int64_t after, std::int64_t dilation,
                    std::int64_t kernel, std::int64_t stride) {
  return (in + before + after - dilation * (kernel - 1) - 1) / stride + 1;
}

void add_layer(CaseList& list, const Layer& l) {
  const ConvOptions& p = l.options;
  const Shape x{l.n, l.h, l.w, l.c}, w{l.kh, l.kw, l.c / p.groups, l.o};
  const Shape y{l.n, extent(l.h, p.pad[0], p.pad[2], p.dilation[0], l.kh, p.stride[0]),
                extent(l.w, p.pad[1], p.pad[3], p.dilation[1], l.kw, p.stride[1]), l.o};
  const std::array<std::int64_t, 2> size{l.h, l.w}, kernel{l.kh, l.kw};
  list.add("conv2d", l.name, {normal_reals(x), normal_reals(w, 0.5)},
           [p](Tape&, In v) { return conv2d(v[0], v[1], p); })
      .gradcheck = l.small;
  list.add("conv2d_transpose", l.name, {normal_reals(y), normal_reals(w, 0.5)},
           [p, size](Tape&, In v) { return conv2d_transpose(v[0], v[1], p, size); })
      .gradcheck = l.small;
  list.add("conv2d_weight_grad", l.name, {normal_reals(x), normal_reals(y)},
           [p, kernel](Tape&, In v) { return conv2d_weight_grad(v[0], v[1], kernel, p); })
      .gradcheck = l.small;
}

Attrs bias_attrs(const ConvOptions& p, std::int64_t relu) {
  return Attrs{{"stride", List{p.stride[0], p.stride[1]}},
               {"pad", List{p.pad[0], p.pad[1], p.pad[2], p.pad[3]}},
               {"dilation", List{p.dilation[0], p.dilation[1]}},
               {"groups", p.groups},
               {"relu", relu}};
}

// With a skip: one that another instruction made, which may be written over, one that is an input, one that is the
// convolution's own input, one that is used again.
void add_skip_cases(CaseList& list) {
  for (const Layer& l : layers()) {
    static const std::set<std::string_view> kChosen{
        "k1",      "k3p1",         "k4s2p1",    "asymmetric_pad", "dilated",      "groups2",  "depthwise",
        "one_out", "odd_channels", "tiles_odd", "tiles_one",      "tiles_s2_odd", "wide_3x3", "pointwise_wide"};
    if (!kChosen.contains(l.name)) continue;
    const ConvOptions& p = l.options;
    const Shape x{l.n, l.h, l.w, l.c}, w{l.kh, l.kw, l.c / p.groups, l.o};
    const Shape y{l.n, extent(l.h, p.pad[0], p.pad[2], p.dilation[0], l.kh, p.stride[0]),
                  extent(l.w, p.pad[1], p.pad[3], p.dilation[1], l.kw, p.stride[1]), l.o};
    const std::vector<Draw> inputs{normal_reals(x), normal_reals(w, 0.5), normal_reals({l.o}), normal_reals(y)};
    for (const std::int64_t relu : {0, 1}) {
      const std::string name = std::string(l.name) + "_skip" + (relu ? "_relu" : "");
      const auto fused = [p, relu](Tape& t, Value a, Value b, Value c, Value skip) {
        return t.emit1(OpId::conv2d_bias, {a, b, c, skip}, bias_attrs(p, relu));
      };
      list.add("conv2d_bias", name, inputs, [=](Tape& t, In v) { return fused(t, v[0], v[1], v[2], v[3]); })
          .may_decompose()
          .gradcheck = l.small;
      list.add("conv2d_bias", name + "_made", inputs,
               [=](Tape& t, In v) { return fused(t, v[0], v[1], v[2], v[3] * v[3]); })
          .may_decompose()
          .gradcheck = l.small;
      list.add("conv2d_bias", name + "_used_again", inputs,
               [=](Tape& t, In v) {
                 const Value skip = v[3] * v[3];
                 return fused(t, v[0], v[1], v[2], skip) * skip;
               })
          .may_decompose()
          .gradcheck = l.small;
      // What a model writes; backends may make a conv2d_bias of it.
      list.add("conv_skip_written", name, inputs,
               [=](Tape&, In v) {
                 const Value s = v[3] * v[3] + (conv2d(v[0], v[1], p) + v[2]);
                 return relu ? sg::relu(s) : s;
               })
          .no_gradcheck();
    }
  }
  for (const std::int64_t channels : {5, 32})
    list.add("conv2d_bias", "own_input_" + std::to_string(channels),
             {normal_reals({2, 4, 5, channels}), normal_reals({3, 3, channels, channels}, 0.3),
              normal_reals({channels})},
             [](Tape& t, In v) {
               const Value x = v[0] * v[0];
               return t.emit1(OpId::conv2d_bias, {x, v[1], v[2], x}, bias_attrs(ConvOptions::square(1, 1), 0));
             })
        .may_decompose()
        .no_gradcheck();
}

}  // namespace

void add_conv_cases(CaseList& list) {
  for (const auto& layer : layers()) add_layer(list, layer);
  list.add("conv2d", "exact", {small_integers({2, 9, 9, 5}, -3, 3), small_integers({3, 3, 5, 7}, -3, 3)},
           [](Tape&, In v) { return conv2d(v[0], v[1], ConvOptions::square(1, 1)); })
      .no_gradient()
      .accuracy(0, 0);
  list.add("conv2d", "no_images", {normal_reals({0, 5, 5, 2}), normal_reals({3, 3, 2, 4})},
           [](Tape&, In v) { return conv2d(v[0], v[1]); })
      .no_gradcheck();
  list.add("conv2d_transpose", "smallest_size", {normal_reals({1, 3, 4, 2}), normal_reals({4, 4, 3, 2})},
           [](Tape&, In v) { return conv2d_transpose(v[0], v[1], ConvOptions::square(2, 1)); });

  for (const std::int64_t relu : {0, 1}) {
    const std::string suffix = relu ? "_relu" : "";
    const auto build = [relu](ConvOptions p) {
      return [=](Tape& t, In v) { return t.emit1(OpId::conv2d_bias, {v[0], v[1], v[2]}, bias_attrs(p, relu)); };
    };
    list.add("conv2d_bias", "k3p1" + suffix,
             {normal_reals({2, 4, 5, 3}), normal_reals({3, 3, 3, 2}), normal_reals({2})},
             build(ConvOptions::square(1, 1)));
    list.add("conv2d_bias", "k4s2p1" + suffix,
             {normal_reals({1, 8, 6, 2}), normal_reals({4, 4, 2, 5}), normal_reals({5})},
             build(ConvOptions::square(2, 1)));
    list.add("conv2d_bias", "large" + suffix,
             {normal_reals({3, 14, 14, 32}), normal_reals({3, 3, 32, 48}, 0.1), normal_reals({48})},
             build(ConvOptions::square(1, 1)))
        .no_gradcheck();
    // What a model writes; backends may make a conv2d_bias of it.
    list.add("conv_bias_written", "k3p1" + suffix,
             {normal_reals({2, 6, 6, 3}), normal_reals({3, 3, 3, 8}), normal_reals({8})},
             [relu](Tape&, In v) {
               const Value y = conv2d(v[0], v[1], ConvOptions::square(1, 1)) + v[2];
               return relu ? sg::relu(y) : y;
             })
        .no_gradcheck();
  }

  add_skip_cases(list);

  const auto enlarge = [](std::int64_t h, std::int64_t w) { return [=](Tape&, In v) { return upsample(v[0], h, w); }; };
  list.add("upsample", "two", {normal_reals({2, 3, 4, 3})}, enlarge(2, 2));
  list.add("upsample", "differs", {normal_reals({1, 2, 3, 2})}, enlarge(3, 1));
  list.add("upsample", "one", {normal_reals({1, 2, 3, 2})}, enlarge(1, 1));
  list.add("upsample", "large", {normal_reals({3, 14, 14, 33})}, enlarge(2, 2)).no_gradcheck();

  list.add("avg_pool", "two", {normal_reals({2, 4, 6, 3})}, [](Tape&, In v) { return avg_pool(v[0], {2, 2}); });
  list.add("avg_pool", "overlapping", {normal_reals({1, 7, 6, 2})}, [](Tape&, In v) {
    return avg_pool(v[0], {3, 3}, {2, 2}, {1, 1, 1, 1});
  });
  list.add("avg_pool", "asymmetric", {normal_reals({1, 5, 6, 2})}, [](Tape&, In v) {
    return avg_pool(v[0], {2, 3}, {1, 2}, {0, 1, 1, 0});
  });
  list.add("avg_pool", "leftover", {normal_reals({1, 7, 8, 2})}, [](Tape&, In v) {
    return avg_pool(v[0], {3, 3}, {3, 3});
  });
  list.add("avg_pool", "whole_image", {normal_reals({2, 5, 4, 3})}, [](Tape&, In v) { return avg_pool(v[0], {5, 4}); });
  list.add("avg_pool", "large", {normal_reals({3, 28, 28, 17})},
           [](Tape&, In v) {
             return avg_pool(v[0], {2, 2});
           })
      .no_gradcheck();
}

}  // namespace sg::test
