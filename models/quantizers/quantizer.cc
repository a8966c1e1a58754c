#include "models/quantizers/quantizer.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "models/quantizers/binary.h"
#include "models/quantizers/fsq.h"
#include "models/quantizers/grouped.h"
#include "models/quantizers/latent.h"
#include "models/quantizers/multi_scale.h"
#include "models/quantizers/none.h"
#include "models/quantizers/projected.h"
#include "models/quantizers/residual.h"
#include "models/quantizers/vector_quantizer.h"
#include "ops/elementwise.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

template <class Q>
QuantizerDef row(std::string name, std::string summary) {
  return {std::move(name), std::move(summary),
          [](Module& parent, std::string_view in_parent, const QuantizerConfig& config) -> std::unique_ptr<Quantizer> {
            return std::make_unique<Q>(parent, in_parent, config);
          }};
}

std::unique_ptr<Quantizer> make_cosine(Module& parent, std::string_view name, QuantizerConfig config) {
  config.metric = Metric::cosine;
  return std::make_unique<VectorQuantizer>(parent, name, std::move(config));
}

std::vector<QuantizerDef>& table() {
  static std::vector<QuantizerDef> rows = {
      row<VectorQuantizer>("vq", "one codebook, nearest code (1711.00937)"),
      {"cosine", "vq that compares directions: rows and codes divided by their lengths (2110.04627)", make_cosine},
      row<FactorisedQuantizer>("factorised", "vq in code_dim dimensions, between learned projections (2110.04627)"),
      {"multi-head", "rows cut into heads, with one codebook for all (shared_books) or one each", make_multi_head},
      {"product", "product quantization: rows cut into heads, a codebook for each", make_product},
      row<ResidualQuantizer>("residual", "levels of codebooks, each for what those before leave over (2107.03312)"),
      {"grouped-residual", "rows cut into heads, a residual quantizer for each (2305.02765)", make_grouped_residual},
      row<MultiScaleQuantizer>("multi-scale", "token maps of growing sides, coarse to fine (VAR, 2404.02905)"),
      row<RandomProjectionQuantizer>("random-projection", "frozen random projection and codes (BEST-RQ, 2202.01855)"),
      row<FiniteScalarQuantizer>("fsq", "each dimension bounded and rounded to its levels (2309.15505)"),
      row<SymmetricScalarQuantizer>("fsq-symmetric", "fsq with levels about 0, dithered in training (2411.19842)"),
      row<LookupFreeQuantizer>("lfq", "the sign of each dimension, with entropy losses (2310.05737)"),
      row<BinarySphericalQuantizer>("bsq", "lfq on the unit sphere (2406.07548)"),
      row<LatentQuantizer>("latent", "a small codebook of numbers for each dimension (2305.18378)"),
  };
  return rows;
}

}  // namespace

Value Quantized::total_loss() const {
  Value total;
  for (const LossTerm& term : losses) {
    if (term.weight == 0) continue;
    const Value weighted = term.weight == 1 ? term.value : term.weight * term.value;
    total = total.tape == nullptr ? weighted : total + weighted;
  }
  return total;
}

const LossTerm* Quantized::find(std::string_view name) const {
  const auto it = std::find_if(losses.begin(), losses.end(), [&](const LossTerm& t) { return t.name == name; });
  return it == losses.end() ? nullptr : &*it;
}

Value Quantized::loss(std::string_view name) const {
  if (const LossTerm* term = find(name)) return term->value;
  std::string known;
  for (const LossTerm& term : losses) known += (known.empty() ? "" : ", ") + term.name;
  fail(ErrorKind::usage, "quantizer: no loss '{}'; it has: {}", name, known.empty() ? "none" : known);
}

Shape Quantizer::index_shape(const Shape& z) const {
  std::vector<std::int64_t> dims(z.begin(), z.end() - 1);
  if (books() > 1) dims.push_back(books());
  return Shape(dims);
}

double Quantizer::bits_per_row() const {
  return static_cast<double>(books()) * std::log2(static_cast<double>(codes()));
}

std::string Quantizer::describe() const {
  return books() == 1 ? fmt::format("{} codes", codes()) : fmt::format("{} books of {} codes", books(), codes());
}

const std::vector<QuantizerDef>& quantizer_table() { return table(); }

std::vector<std::string> quantizer_names() {
  std::vector<std::string> names;
  for (const QuantizerDef& def : table()) names.push_back(def.name);
  return names;
}

void register_quantizer(QuantizerDef def) {
  if (def.name.empty() || !def.make)
    fail(ErrorKind::usage, "register_quantizer: '{}': name and make are needed", def.name);
  for (const QuantizerDef& known : table())
    if (known.name == def.name)
      fail(ErrorKind::usage, "register_quantizer: there is a quantizer '{}' already", def.name);
  table().push_back(std::move(def));
}

std::unique_ptr<Quantizer> make_quantizer(Module& parent, std::string_view name_in_parent,
                                          const QuantizerConfig& config) {
  if (config.quantizer == "none") return std::make_unique<NoQuantizer>(parent, name_in_parent, config);
  std::string known;
  for (const QuantizerDef& def : table()) {
    if (def.name == config.quantizer) return def.make(parent, name_in_parent, config);
    known += (known.empty() ? "" : ", ") + def.name;
  }
  fail(ErrorKind::usage, "unknown quantizer '{}'; there are: {}", config.quantizer, known);
}

Value flatten_mask(const QuantizeContext& context, Operand z) {
  if (!context.mask) return {};
  const Shape& shape = z.value().shape();
  const Shape rows(std::vector<std::int64_t>(shape.begin(), shape.end() - 1));
  if (context.mask.shape() != rows || context.mask.dtype() != DType::f32)
    throw Error(ErrorKind::shape,
                fmt::format("quantizer: mask is {}, rows of {} need {}", to_string(context.mask.type()),
                            to_string(z.value().type()), to_string(TensorType{DType::f32, rows})),
                z.loc());
  return rows.rank() == 1 ? context.mask : reshape(Operand(context.mask, z.loc()), std::vector<std::int64_t>{-1});
}

Value flatten_rows(Operand z) {
  const Value v = z.value();
  return v.shape().rank() == 2 ? v : reshape(z, std::vector<std::int64_t>{-1, v.shape()[-1]});
}

void check_dim(const Quantizer& q, std::string_view what, Operand z) {
  const Shape& shape = z.value().shape();
  if (shape.rank() < 2 || shape[-1] != q.dim())
    throw Error(
        ErrorKind::shape,
        fmt::format("{} '{}': input is {}, expected rows of {}", what, q.path(), to_string(z.value().type()), q.dim()),
        z.loc());
}

}  // namespace sg
