#include "ops/estimator_rows.h"

#include <cmath>

#include "core/error.h"
#include "ops/elementwise.h"
#include "ops/entropy.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/masks.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr double kKlWeight = 5e-4;  // of DALL-E 2102.12092 and taming-transformers

EstimatorDef row(std::string name, std::string formula, std::string jacobian, std::string source,
                 std::function<Value(const Lookup&)> estimate, std::vector<EstimatorParameter> parameters = {}) {
  EstimatorDef def;
  def.name = std::move(name);
  def.formula = std::move(formula);
  def.jacobian = std::move(jacobian);
  def.source = std::move(source);
  def.estimate = std::move(estimate);
  def.parameters = std::move(parameters);
  return def;
}

EstimatorDef rows_only(EstimatorDef def) {
  def.rows_only = true;
  return def;
}

EstimatorDef reaching_codes(EstimatorDef def) {
  def.reaches_codes = true;
  return def;
}

EstimatorDef rows_only(std::string name, Value (*function)(Value, Value), std::string formula, std::string jacobian,
                       std::string source) {
  return rows_only(row(std::move(name), std::move(formula), std::move(jacobian), std::move(source),
                       [function](const Lookup& l) { return function(l.z, l.q); }));
}

// ---- what the rows with noise or schedules take from a lookup

Value need(Value value, std::string_view estimator, std::string_view what) {
  if (!value) fail(ErrorKind::usage, "estimator {}: the lookup has no {}", estimator, what);
  return value;
}

Value normal_like(const Lookup& l, std::string_view estimator) {
  return normal(need(l.random, estimator, "random state"), l.z.shape(), l.z.dtype());
}

// -log(-log u), (N,K), the same numbers in `assign` and `estimate` of a lookup.
Value gumbel_noise(const Lookup& l) {
  const Value u = uniform_of(l.z, l.random, {l.z.shape()[0], l.codes.shape()[0]}, l.z.dtype());
  return -log(-log(maximum(u, 0x1p-25)));  // u = 0 stands for what lies below its first multiple
}

// A draw from softmax(-|z-c|^2 / tau) by the Gumbel-max trick; without a random state its mode, the nearest code.
Value draw_code(const Lookup& l, double tau) {
  if (!l.random) return nearest_code(l.z, l.codes);
  return argmax(distance_logits(l.z, l.codes) / tau + gumbel_noise(l));
}

// From `start` to `end` by equal factors as the run goes on.
Operand geometric(double start, double end, const Lookup& l) {
  if (!l.progress || start == end) return start;
  return start * exp(cast(l.progress, l.z.dtype()) * std::log(end / start));
}

// t of each segment between consecutive codes (K-1,1), the same numbers in `assign` and `estimate` of a lookup.
Value segment_positions(const Lookup& l) {
  const std::int64_t k = l.codes.shape()[0];
  if (k < 2) fail(ErrorKind::usage, "estimator sf-diveq: a codebook of {} has no segments between codes", k);
  return uniform_of(l.z, need(l.random, "sf-diveq", "random state"), {k - 1, 1}, l.z.dtype());
}

Value segment_starts(const Lookup& l) { return slice_axis(l.codes, 0, 0, l.codes.shape()[0] - 1); }
Value segment_ends(const Lookup& l) { return slice_axis(l.codes, 0, 1, l.codes.shape()[0]); }

// ---- losses

// Mean over rows of KL(softmax(-|z-c|^2) || uniform), in nats.
Value kl_to_uniform(const Lookup& l) {
  return std::log(static_cast<double>(l.codes.shape()[0])) - entropies(distance_logits(l.z, l.codes), l.mask).of_each;
}

// E[H(p)] - H(E[p]), p = softmax(z C^T / tau), in nats: each row certain, all codes in use.
Value certainty_and_diversity(const Lookup& l, double tau) {
  constexpr double kEps = 1e-5;  // in the logarithm, as in the authors' code
  const Entropies h = entropies(matmul(l.z, l.codes, false, true) / tau, l.mask, kEps);
  return h.of_each - h.of_mean;
}

// ---- rows

std::vector<EstimatorDef> linear() {
  return {
      reaching_codes(rows_only(row("sync", "z + sg[q - z] + nu (q - sg[q])", "I; nu I in q", "2305.08842",
                                   [](const Lookup& l) { return synchronized(l.z, l.q, l.arguments[0]); },
                                   {{"nu", 0.2, 0, 100}}))),
      rows_only("g-scalar", scaled_by_batch, "G z + sg[q - G z], G = mean|q| / mean|z|", "G",
                "2410.06424; kexue.fm 10489"),
      rows_only("g-diagonal", scaled_by_row, "G z + sg[q - G z], G = |q|/|z| of the row", "(|q|/|z|) I",
                "2410.06424; kexue.fm 10489"),
      rows_only("g-dense", rotation_by_matrix, "G z + sg[q - G z], G = (|q|/|z|) R as a matrix", "(|q|/|z|) R",
                "2410.06424; kexue.fm 10489"),
      rows_only("g-low-rank", rotation_by_low_rank, "G z + sg[q - G z], G = R as I + U V^T of rank 2", "R",
                "2410.06424; kexue.fm 10489"),
  };
}

