#include "models/inception.h"

#include <cmath>
#include <vector>

#include "models/pytorch_weights.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr double kNormEps = 1e-3;

struct Kernel {
  std::int64_t height, width;
};
enum class Edge : std::uint8_t { valid, same };  // no padding; zeros, so that a map keeps its size at stride 1

// The network over maps of whatever kind `o` works on: Map is a Value, or a number of channels when weights are read.
//   conv(name, x, out, kernel, edge, stride): convolution, norm, relu     max_pool(x, edge, stride), average(x): 3 x 3
template <class Ops, class Map = typename Ops::Map>
Map network(const Ops& o, Map x) {
  using enum Edge;
  const auto conv = [&](const std::string& name, const Map& from, std::int64_t out, Kernel kernel = {1, 1},
                        Edge edge = same,
                        std::int64_t stride = 1) { return o.conv(name, from, out, kernel, edge, stride); };
  constexpr Kernel k3{3, 3}, k5{5, 5}, k17{1, 7}, k71{7, 1}, k13{1, 3}, k31{3, 1};

  x = conv("Conv2d_1a_3x3", x, 32, k3, valid, 2);
  x = conv("Conv2d_2a_3x3", x, 32, k3, valid);
  x = conv("Conv2d_2b_3x3", x, 64, k3);
  x = o.max_pool(x, valid, 2);
  x = conv("Conv2d_3b_1x1", x, 80);
  x = conv("Conv2d_4a_3x3", x, 192, k3, valid);
  x = o.max_pool(x, valid, 2);
  for (const auto& [block, pooled] : {std::pair("Mixed_5b", 32), {"Mixed_5c", 64}, {"Mixed_5d", 64}}) {
    const std::string b = std::string(block) + ".branch";
    const Map one = conv(b + "1x1", x, 64), five = conv(b + "5x5_2", conv(b + "5x5_1", x, 48), 64, k5);
    const Map three = conv(b + "3x3dbl_3", conv(b + "3x3dbl_2", conv(b + "3x3dbl_1", x, 64), 96, k3), 96, k3);
    x = o.join({one, five, three, conv(b + "_pool", o.average(x), pooled)});
  }
  {
    const std::string b = "Mixed_6a.branch";
    const Map twice = conv(b + "3x3dbl_2", conv(b + "3x3dbl_1", x, 64), 96, k3);
    x = o.join({conv(b + "3x3", x, 384, k3, valid, 2), conv(b + "3x3dbl_3", twice, 96, k3, valid, 2),
                o.max_pool(x, valid, 2)});
  }
  for (const auto& [block, width] :
       {std::pair("Mixed_6b", 128), {"Mixed_6c", 160}, {"Mixed_6d", 160}, {"Mixed_6e", 192}}) {
    const std::string b = std::string(block) + ".branch";
    const Map one = conv(b + "1x1", x, 192);
    Map once = conv(b + "7x7_2", conv(b + "7x7_1", x, width), width, k17);
    once = conv(b + "7x7_3", once, 192, k71);
    Map twice = conv(b + "7x7dbl_2", conv(b + "7x7dbl_1", x, width), width, k71);
    twice = conv(b + "7x7dbl_4", conv(b + "7x7dbl_3", twice, width, k17), width, k71);
    twice = conv(b + "7x7dbl_5", twice, 192, k17);
    x = o.join({one, once, twice, conv(b + "_pool", o.average(x), 192)});
  }
  {
    const std::string b = "Mixed_7a.branch";
    const Map three = conv(b + "3x3_2", conv(b + "3x3_1", x, 192), 320, k3, valid, 2);
    Map seven = conv(b + "7x7x3_2", conv(b + "7x7x3_1", x, 192), 192, k17);
    seven = conv(b + "7x7x3_4", conv(b + "7x7x3_3", seven, 192, k71), 192, k3, valid, 2);
    x = o.join({three, seven, o.max_pool(x, valid, 2)});
  }
  for (const char* block : {"Mixed_7b", "Mixed_7c"}) {
    const bool last = std::string(block) == "Mixed_7c";
    const std::string b = std::string(block) + ".branch";
    const Map one = conv(b + "1x1", x, 320), three = conv(b + "3x3_1", x, 384);
    const Map twice = conv(b + "3x3dbl_2", conv(b + "3x3dbl_1", x, 448), 384, k3);
    const Map pooled = conv(b + "_pool", last ? o.max_pool(x, same, 1) : o.average(x), 192);
    x = o.join({one, o.join({conv(b + "3x3_2a", three, 384, k13), conv(b + "3x3_2b", three, 384, k31)}),
                o.join({conv(b + "3x3dbl_3a", twice, 384, k13), conv(b + "3x3dbl_3b", twice, 384, k31)}), pooled});
  }
  return x;
}

// f32 (out, in): each row of a resized axis as a mixture of two of the old one.
Tensor mixture(std::int64_t out, std::int64_t in) {
  Tensor m({DType::f32, {out, in}});
  const auto to = m.span<float>();
  for (std::int64_t i = 0; i < out; ++i) {
    const float at = static_cast<float>(i) * (static_cast<float>(in) / static_cast<float>(out));
    const auto first = static_cast<std::int64_t>(at);
    const float share = at - static_cast<float>(first);
    to[static_cast<std::size_t>(i * in + first)] += 1 - share;
    to[static_cast<std::size_t>(i * in + std::min(first + 1, in - 1))] += share;
  }
  return m;
}

}  // namespace

