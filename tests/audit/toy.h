// A small VQ autoencoder, recorded line by line, for graphs that are wrong on purpose and for their corrected twins.
#pragma once
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "backends/backends.h"
#include "core/audit.h"
#include "core/autodiff.h"
#include "core/philox.h"
#include "models/losses.h"
#include "models/optim.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "tests/support/expect.h"

namespace sg::test {

inline Tensor normals(Shape shape, std::uint32_t seed) {
  Tensor t({DType::f64, shape});
  for (std::int64_t i = 0; i < t.elements(); ++i)
    t.set(i, normal_block(random_block(seed, 0, 0, static_cast<std::uint64_t>(i)))[0]);
  return t;
}

// x (6,4) -> z (6,3) -> q -> x^ (6,4), in float64. A test adds the estimator and the terms.
struct Toy {
  Variable encoder{"encoder.weight", normals({4, 3}, 1)}, codebook{"quantizer.codebook", normals({5, 3}, 2)},
      decoder{"decoder.weight", normals({3, 4}, 3)};
  std::vector<Variable*> parameters{&encoder, &codebook, &decoder}, state;
  Tape tape;
  Value x = tape.constant(normals({6, 4}, 4));
  Value z = matmul(x, tape.read(encoder));
  Value codes = tape.read(codebook);
  Value indices = nearest_code(z, codes);
  Value q = gather_rows(codes, indices);
  std::vector<AuditTerm> terms;

  Value decode(Value z_q) { return matmul(z_q, tape.read(decoder)); }
  Value add(std::string name, Value loss) {
    terms.push_back({std::move(name), loss});
    return loss;
  }
  void reconstruct(Value z_q) { add("reconstruction", mean_squared_error(decode(z_q), x)); }
  void usual_losses() {
    add("codebook", codebook_loss(z, q));
    add("commitment", commitment_loss(z, q));
  }
  Value total() const {
    Value sum = terms.front().loss;
    for (std::size_t t = 1; t < terms.size(); ++t) sum = sum + terms[t].loss;
    return sum;
  }
  // The new values of `trained` after a step of plain gradient descent on the total.
  std::vector<Value> updated(std::vector<Variable*> trained, IfUnreachable policy = IfUnreachable::error) {
    std::vector<Value> wrt;
    for (Variable* p : trained) wrt.push_back(tape.read(*p));
    const std::vector<Value> grads = gradients(total(), wrt, policy);
    return Sgd(std::move(trained)).update(tape, grads, tape.constant(0.1, {DType::f64, {}}));
  }
  void train(const std::vector<Variable*>& trained, IfUnreachable policy = IfUnreachable::error) {
    const std::vector<Value> values = updated(trained, policy);
    for (std::size_t i = 0; i < trained.size(); ++i) tape.assign(*trained[i], values[i]);
  }
  Audit look() const { return audit(tape, terms, parameters, state); }
};

// Who trains whom in a VQ-VAE whose codebook is trained by its loss (1711.00937, eq. 3).
inline std::vector<FlowExpectation> vqvae_flows() {
  return {{"reconstruction", "decoder.*", FlowIs::live},
          {"reconstruction", "encoder.*", FlowIs::live},
          {"reconstruction", "quantizer.codebook", FlowIs::not_live},
          {"codebook", "quantizer.codebook", FlowIs::live},
          {"codebook", "encoder.*", FlowIs::not_live},
          {"commitment", "encoder.*", FlowIs::live},
          {"commitment", "quantizer.codebook", FlowIs::not_live},
          {"co*", "decoder.*", FlowIs::unconnected}};
}

inline std::string joined(const std::vector<std::string>& messages) {
  std::string text;
  for (const std::string& m : messages) text += m + "\n";
  return text;
}

// One of the messages has all of the parts.
inline void expect_named(const std::vector<std::string>& messages, const std::vector<std::string>& parts) {
  for (const std::string& m : messages) {
    bool all = true;
    for (const std::string& part : parts) all = all && contains(m, part);
    if (all) return;
  }
  ADD_FAILURE() << "no message has all of: " << joined(parts) << "messages:\n" << joined(messages);
}

inline void expect_clean(const Audit& audit, const std::vector<FlowExpectation>& flows = {}) {
  EXPECT_EQ(joined(audit.problems()), "") << audit.to_string();
  EXPECT_EQ(joined(violations(audit, flows)), "") << audit.to_string();
}

}  // namespace sg::test

#define SG_AT(line) (":" + std::to_string(line))
