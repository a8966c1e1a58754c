// nearest_code: first the codes' starts (|c|^2 / 2) are computed, for the cosine also the codes at length 1, then the
// search keeps each row's best cost and code in registers. Nothing of size N x K is ever stored.
//
// Cost of code c for row z: |c|^2 / 2 - z.c, which orders codes as |z - c|^2 does; for the cosine, -z.c / |c|, and 0
// for a code of zeros. In f32 (f64 for f64; bf16 is widened), whatever tf32() says: the tensor cores only rule out
// codes that cannot be the nearest (the bound is proven in kernels/nearest_tensor.cu), so both kernels give the same
// indices.
//
// Facts of the kernels (tile of a block): exact, 128 rows x 64 codes by 256 threads of 8 x 4 products each;
// screened, 128 rows x 64 codes by 4 warps of 32 x 64, tf32 m16n8k8, two stages of cp.async. Neither has run on a GPU:
// the choice between them and the sizes of tiles are not tuned.
#include "backends/cuda/nearest.h"

#include <algorithm>
#include <atomic>

#include "backends/cuda/launches.h"

namespace sg::cuda {
namespace {

constexpr Index kRows = 128, kCodes = 64;  // of a tile, in both kernels
constexpr unsigned kThreads = 256;
constexpr Index kList = 16;           // codes that nearest_tensor.cu lists per row and part
constexpr Index kDepthOfTensor = 16;  // rows and codes are padded to multiples of it there
constexpr std::size_t kTermsBytes = 16, kCandidateBytes = 8;

constexpr std::uint8_t kNotForced = 0xff;
std::atomic<std::uint8_t> g_forced{kNotForced};

// Parts of a step's scratch memory, one after the other.
class Layout {
 public:
  std::size_t take(std::size_t bytes) {
    const std::size_t at = bytes_;
    bytes_ += align256(bytes);
    return at;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

// How often the codes are cut so that each multiprocessor gets two tiles of rows, where there are few.
Index parts_of(const Device& device, Index row_tiles, Index code_tiles) {
  const Index wanted = ceil_div(2 * device.multiprocessors(), std::max<Index>(row_tiles, 1));
  return std::clamp<Index>(wanted, 1, code_tiles);
}

// One search: what the launches have in common.
template <class T>
struct Search {
  Search(Device& on, LowerCtx& in)
      : device(on),
        ctx(in),
        stored(in.in_type(0).dtype),
        cosine(in.attrs().i("cosine") != 0),
        prepare(cosine || stored == DType::bf16),
        n(count31(in, in.in_type(0).shape[0])),
        d(count31(in, in.in_type(0).shape[1])),
        k(count31(in, in.in_type(1).shape[0])),
        row_tiles(ceil_div(n, kRows)),
        code_tiles(ceil_div(k, kCodes)),
        start_at(layout.take(std::size_t{k} * sizeof(T))),
        prepared_at(layout.take(prepare ? std::size_t{k} * d * sizeof(T) : 0)),
        step(std::make_unique<Launches>(on)) {}

  std::string type() const { return name_of(stored); }
  static Launch warp_each(unsigned items) { return {{(items + kThreads / 32 - 1) / (kThreads / 32)}, {kThreads}}; }

  // f(codes as they are searched for), after they have been prepared
  template <class F>
  void with_codes(const Scratch& scratch, F f) {
    const auto add = [&](auto there) {
      step->add("nearest", "prepare_codes_" + type(), warp_each(k), ctx.in<void>(1), scratch.at<T>(start_at), there, k,
                d, unsigned{cosine});
    };
    if (prepare) {
      add(scratch.at<T>(prepared_at));
      f(scratch.at<T>(prepared_at));
    } else {
      add(static_cast<T*>(nullptr));
      f(ctx.in<T>(1));
    }
  }

  // By exact products, all rows or those that `rows` names.
  template <class Codes, class Rows>
  void add_exact(const Scratch& scratch, Codes codes, Rows rows, Rows row_count, Index blocks, Index parts,
                 std::size_t costs_at, std::size_t found_at) {
    const auto costs = scratch.at<T>(costs_at);
    const auto found = scratch.at<unsigned>(found_at);
    const auto cut = static_cast<unsigned>(parts);
    step->add("nearest", "nearest_" + type(), Launch{{count31(ctx, blocks)}, {kThreads}}, ctx.in<void>(0), codes,
              scratch.at<T>(start_at), rows, row_count, ctx.out<int>(), costs, found, n, k, d, cut);
    if (parts > 1)
      step->add("nearest", "join_nearest_" + name_of(stored == DType::f64 ? DType::f64 : DType::f32), spread(n), costs,
                found, rows, row_count, ctx.out<int>(), n, cut);
  }

  Device& device;
  LowerCtx& ctx;
  const DType stored;
  const bool cosine, prepare;
  const unsigned n, d, k;
  const Index row_tiles, code_tiles;
  Layout layout;
  const std::size_t start_at, prepared_at;
  std::unique_ptr<Launches> step;
};

template <class T>
StepPtr lower_exact(Device& device, LowerCtx& ctx) {
  Search<T> s(device, ctx);
  const Index parts = parts_of(device, s.row_tiles, s.code_tiles);
  const std::size_t results = parts > 1 ? static_cast<std::size_t>(parts) * s.n : 0;
  const std::size_t costs_at = s.layout.take(results * sizeof(T)), found_at = s.layout.take(results * sizeof(unsigned));
  const Scratch scratch(ctx, s.layout.bytes());
  s.with_codes(scratch, [&](auto codes) {
    const unsigned* all = nullptr;
    s.add_exact(scratch, codes, all, all, s.row_tiles * parts, parts, costs_at, found_at);
  });
  return std::move(s.step);
}

StepPtr lower_screened(Device& device, LowerCtx& ctx) {
  constexpr Index kPartsOfMissed = 16;  // few rows are left as a rule: their search is cut along the codes
  Search<float> s(device, ctx);
  const std::size_t n = s.n, k = s.k;
  const Index parts = parts_of(device, s.row_tiles, s.code_tiles),
              missed_parts = std::min(kPartsOfMissed, s.code_tiles);
  const auto padded = count31(ctx, std::max<Index>(ceil_div(s.d, kDepthOfTensor), 1) * kDepthOfTensor);
  const auto part_rows = static_cast<std::size_t>(parts) * n;
  const auto missed_results = missed_parts > 1 ? static_cast<std::size_t>(missed_parts) * n : 0;

  Layout& layout = s.layout;
  const std::size_t rows_at = layout.take(n * padded * 4), codes_at = layout.take(k * padded * 4),
                    errors_at = layout.take(n * 4),
                    terms_at = layout.take(static_cast<std::size_t>(s.code_tiles * kCodes) * kTermsBytes),
                    lists_at = layout.take(part_rows * kList * kCandidateBytes), counts_at = layout.take(part_rows * 4),
                    limits_at = layout.take(part_rows * 4), missed_at = layout.take(n * 4),
                    missed_count_at = layout.take(4), costs_at = layout.take(missed_results * 4),
                    found_at = layout.take(missed_results * 4);
  const Scratch scratch(ctx, layout.bytes());
  const auto start = scratch.at<float>(s.start_at), rows = scratch.at<float>(rows_at),
             packed = scratch.at<float>(codes_at), errors = scratch.at<float>(errors_at),
             limits = scratch.at<float>(limits_at);
  const auto terms = scratch.at<void>(terms_at), lists = scratch.at<void>(lists_at);
  const auto counts = scratch.at<unsigned>(counts_at), missed = scratch.at<unsigned>(missed_at),
             missed_count = scratch.at<unsigned>(missed_count_at);
  const auto error = static_cast<float>(1.01 * (0x1p-10 + padded * 0x1p-21));  // A of the bound
  const auto cut = static_cast<unsigned>(parts);

  s.with_codes(scratch, [&](auto codes) {
    constexpr std::string_view kFile = "nearest_tensor";
    Launches& step = *s.step;
    step.zero(missed_count, 4);
    step.add(kFile, "pack_rows_" + s.type(), s.warp_each(s.n), ctx.in<void>(0), rows, errors, s.n, s.d, padded, error);
    step.add(kFile, "pack_codes", s.warp_each(count31(ctx, s.code_tiles * kCodes)), codes, start, packed, terms, s.k,
             s.d, padded);
    step.add(kFile, "screen_codes", Launch{{count31(ctx, s.row_tiles * parts)}, {128}}, rows, packed, errors, terms,
             lists, counts, limits, s.n, s.k, padded, cut);
    step.add(kFile, "rank_" + s.type(), s.warp_each(s.n), ctx.in<void>(0), codes, start, lists, counts, limits, missed,
             missed_count, ctx.out<int>(), s.n, s.d, cut);
    const Index blocks = std::min<Index>(s.row_tiles * missed_parts, 4 * device.multiprocessors());
    s.add_exact(scratch, codes, missed, missed_count, blocks, missed_parts, costs_at, found_at);
  });
  return std::move(s.step);
}

}  // namespace

// The screen pays where its own passes over rows and codes are small beside the products.
NearestKernel nearest_kernel(Index n, Index k, Index d) {
  if (const std::uint8_t forced = g_forced; forced != kNotForced) return static_cast<NearestKernel>(forced);
  constexpr Index kLeastDepth = 16, kMostDepth = 1 << 15, kLeastCodes = 256, kLeastPairs = 1 << 19;
  const bool screened = d >= kLeastDepth && d <= kMostDepth && k >= kLeastCodes && n * k >= kLeastPairs;
  return screened ? NearestKernel::screened : NearestKernel::exact;
}

void force_nearest_kernel(std::optional<NearestKernel> kernel) {
  g_forced = kernel ? static_cast<std::uint8_t>(*kernel) : kNotForced;
}

StepPtr lower_nearest_code(Device& device, LowerCtx& ctx) {
  const Shape& z = ctx.in_type(0).shape;
  if (z[0] == 0) return std::make_unique<Launches>(device);
  if (ctx.in_type(0).dtype == DType::f64) return lower_exact<double>(device, ctx);
  const NearestKernel kernel = nearest_kernel(z[0], ctx.in_type(1).shape[0], z[1]);
  return kernel == NearestKernel::screened ? lower_screened(device, ctx) : lower_exact<float>(device, ctx);
}

}  // namespace sg::cuda
