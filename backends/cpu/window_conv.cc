// A convolution as a product: the pixels under the kernel, side by side, are one row (a "window") of a matrix whose
// product with the weights is the result; a gradient of weights is the product of the windows, transposed, with the
// result's gradient. Windows are made a slice of rows at a time, so that they stay in a core's second-level cache.
//
// A transposed convolution of stride s is s x s convolutions of stride 1, one for each phase (p, q): the pixels whose
// row and column are p and q modulo s see the taps of one phase only.
//
// Invariants: slices and the parts of a sum are cut by the shape alone, each product runs on one thread, parts are
// added in order: any number of threads gives the same bits. run() allocates nothing.
#include "backends/cpu/window_conv.h"

#include <omp.h>

#include <optional>
#include <vector>

#include "backends/cpu/bf16.h"
#include "backends/cpu/onednn_step.h"
#include "backends/cpu/window_geometry.h"

namespace sg::cpu {
namespace {

using onednn::Dims;
using onednn::Md;
using Bits = std::uint16_t;  // of a BFloat16

constexpr auto kF32 = dnnl::memory::data_type::f32;
constexpr auto kBf16 = dnnl::memory::data_type::bf16;
constexpr Index kNear = 131072;                // numbers in the windows of a slice
constexpr Index kFewRows = 64, kTile = 32;     // of a slice, at least; and what their number is a multiple of
constexpr Index kPartFloats = Index{1} << 23;  // of all parts together

struct Slices {
  Index rows = 0, size = 0, count = 0;  // the last one may be shorter
  Slices() = default;
  Slices(Index all, Index depth) : rows(all) {
    const Index most = std::max(kNear / depth, kFewRows);
    size = std::min(round_up(ceil_div(all, ceil_div(all, most)), kTile), all);
    count = ceil_div(all, size);
  }
  Index of(Index i) const { return std::min(size, rows - i * size); }
  Index last() const { return of(count - 1); }
};

// A product of oneDNN's for one thread, with the arguments of each of several users that run it side by side.
class Product {
 public:
  struct Operand {
    int index;
    Md md;
    const void* fixed = nullptr;  // else set before each run
  };
  Product(const dnnl::matmul::primitive_desc& pd, std::vector<Operand> operands, Index users)
      : primitive_(pd), scratch_(pd.scratchpad_desc()), name_(pd.impl_info_str()) {
    for (Index u = 0; u < users; ++u) {
      User& user = users_.emplace_back();
      for (const Operand& o : operands)
        user.memories.push_back(o.fixed ? onednn::memory_at(o.md, o.fixed)
                                        : dnnl::memory(o.md, onednn::engine(), DNNL_MEMORY_NONE));
      if (scratch_bytes() != 0) user.memories.push_back(dnnl::memory(scratch_, onednn::engine(), DNNL_MEMORY_NONE));
      for (std::size_t k = 0; k < user.memories.size(); ++k)
        user.args.push_back({k < operands.size() ? operands[k].index : DNNL_ARG_SCRATCHPAD, user.memories[k].get()});
    }
  }
  std::size_t scratch_bytes() const { return scratch_.get_size(); }
  const std::string& name() const { return name_; }

  // first, second, ..: the data of the operands that are not fixed, in their order. False where oneDNN refuses.
  bool run(Index user, void* scratch, std::initializer_list<const void*> data) {
    User& u = users_[static_cast<std::size_t>(user)];
    auto memory = u.memories.begin();
    for (const void* p : data) (memory++)->set_data_handle(const_cast<void*>(p));
    if (scratch_bytes() != 0) u.memories.back().set_data_handle(scratch);
    return dnnl_primitive_execute(primitive_.get(), onednn::stream().get(), static_cast<int>(u.args.size()),
                                  u.args.data()) == dnnl_success;
  }