Value resize_bilinear(Value images, std::int64_t height, std::int64_t width) {
  Tape& tape = *images.tape;
  const Shape s = images.shape();
  const Value rows = matmul(tape.constant(mixture(height, s[1])), reshape(images, {s[0], s[1], s[2] * s[3]}));
  const Value columns = matmul(tape.constant(mixture(width, s[2])), reshape(rows, {s[0] * height, s[2], s[3]}));
  return reshape(columns, {s[0], height, width, s[3]});
}

// Reads weights: a map is its number of channels.
struct InceptionV3::Loading {
  using Map = std::int64_t;
  InceptionV3& net;
  const StateFile& file;
  const std::filesystem::path& path;

  // The norm's fixed scale and shift become part of the convolution.
  Map conv(const std::string& name, Map in, std::int64_t out, Kernel kernel, Edge, std::int64_t) const {
    Tensor weight =
        from_oihw(required_tensor(file, path, name + ".conv.weight", {out, in, kernel.height, kernel.width}));
    Tensor bias({DType::f32, {out}});
    const auto norm = [&](const char* what) -> const Tensor& {
      return required_tensor(file, path, name + ".bn." + what, {out});
    };
    const Tensor &gain = norm("weight"), &shift = norm("bias"), &mean = norm("running_mean"),
                 &variance = norm("running_var");
    std::vector<double> scale;
    for (std::int64_t c = 0; c < out; ++c) {
      scale.push_back(gain.at(c) / std::sqrt(variance.at(c) + kNormEps));
      bias.set(c, shift.at(c) - mean.at(c) * scale.back());
    }
    const auto values = weight.span<float>();
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(values[i] * scale[i % static_cast<std::size_t>(out)]);
    std::string own = name;
    for (char& c : own)
      if (c == '.') c = '_';
    net.convs_.emplace(name, Conv{&net.add_state(own + "_weight", weight), &net.add_state(own + "_bias", bias)});
    return out;
  }
  Map max_pool(Map x, Edge, std::int64_t) const { return x; }
  Map average(Map x) const { return x; }
  Map join(std::initializer_list<Map> maps) const {
    std::int64_t channels = 0;
    for (const Map m : maps) channels += m;
    return channels;
  }
};

struct InceptionV3::Recording {
  using Map = Value;
  const InceptionV3& net;

  Map conv(const std::string& name, Map x, std::int64_t, Kernel kernel, Edge edge, std::int64_t stride) const {
    const Conv& c = net.convs_.at(name);
    ConvOptions options = ConvOptions::square(stride, 0);
    if (edge == Edge::same) {
      const std::int64_t h = (kernel.height - 1) / 2, w = (kernel.width - 1) / 2;
      options.pad = {h, w, h, w};
    }
    return relu(conv2d(x, x.tape->read(*c.weight), options) + x.tape->read(*c.bias));
  }
  // Of maps that are not negative, so that zeros around them are never the maximum alone.
  Map max_pool(Map x, Edge edge, std::int64_t stride) const {
    if (edge == Edge::same) x = pad(x, {0, 1, 1, 0}, {0, 1, 1, 0});
    for (const std::size_t axis : {std::size_t{1}, std::size_t{2}}) {
      const Shape s = x.shape();
      Value most;
      for (std::int64_t i = 0; i < 3; ++i) {
        std::vector<std::int64_t> start{0, 0, 0, 0}, stop = s.vec(), step{1, 1, 1, 1};
        start[axis] = i, stop[axis] += i - 2, step[axis] = stride;
        const Value part = slice(x, start, stop, step);
        most = most ? maximum(most, part) : part;
      }
      x = most;
    }
    return x;
  }
  Map average(Map x) const {
    const std::int64_t h = x.shape()[1], w = x.shape()[2];
    Tensor share({DType::f32, {h, w, 1}});  // 9 over the pixels of a window that lie inside
    const auto inside = [](std::int64_t i, std::int64_t n) { return 1 + (i > 0) + (i + 1 < n); };
    for (std::int64_t i = 0; i < h; ++i)
      for (std::int64_t j = 0; j < w; ++j) share.set(i * w + j, 9.0 / static_cast<double>(inside(i, h) * inside(j, w)));
    return avg_pool(x, {3, 3}, {1, 1}, {1, 1, 1, 1}) * x.tape->constant(share);
  }
  Map join(std::vector<Value> maps) const { return concat(std::move(maps), 3); }
};

InceptionV3::InceptionV3(const StateFile& weights, const std::filesystem::path& name) {
  network(Loading{*this, weights, name}, std::int64_t{3});
  head_ = &add_state("fc_weight", required_tensor(weights, name, "fc.weight", {kClasses, kFeatures}));
}

Value InceptionV3::pooled(Value images, std::int64_t side) const {
  const Shape s = images.shape();
  if (s.rank() != 4 || (s[3] != 1 && s[3] != 3) || side < kSmallest)
    fail(ErrorKind::shape,
         "Inception-v3: images are {} and seen at a side of {}, expected (N,H,W,1 or 3) and at least {}",
         to_string(images.type()), side, kSmallest);
  const Scope scope(*images.tape, "inception");
  Value x = (255.0 * resize_bilinear(images, side, side) - 128.0) / 128.0;
  if (s[3] == 1) x = concat({x, x, x}, 3);
  return mean(network(Recording{*this}, x), {1, 2});
}

Value InceptionV3::logits_of(Value pooled) const { return matmul(pooled, pooled.tape->read(*head_), false, true); }

}  // namespace sg
