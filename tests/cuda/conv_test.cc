// Convolutions in slices: batches whose windows do not fit the limit give what the reference backend gives, and what
// one slice gives.
#include "backends/cuda/conv.h"

#include <cmath>

#include "models/init.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/op_ids.h"
#include "tests/cuda/support.h"

namespace sg::test {
namespace {

class CudaConv : public CudaTest {
 protected:
  void TearDown() override { cuda::set_most_columns(usual_); }
  const std::size_t usual_ = cuda::set_most_columns(std::size_t{256} << 20);
};

Tensor drawn(const TensorType& type, const char* name) {
  Tensor t({DType::f32, type.shape});
  HostRandom random(3, name);
  for (std::int64_t i = 0; i < t.elements(); ++i) t.set(i, 2 * random.uniform() - 1);
  return t.cast(type.dtype);
}

int count(const std::string& text, const std::string& part) {
  int n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

struct Layer {
  DType dtype;
  std::int64_t images, channels, groups, outputs, kernel;
  ConvOptions options;
};

// All four on one tape: conv2d, with bias and relu, transposed, and the gradient in the weight.
struct Four {
  explicit Four(const Layer& l) {
    ConvOptions o = l.options;
    o.groups = l.groups;
    const Value x = tape.input("x", {l.dtype, {l.images, 7, 6, l.channels}}),
                w = tape.input("w", {l.dtype, {l.kernel, l.kernel, l.channels / l.groups, l.outputs}}),
                b = tape.input("b", {l.dtype, {l.outputs}});
    const Value y = conv2d(x, w, o);
    const Value g = tape.input("g", y.type());
    values = {y, relu(y + b), conv2d_transpose(g, w, o, {7, 6}), conv2d_weight_grad(x, g, {l.kernel, l.kernel}, o)};
    feeds = {
        {x, drawn(x.type(), "x")}, {w, drawn(w.type(), "w")}, {b, drawn(b.type(), "b")}, {g, drawn(g.type(), "g")}};
  }
  std::vector<Tensor> on(Backend& backend) const {
    Program p = compile(tape, values, backend);
    for (const auto& [input, value] : feeds) p.feed(input, value);
    p.run();
    explained = p.explain();
    std::vector<Tensor> out;
    for (const Value v : values) out.push_back(p.fetch(v));
    return out;
  }
  Tape tape;
  std::vector<Value> values;
  std::vector<std::pair<Value, Tensor>> feeds;
  mutable std::string explained;
};

TEST_F(CudaConv, SlicesOfTheBatchGiveTheSameImages) {
  const std::vector<Layer> layers = {
      {DType::f32, 5, 4, 1, 6, 3, ConvOptions::square(1, 1)},
      {DType::f32, 5, 3, 1, 5, 4, ConvOptions::square(2, 1)},
      {DType::f32, 3, 4, 2, 6, 3, ConvOptions::square(1, 0)},
      {DType::bf16, 5, 4, 1, 6, 3, ConvOptions::square(1, 1)},
      {DType::bf16, 3, 6, 3, 3, 2, ConvOptions::square(1, 1)},
      {DType::f64, 3, 2, 1, 3, 3, ConvOptions::square(2, 1)},
      {DType::f32, 4, 3, 1, 5, 1, ConvOptions{}},
  };
  for (const Layer& l : layers) {
    SCOPED_TRACE(fmt::format("{} {} images, {} channels in {} groups, kernel {}", to_string(l.dtype), l.images,
                             l.channels, l.groups, l.kernel));
    const Four four(l);
    const auto wanted = four.on(reference_backend());
    four.on(cuda_backend());
    const auto whole = count(four.explained, "to_columns_");
    for (const std::size_t images : {std::size_t{1}, std::size_t{2}}) {
      // Windows of so many images of the layer, a little more than that in bytes.
      const auto image = four.values[0].type().bytes() / static_cast<std::size_t>(l.images * l.outputs) *
                         static_cast<std::size_t>(l.kernel * l.kernel * l.channels);
      cuda::set_most_columns(images * image + 1);
      const auto sliced = four.on(cuda_backend());
      if (l.kernel > 1) {
        EXPECT_GT(count(four.explained, "to_columns_"), whole) << four.explained;
      }
      for (std::size_t k = 0; k < wanted.size(); ++k) {
        const double tolerance = l.dtype == DType::f64 ? 1e-12 : l.dtype == DType::f32 ? 2e-5 : 2e-2;
        double worst = 0, largest = 0;
        for (std::int64_t i = 0; i < wanted[k].elements(); ++i) {
          worst = std::max(worst, std::abs(wanted[k].at(i) - sliced[k].at(i)));
          largest = std::max(largest, std::abs(wanted[k].at(i)));
        }
        EXPECT_LE(worst, tolerance * largest) << "value " << k << ", " << images << " images a slice";
      }
    }
    cuda::set_most_columns(usual_);
  }
}

}  // namespace
}  // namespace sg::test