 private:
  struct User {
    std::vector<dnnl::memory> memories;
    std::vector<dnnl_exec_arg_t> args;
  };
  dnnl::matmul primitive_;
  Md scratch_;
  std::string name_;
  std::vector<User> users_;
};

Md matrix(dnnl::memory::data_type type, Index rows, Index columns) { return {{rows, columns}, type, Dims{columns, 1}}; }

// Bytes of each thread, taken from one piece of scratch.
struct LaneMemory {
  std::size_t bytes = 0;
  std::size_t add(std::size_t n) { return std::exchange(bytes, bytes + align64(n)); }
};

void refused(const std::string& name) {
  fail(ErrorKind::backend, "oneDNN {}: {} failed", onednn::library_version(), name);
}

// One of the convolutions of stride 1 (the only one, forward) that a result is made of.
struct Phase {
  Windows in{};
  Index y_first = 0, y_step = 1, x_first = 0,
        x_step = 1;               // window (i, j) gives pixel first + step * (i, j) of the result
  const void* weights = nullptr;  // of layout `packed`
  Md packed;
  Slices slices;
  std::optional<Product> whole, last;  // `last`: of a shorter last slice
};

// weights: (depth, channels of the result) in any layout; bias may be null.
dnnl::matmul::primitive_desc phase_pd(Index rows, Index depth, Index columns, const Md& weights, bool bias) {
  return onednn::matmul_pd(matrix(kBf16, rows, depth), weights, bias ? matrix(kBf16, 1, columns) : Md(),
                           matrix(kBf16, rows, columns), onednn::user_scratchpad(), onednn::engine());
}

// Without its weights.
Phase make_phase(Index images, const Windows& in, Index columns, bool bias) {
  const onednn::OneThread one;
  Phase p;
  p.in = in;
  p.slices = Slices(images * in.of_image(), in.depth());
  p.packed =
      phase_pd(p.slices.size, in.depth(), columns, {{in.depth(), columns}, kBf16, dnnl::memory::format_tag::any}, bias)
          .weights_desc();
  return p;
}

class ConvStep final : public Step {
 public:
  struct Image {
    Index height, width, channels;
  };
  ConvStep(LowerCtx& ctx, std::vector<Phase> phases, Image result, const void* bias, bool relu)
      : lanes_(omp_get_max_threads()),
        phases_(std::move(phases)),
        result_(result),
        relu_(relu),
        x_(ctx.in<Bits>(0)),
        y_(ctx.out<Bits>()) {
    const onednn::OneThread one;
    LaneMemory memory;
    std::size_t windows = 0, products = 0, scratch = 0;
    for (Phase& p : phases_) {
      const auto make = [&](Index rows) {
        const auto pd = phase_pd(rows, p.in.depth(), result.channels, p.packed, bias != nullptr);
        std::vector<Product::Operand> operands{{DNNL_ARG_SRC, pd.src_desc()},
                                               {DNNL_ARG_DST, pd.dst_desc()},
                                               {DNNL_ARG_WEIGHTS, pd.weights_desc(), p.weights}};
        if (bias != nullptr) operands.push_back({DNNL_ARG_BIAS, pd.bias_desc(), bias});
        return Product(pd, std::move(operands), lanes_);
      };
      p.whole.emplace(make(p.slices.size));
      if (p.slices.last() != p.slices.size) p.last.emplace(make(p.slices.last()));
      for (const auto* product : {&p.whole, &p.last})
        if (*product) scratch = std::max(scratch, (*product)->scratch_bytes());
      if (!p.in.are_images())
        windows = std::max(windows, static_cast<std::size_t>(p.slices.size * p.in.depth()) * sizeof(Bits));
      if (!in_place(p))
        products = std::max(products, static_cast<std::size_t>(p.slices.size * result.channels) * sizeof(Bits));
      jobs_ += p.slices.count;
    }
    windows_ = memory.add(windows), products_ = memory.add(products), scratchpad_ = memory.add(scratch);
    lane_bytes_ = memory.bytes;
    scratch_ = Scratch(ctx, lane_bytes_ * static_cast<std::size_t>(lanes_));
  }

  void run() override {
    bool good = true;
#pragma omp parallel for schedule(static) num_threads(std::min(lanes_, omp_get_max_threads())) reduction(&& : good)
    for (int lane = 0; lane < lanes_; ++lane)
      for (Index job = jobs_ * lane / lanes_; job < jobs_ * (lane + 1) / lanes_; ++job)
        good = run_job(lane, job) && good;
    if (!good) refused(phases_[0].whole->name());
  }
  std::string detail() const override {
    return fmt::format("windows{}, {}{}", phases_.size() > 1 ? fmt::format(" in {} phases", phases_.size()) : "",
                       phases_[0].whole->name(), relu_ ? ", relu" : "");
  }