std::vector<EstimatorDef> rotations() {
  std::vector<EstimatorDef> rows{
      rows_only("rotation", rotation_trick, "sg[(|q|/|z|) R] z, R the rotation of z/|z| onto q/|q|", "(|q|/|z|) R",
                "2410.06424"),
      rows_only("rotation-released", released_rotation, "sg[|q| R] z/|z| + sg[q - ..]", "(|q|/|z|) R (I - uu^T)",
                "2410.06424, code of tables 3 and 4"),
      rows_only("rotation-corrected", corrected_rotation, "sg[R] z + sg[q - R z]", "R", "2410.06424, table 6"),
      rows_only(row(
          "rotation-inverse", "sg[g R] z + sg[q - g R z], g = 1/(c |q-z|^2)", "R / (c |q-z|^2)", "2410.06424 A.9.2",
          [](const Lookup& l) { return inverse_distance_rotation(l.z, l.q, l.arguments[0]); }, {{"c", 8, 1e-6, 1e6}})),
      rows_only(row("two-parameter", "sg[(|q|/|z|)^a R] z + b sg[q - (|q|/|z|)^a R z]", "(|q|/|z|)^a R",
                    "reviews of 2410.06424",
                    [](const Lookup& l) { return two_parameter_rotation(l.z, l.q, l.arguments[0], l.arguments[1]); },
                    {{"a", 0.5, 0, 2}, {"b", 1, 0, 1}})),
      row("centred", "sg[G] (z - o) + sg[q - G (z - o)], G = (|q-o|/|z-o|) R, R of z-o onto q-o, o = mean of z",
          "(|q-o|/|z-o|) R", "not published",
          [](const Lookup& l) { return centred_rotation(l.z, l.q, need(l.origin, "centred", "origin")); }),
      rows_only("reflection", reflection, "sg[(|q|/|z|) (I - 2rr^T)] z, r = (u-v)/|u-v|", "(|q|/|z|) (I - 2rr^T)",
                "2410.06424 A.8"),
  };
  rows[4].exact_forward_if = [](const std::vector<double>& a) { return a[0] == 1 || a[1] == 1; };
  rows[5].needs_origin = true;
  return rows;
}

std::vector<EstimatorDef> by_distance() {
  std::vector<EstimatorDef> rows{
      rows_only(row("radius", "z + r sg[(q-z)/r], r = |q-z|^a", "I - a dd^T; a dd^T in q; d = (q-z)/|q-z|",
                    "follow-up of kexue.fm 10489; GRIT-VQ 2602.01140",
                    [](const Lookup& l) { return radius(l.z, l.q, l.arguments[0]); }, {{"a", 1, -4, 4}})),
      rows_only(row("diveq-detach", "z + |q-z| sg[(q-z)/|q-z|]", "I - dd^T; dd^T in q", "2509.26469",
                    [](const Lookup& l) { return radius(l.z, l.q, 1); })),
      row("nsvq", "z + |q-z| sg[e/|e|], e ~ N(0, I)", "I - ed^T; ed^T in q", "IEEE Access 2022, 9696322",
          [](const Lookup& l) { return nsvq(l.z, l.q, normal_like(l, "nsvq")); }),
      row("diveq", "z + |q-z| sg[(q-z+e)/|q-z+e|], e ~ N(0, variance I)", "I - fd^T; fd^T in q; f = (q-z+e)/|q-z+e|",
          "2509.26469",
          [](const Lookup& l) { return diveq(l.z, l.q, std::sqrt(l.arguments[0]) * normal_like(l, "diveq")); },
          {{"variance", 1e-3, 0, 100}}),
      row("sf-diveq", "z + |c-z| sg[(1-t) f] + |c'-z| sg[t f'], c, c' consecutive codes, t ~ U(0,1), f, f' as in diveq",
          "I - (1-t) fd^T - t f'd'^T; (1-t) fd^T in c, t f'd'^T in c'", "2509.26469; 2410.20573",
          [](const Lookup& l) {
            const Value t = segment_positions(l);
            // The last code starts no segment; an index that `assign` did not draw may name it.
            const Value i = minimum(l.indices, static_cast<double>(l.codes.shape()[0] - 2));
            return sf_diveq(l.z, gather_rows(segment_starts(l), i), gather_rows(segment_ends(l), i), gather_rows(t, i),
                            std::sqrt(l.arguments[0]) * normal_like(l, "sf-diveq"));
          },
          {{"variance", 1e-3, 0, 100}}),
  };
  for (EstimatorDef& def : rows) {
    def.reaches_codes = true;
    def.exact_forward = def.rows_only;
  }
  // The segment whose point c + t (c' - c) is nearest; it counts as its first code.
  rows.back().assign = [](const Lookup& l) {
    if (!l.random) return nearest_code(l.z, l.codes);
    const Value t = segment_positions(l), starts = segment_starts(l);
    return nearest_code(l.z, starts + t * (segment_ends(l) - starts));
  };
  return rows;
}