 private:
  bool in_place(const Phase& p) const {
    return p.y_first == 0 && p.x_first == 0 && p.y_step == 1 && p.x_step == 1 && p.in.y.count == result_.height &&
           p.in.x.count == result_.width;
  }
  bool run_job(int lane, Index job) {
    std::size_t k = 0;
    while (job >= phases_[k].slices.count) job -= phases_[k++].slices.count;
    Phase& p = phases_[k];
    auto* memory = scratch_.at<std::byte>(lane_bytes_ * static_cast<std::size_t>(lane));
    const Index first = job * p.slices.size, rows = p.slices.of(job), c = result_.channels;
    const Bits* in = x_ + first * p.in.channels;
    if (!p.in.are_images()) {
      auto* windows = reinterpret_cast<Bits*>(memory + windows_);
      read_windows(p.in, x_, first, rows, p.in.depth(), windows);
      in = windows;
    }
    Bits* out = in_place(p) ? y_ + first * c : reinterpret_cast<Bits*>(memory + products_);
    Product& product = rows == p.slices.size ? *p.whole : *p.last;
    if (!product.run(lane, memory + scratchpad_, {in, out})) return false;
    if (relu_) {
      // Below 0, but no NaN.
      constexpr Bits kMinusZero = 0x8000, kMinusInfinity = 0xff80;
      for (Index i = 0; i < rows * c; ++i) out[i] = out[i] > kMinusZero && out[i] <= kMinusInfinity ? Bits{0} : out[i];
    }
    if (in_place(p)) return true;
    for (Index r = first; r < first + rows; ++r, out += c) {
      const Index image = r / p.in.of_image(), i = r / p.in.x.count % p.in.y.count, j = r % p.in.x.count;
      const Index y = p.y_first + i * p.y_step, x = p.x_first + j * p.x_step;
      std::copy_n(out, c, y_ + ((image * result_.height + y) * result_.width + x) * c);
    }
    return true;
  }

  int lanes_;
  std::vector<Phase> phases_;
  Image result_;
  bool relu_;
  const Bits* x_;
  Bits* y_;
  Index jobs_ = 0;
  std::size_t windows_ = 0, products_ = 0, scratchpad_ = 0, lane_bytes_ = 0;
  Scratch scratch_;
};

// Kernel rows that are summed at a time, so that their sums stay near.
Index block_rows(const Windows& in, Index o) {
  constexpr Index kNearSums = Index{1} << 18;
  return std::clamp<Index>(kNearSums / (in.x.taps * in.channels * o), 1, in.y.taps);
}

// The kernel's rows in blocks, and the sum over all windows in parts: a job is a part of a block, slice after slice.
// Then the parts are added.
class WeightGradStep final : public Step {
 public:
  WeightGradStep(LowerCtx& ctx, const ConvShape& s, const Windows& in)
      : lanes_(omp_get_max_threads()),
        depth_(in.depth()),
        o_(s.o),
        x_(ctx.in<Bits>(0)),
        y_(ctx.in<Bits>(1)),
        dtype_(ctx.out_type().dtype),
        w_(ctx.out<void>()) {
    const onednn::OneThread one;
    const Index rows = block_rows(in, o_), blocks = ceil_div(in.y.taps, rows);
    slices_ = Slices(s.n * s.ho * s.wo, rows * in.x.taps * in.channels);
    while (parts_ * blocks < kJobs && 2 * parts_ <= slices_.count && 2 * parts_ * depth_ * o_ <= kPartFloats)
      parts_ *= 2;
    std::size_t scratch = 0;
    for (Index b = 0; b < blocks; ++b) {
      Windows windows = in;
      windows.y.first += b * rows * in.y.tap;
      windows.y.taps = std::min(rows, in.y.taps - b * rows);
      Block& block = blocks_.emplace_back(Block{windows, b * rows * in.x.taps * in.channels, {}, {}, {}});
      block.first.emplace(product(windows.depth(), slices_.size, false));
      if (slices_.count > parts_) block.next.emplace(product(windows.depth(), slices_.size, true));
      if (slices_.last() != slices_.size)
        block.last.emplace(product(windows.depth(), slices_.last(), slices_.count > parts_));
      for (const auto* p : {&block.first, &block.next, &block.last})
        if (*p) scratch = std::max(scratch, (*p)->scratch_bytes());
    }
    LaneMemory memory;
    const Windows& widest = blocks_[0].in;
    windows_ =
        memory.add(widest.are_images() ? 0 : static_cast<std::size_t>(slices_.size * widest.depth()) * sizeof(Bits));
    scratchpad_ = memory.add(scratch);
    lane_bytes_ = memory.bytes;
    sum_floats_ = round_up(o_ * depth_, kLine);
    scratch_ = Scratch(ctx, static_cast<std::size_t>(parts_ * sum_floats_) * sizeof(float) +
                                lane_bytes_ * static_cast<std::size_t>(lanes_));
  }