std::vector<EstimatorDef> soft() {
  EstimatorDef gumbel = row("gumbel", "(onehot + pi - sg[pi]) C, pi = softmax((l + gumbel)/tau), l = -|z-c|^2",
                            "(2/tau) Cov_pi(C)", "1611.01144; 1910.05453; 2102.12092",
                            [](const Lookup& l) {
                              return soft_one_hot(l.z, l.q, l.codes, geometric(l.arguments[0], l.arguments[1], l),
                                                  l.random ? gumbel_noise(l) : Value{});
                            },
                            {{"tau_start", 1, 1e-3, 1e3}, {"tau_end", 1.0 / 16, 1e-3, 1e3}});
  gumbel.assign = [](const Lookup& l) { return draw_code(l, 1); };
  gumbel.losses = [](const Lookup& l) {
    return std::vector<EstimatorDef::Term>{{"kl_to_uniform", kl_to_uniform(l), kKlWeight}};
  };

  EstimatorDef decoupled =
      row("decoupled", "(onehot + pi - sg[pi]) C, onehot ~ softmax(l/tau_f), pi = softmax(l/tau_b), l = -|z-c|^2",
          "(2/tau_b) Cov_pi(C)", "2410.13331",
          [](const Lookup& l) { return soft_one_hot(l.z, l.q, l.codes, l.arguments[1]); },
          {{"tau_f", 1, 1e-3, 1e3}, {"tau_b", 1, 1e-3, 1e3}});
  decoupled.assign = [](const Lookup& l) { return draw_code(l, l.arguments[0]); };

  EstimatorDef max =
      row("reinmax",
          "(onehot + p - sg[p]) C, p = 2 p1 - softmax(l)/2, p1 = softmax(sg[log((onehot + softmax(l/tau))/2) - l] + l)",
          "4 Cov_p1(C) - Cov_p0(C), p0 = softmax(l)", "2304.08612",
          [](const Lookup& l) { return reinmax(l.z, l.q, l.codes, l.arguments[0]); }, {{"tau", 1, 1e-3, 1e3}});
  max.assign = [](const Lookup& l) { return draw_code(l, 1); };

  EstimatorDef ibq =
      row("ibq", "(onehot + pi - sg[pi]) C, pi = softmax(l/tau), l = z C^T", "(1/tau) Cov_pi(C)", "2412.02692",
          [](const Lookup& l) { return index_backpropagation(l.z, l.q, l.codes, l.arguments[0]); },
          {{"tau", 1, 1e-3, 1e3}, {"entropy_weight", 0.05, 0, 100}, {"entropy_tau", 0.01, 1e-3, 1e3}});
  ibq.assign = [](const Lookup& l) { return argmax(matmul(l.z, l.codes, false, true)); };
  ibq.losses = [](const Lookup& l) {
    const Value z_q = index_backpropagation(l.z, l.q, l.codes, l.arguments[0]);
    return std::vector<EstimatorDef::Term>{{"soft_quantization", mean_of_rows(square(z_q - l.z), l.mask), 1},
                                           {"entropy", certainty_and_diversity(l, l.arguments[2]), l.arguments[1]}};
  };

  std::vector<EstimatorDef> rows{gumbel, decoupled, max, ibq};
  for (EstimatorDef& def : rows) def.reaches_codes = true;
  return rows;
}

std::vector<EstimatorDef> by_loss_term() {
  EstimatorDef hessian =
      row("hessian", "z + sg[q - z], and <sg[H(q)(z-q)], z> added to the loss", "I; the encoder gets g + H(q)(z-q)",
          "2410.06424, section 3", [](const Lookup& l) { return straight_through(l.z, l.q); });
  hessian.loss_term = [](Value loss, const Lookup& l, Value z_q) { return hessian_term(loss, l.z, l.q, z_q); };
  EstimatorDef exact =
      row("exact", "sg[q], and L(D(z)) with sg on all parameters added to the loss", "0; the encoder gets dL/dz at z",
          "2410.06424, section 3", [](const Lookup& l) { return stop_gradient(l.q); });
  exact.loss_term = [](Value loss, const Lookup& l, Value z_q) { return exact_gradient_term(loss, l.z, z_q); };
  return {hessian, exact};
}

}  // namespace

std::vector<EstimatorDef> built_in_estimators() {
  std::vector<EstimatorDef> rows{rows_only("ste", straight_through, "z + sg[q - z]", "I", "1308.3432, 1711.00937")};
  for (auto&& family : {rotations(), linear(), by_distance(), soft(), by_loss_term()})
    rows.insert(rows.end(), family.begin(), family.end());
  return rows;
}

}  // namespace sg