  void run() override {
    const Index jobs = parts_ * static_cast<Index>(blocks_.size());
    bool good = true;
#pragma omp parallel for schedule(static) num_threads(std::min(lanes_, omp_get_max_threads())) reduction(&& : good)
    for (int lane = 0; lane < lanes_; ++lane)
      for (Index job = jobs * lane / lanes_; job < jobs * (lane + 1) / lanes_; ++job)
        good = run_job(lane, blocks_[static_cast<std::size_t>(job / parts_)], job % parts_) && good;
    if (!good) refused(blocks_[0].first->name());
    float* total = sums(0);
    parallel_chunks(depth_ * o_, kGrain, kLine, [&](Index begin, Index end) {
      for (Index part = 1; part < parts_; ++part) {
        const float* more = sums(part);
#pragma omp simd
        for (Index i = begin; i < end; ++i) total[i] += more[i];
      }
      if (dtype_ == DType::bf16) simd_table().narrow(total + begin, static_cast<Bits*>(w_) + begin, end - begin);
    });
  }
  std::string detail() const override {
    return fmt::format("windows in {} parts of {} blocks, {}", parts_, blocks_.size(), blocks_[0].first->name());
  }

 private:
  static constexpr Index kJobs = 8, kLine = 16;  // jobs to share out; floats of a line of a cache

  struct Block {
    Windows in;
    Index at;  // its first row in the result, (depth, o)
    std::optional<Product> first, next, last;
  };
  // (depth, rows) x (rows, o), added to what is there or not.
  Product product(Index depth, Index rows, bool add) const {
    dnnl::primitive_attr attr = onednn::user_scratchpad();
    if (add) {
      dnnl::post_ops post;
      post.append_sum();
      attr.set_post_ops(post);
    }
    const Md windows({depth, rows}, kBf16, Dims{1, depth}), gradient = matrix(kBf16, rows, o_),
                                                            sums = matrix(kF32, depth, o_);
    return Product(onednn::matmul_pd(windows, gradient, {}, sums, attr, onednn::engine()),
                   {{DNNL_ARG_SRC, windows}, {DNNL_ARG_WEIGHTS, gradient}, {DNNL_ARG_DST, sums}}, lanes_);
  }
  // (depth, o) of a part. The first part's are the result itself where that is in f32.
  float* sums(Index part) const {
    if (part == 0 && dtype_ == DType::f32) return static_cast<float*>(w_);
    return scratch_.at<float>() + part * sum_floats_;
  }

  bool run_job(int lane, Block& block, Index part) {
    auto* memory = scratch_.at<std::byte>(static_cast<std::size_t>(parts_ * sum_floats_) * sizeof(float) +
                                          lane_bytes_ * static_cast<std::size_t>(lane));
    const Index begin = slices_.count * part / parts_, end = slices_.count * (part + 1) / parts_;
    for (Index i = begin; i < end; ++i) {
      const Index first = i * slices_.size, rows = slices_.of(i);
      const Bits* windows = x_ + first * block.in.channels;
      if (!block.in.are_images()) {
        auto* made = reinterpret_cast<Bits*>(memory + windows_);
        read_windows(block.in, x_, first, rows, block.in.depth(), made);
        windows = made;
      }
      Product& product = rows != slices_.size ? *block.last : i == begin ? *block.first : *block.next;
      if (!product.run(lane, memory + scratchpad_, {windows, y_ + first * o_, sums(part) + block.at * o_}))
        return false;
    }
    return true;
  }

  int lanes_;
  Index depth_, o_, parts_ = 1;
  const Bits *x_, *y_;
  DType dtype_;
  void* w_;
  Slices slices_;
  std::vector<Block> blocks_;
  Index sum_floats_ = 0;
  std::size_t windows_ = 0, scratchpad_ = 0, lane_bytes_ = 0;
  Scratch scratch_;
};

// to (columns, rows) from (rows, columns), in blocks of a few lines of a cache.
void transpose(const Bits* from, Bits* to, Index rows, Index columns) {
  constexpr Index kBlock = 32;
  Bits block[kBlock][kBlock];
  for (Index r = 0; r < rows; r += kBlock)
    for (Index c = 0; c < columns; c += kBlock) {
      const Index high = std::min(kBlock, rows - r), wide = std::min(kBlock, columns - c);
      for (Index i = 0; i < high; ++i)
        for (Index j = 0; j < wide; ++j) block[j][i] = from[(r + i) * columns + c + j];
      for (Index j = 0; j < wide; ++j) std::copy_n(block[j], high, to + (c + j) * rows + r);
    }
}

// The weights that a phase's windows are multiplied by, (taps, O) x C, in the layout of the product: packed anew each
// run.
const void* pack_phase(LowerCtx& ctx, const ConvShape& s, const PhaseAxis& y, const PhaseAxis& x, const Md& wanted) {
  const Index depth = y.taps * x.taps * s.o;
  const dnnl::memory packed = onednn::memory_at(wanted, ctx.persistent(wanted.get_size()));
  auto step = std::make_unique<onednn::PrimitiveStep>();
  const dnnl::memory plain = step->in_scratch(matrix(kBf16, depth, s.c));
  step->then(
      [s, y, x, plain, w = ctx.in<Bits>(1)] {
        auto* to = static_cast<Bits*>(plain.get_data_handle());
#pragma omp parallel for collapse(2) schedule(static)
        for (Index a = 0; a < y.taps; ++a)
          for (Index b = 0; b < x.taps; ++b) {
            const Bits* from = w + (y.tap(a) * s.kw + x.tap(b)) * s.c * s.o;
            Bits* tap = to + (a * x.taps + b) * s.o * s.c;
            transpose(from, tap, s.c, s.o);
          }
      },
      "taps of a phase");
  step->reorder(plain, packed);
  step->reserve(ctx);
  ctx.prelude("pack", std::move(step));
  return packed.get_data_handle();
}

}  // namespace

void read_windows(const Windows& w, const Bits* images, Index first, Index count, Index pitch, Bits* out) {
  const Index run = w.x.tap == 1 ? w.x.taps : 1, runs = w.x.taps / run;  // pixels that lie side by side
  const Index c = w.channels;
  const auto zeros = [&out](Index n) { std::fill_n(out, n, Bits{0}), out += n; };
  for (Index r = first; r < first + count; ++r) {
    const Bits* image = images + r / w.of_image() * w.y.extent * w.x.extent * c;
    const Index i = r / w.x.count % w.y.count, j = r % w.x.count;
    for (Index a = 0; a < w.y.taps; ++a) {
      const Index y = w.y.first + i * w.y.step + a * w.y.tap;
      for (Index b = 0; b < runs; ++b) {
        const Index x = w.x.first + j * w.x.step + b * w.x.tap;
        const Index from = std::clamp<Index>(x, 0, w.x.extent), to = std::clamp<Index>(x + run, 0, w.x.extent);
        if (y < 0 || y >= w.y.extent || from >= to) {
          zeros(run * c);
          continue;
        }
        zeros((from - x) * c);
        out = std::copy_n(image + (y * w.x.extent + from) * c, (to - from) * c, out);
        zeros((x + run - to) * c);
      }
    }
    zeros(pitch - w.depth());
  }
}

bool windows_possible(const ConvShape& s, ConvOp op) {
  if (!has_amx() || s.empty() || s.groups != 1) return false;
  return op != ConvOp::transposed || has_phases(s);
}

// Windows of few numbers are dear to make, and leave most of a tile empty.
bool windows_faster(const ConvShape& s, ConvOp op) {
  constexpr Index kFewNumbers = 32;
  const Index taps = s.kh * s.kw;
  if (op == ConvOp::weight_grad) return true;
  return (op == ConvOp::forward ? taps * s.c : taps * s.o / (s.stride_h * s.stride_w)) >= kFewNumbers;
}

StepPtr windows_forward(LowerCtx& ctx, const ConvShape& s, const void* bias, bool relu) {
  Phase p = make_phase(s.n, forward_windows(s), s.o, bias != nullptr);
  p.weights = onednn::packed(ctx, ctx.instr().inputs[1], matrix(kBf16, p.in.depth(), s.o), p.packed).get_data_handle();
  std::vector<Phase> phases;
  phases.push_back(std::move(p));
  return std::make_unique<ConvStep>(ctx, std::move(phases), ConvStep::Image{s.ho, s.wo, s.o}, bias, relu);
}

StepPtr windows_transposed(LowerCtx& ctx, const ConvShape& s) {
  std::vector<Phase> phases;
  for (Index p = 0; p < s.stride_h; ++p)
    for (Index q = 0; q < s.stride_w; ++q) {
      const PhaseAxis y(p, s.stride_h, s.kh, s.pad_top, s.h), x(q, s.stride_w, s.kw, s.pad_left, s.w);
      Phase phase = make_phase(s.n, {y.windows(s.ho), x.windows(s.wo), s.o}, s.c, false);
      phase.y_first = p, phase.y_step = s.stride_h, phase.x_first = q, phase.x_step = s.stride_w;
      phase.weights = pack_phase(ctx, s, y, x, phase.packed);
      phases.push_back(std::move(phase));
    }
  return std::make_unique<ConvStep>(ctx, std::move(phases), ConvStep::Image{s.h, s.w, s.c}, nullptr, false);
}

StepPtr windows_weight_grad(LowerCtx& ctx, const ConvShape& s) {
  return std::make_unique<WeightGradStep>(ctx, s, forward_windows(s));
}

}  // namespace sg::cpu
