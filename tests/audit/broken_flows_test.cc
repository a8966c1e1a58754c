// Graphs that are wrong in the way in which real code was, each named by the audit or by a contract on flows, and the
// corrected twin of each, which raises nothing. "Reference" is the project's survey of vector quantization: sections
// 3.5 (found by reading lucidrains/vector-quantize-pytorch), 3.6 (issue threads) and 10 (what users fail to get).
#include "ops/estimators.h"
#include "ops/random.h"
#include "ops/shape_ops.h"
#include "tests/audit/toy.h"

namespace sg::test {
namespace {

constexpr bool kBroken = true, kFixed = false;

// showlab/Olaf-World 8, andylolu2/jax-vqvae-gpt 2: the codebook loss is computed on the straight-through output. The
// codebook never trains, and the reconstruction still falls.
TEST(BrokenGraphs, OlafWorld8CodebookLossOnTheStraightThroughOutput) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    const unsigned ste = __LINE__ + 1;
    const Value z_q = toy.z + stop_gradient(toy.q - toy.z);
    toy.reconstruct(z_q);
    toy.add("codebook", codebook_loss(toy.z, broken ? z_q : toy.q));
    toy.add("commitment", commitment_loss(toy.z, toy.q));
    if (!broken) {
      expect_clean(toy.look(), vqvae_flows());
      continue;
    }
    expect_named(toy.look().problems(), {"'quantizer.codebook' gets no gradient from any loss term",
                                         "codebook: blocked by", "stop_gradient", "broken_flows_test.cc" + SG_AT(ste)});
    expect_named(violations(toy.look(), vqvae_flows()),
                 {"'codebook' is to train 'quantizer.codebook', but is blocked by", SG_AT(ste)});
    expect_named(violations(toy.look(), vqvae_flows()), {"'codebook' is not to train 'encoder.weight'"});
  }
}

// Reference 3.5 item 1 (learnable_codebook=True): one mse(q, z) with sg on neither side, so that the codebook and the
// commitment cannot be weighted apart.
TEST(BrokenGraphs, LearnableCodebookOneErrorWithoutAnyStop) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    toy.reconstruct(straight_through(toy.z, toy.q));
    toy.add("codebook", broken ? mean_squared_error(toy.q, toy.z) : codebook_loss(toy.z, toy.q));
    toy.add("commitment", commitment_loss(toy.z, toy.q));
    if (broken)
      expect_named(violations(toy.look(), vqvae_flows()),
                   {"'codebook' is not to train 'encoder.weight', but its gradient arrives there"});
    else
      expect_clean(toy.look(), vqvae_flows());
  }
}

// Reference 3.5 item 2 (sync_update_v): the codebook shall get nu g through z_q, and gets nothing, for the rule was
// applied after the estimator. (What the encoder gets is in broken_jacobians_test.cc.)
TEST(BrokenGraphs, SyncRuleAfterTheEstimatorLeavesTheCodebookOut) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    const unsigned ste = __LINE__ + 1;
    Value z_q = toy.z + stop_gradient(toy.q - toy.z);
    const Value synchronised = broken ? z_q : toy.q;
    z_q = z_q + 0.3 * (synchronised - stop_gradient(synchronised));
    toy.reconstruct(z_q);
    const FlowExpectation wanted[] = {{"reconstruction", "*", FlowIs::live}};
    if (broken)
      expect_named(violations(toy.look(), wanted), {"'quantizer.codebook', but is blocked by", SG_AT(ste)});
    else
      expect_clean(toy.look(), {wanted[0]});
  }
}

// CompVis/taming-transformers 46, 57, 58: beta, which is meant to weigh the commitment, multiplies the codebook's term.
TEST(BrokenGraphs, TamingLegacyBetaOnTheWrongTerm) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    toy.reconstruct(straight_through(toy.z, toy.q));
    const double beta = 0.25;
    const Value holds_z = mean(square(toy.z - stop_gradient(toy.q)));
    const unsigned line = __LINE__ + 1;
    const Value moves_q = mean(square(toy.q - stop_gradient(toy.z)));
    toy.add("commitment", beta * (broken ? moves_q : holds_z));
    toy.add("codebook", broken ? holds_z : moves_q);
    if (broken) {
      expect_named(violations(toy.look(), vqvae_flows()),
                   {"'commitment' is to train 'encoder.weight', but is blocked by", "stop_gradient", SG_AT(line)});
      expect_named(violations(toy.look(), vqvae_flows()), {"'commitment' is not to train 'quantizer.codebook'"});
    } else {
      expect_clean(toy.look(), vqvae_flows());
    }
  }
}

// yangdongchao/RSTnet 2: the straight-through copy is forgotten, the decoder sees the looked-up codes.
TEST(BrokenGraphs, RstNet2StraightThroughCopyForgotten) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    toy.reconstruct(broken ? toy.q : straight_through(toy.z, toy.q));
    toy.usual_losses();
    const Audit audit = toy.look();
    if (broken) {
      expect_named(violations(audit, vqvae_flows()),
                   {"'reconstruction' is to train 'encoder.weight', but is blocked by", "nearest_code", "toy.h"});
      expect_named(violations(audit, vqvae_flows()), {"'reconstruction' is not to train 'quantizer.codebook'"});
    } else {
      expect_clean(audit, vqvae_flows());
    }
  }
}

// The same with nothing else to hold the encoder: it does not train at all.
TEST(BrokenGraphs, RstNet2WithoutCommitmentTheEncoderIsLost) {
  Toy toy;
  toy.reconstruct(toy.q);
  toy.add("codebook", codebook_loss(toy.z, toy.q));
  expect_named(toy.look().problems(),
               {"'encoder.weight' gets no gradient", "reconstruction: blocked by", "nearest_code"});
}

// Reference 3.5 item 6: orthogonal regularisation (any loss) trains the codebook, and the moving average overwrites it.
TEST(BrokenGraphs, MovingAverageOverwritesALearnableCodebook) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    toy.reconstruct(straight_through(toy.z, toy.q));
    toy.add("commitment", commitment_loss(toy.z, toy.q));
    if (broken) toy.add("orthogonality", mean(square(matmul(toy.codes, toy.codes, false, true))));
    const std::vector<Value> values =
        toy.updated(broken ? std::vector<Variable*>{&toy.encoder, &toy.decoder, &toy.codebook}
                           : std::vector<Variable*>{&toy.encoder, &toy.decoder});
    toy.tape.assign(toy.encoder, values[0]);
    toy.tape.assign(toy.decoder, values[1]);
    const unsigned line = __LINE__ + 1;
    toy.tape.assign(toy.codebook, 0.8 * toy.codes + 0.2 * scatter_add_rows(toy.indices, toy.z, 5));
    if (broken) {
      expect_named(toy.look().problems(),
                   {"'quantizer.codebook' is overwritten", SG_AT(line), "without any gradient", "'orthogonality'"});
    } else {
      toy.parameters = {&toy.encoder, &toy.decoder};
      toy.state = {&toy.codebook};
      expect_clean(toy.look());
    }
  }
}

// facebookresearch/encodec 25: the next level sees r - STE(r), whose gradient in r is I - I = 0.
TEST(BrokenGraphs, Encodec25ResidualOfTheStraightThroughOutput) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    Variable second("quantizer.second.codebook", normals({5, 3}, 9));
    toy.parameters.push_back(&second);
    const Value z_q = straight_through(toy.z, toy.q);
    const unsigned line = __LINE__ + 1;
    const Value rest = toy.z - (broken ? z_q : stop_gradient(toy.q));
    const Value codes = toy.tape.read(second), q = gather_rows(codes, nearest_code(rest, codes));
    toy.reconstruct(broken ? z_q + straight_through(rest, q) : straight_through(toy.z, toy.q + q));
    toy.usual_losses();
    toy.add("codebook of level 2", codebook_loss(rest, q));
    toy.add("commitment of level 2", commitment_loss(rest, q));
    std::vector<FlowExpectation> wanted = vqvae_flows();
    wanted.push_back({"commitment of level 2", "encoder.*", FlowIs::live});
    wanted.push_back({"codebook of level 2", "*.second.*", FlowIs::live});
    if (broken)
      expect_named(violations(toy.look(), wanted), {"'commitment of level 2' is to train 'encoder.weight'",
                                                    "zero whatever the numbers are", "sub", SG_AT(line)});
    else
      expect_clean(toy.look(), wanted);
  }
}

// SimVQ (2411.02038) trains W of C = sg[E] W. Reference 10 item 1: here the stop is around the product.
TEST(BrokenGraphs, SimVqStopAroundTheProductCutsW) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    Variable frozen("quantizer.frozen", normals({5, 3}, 9)), w("quantizer.w", normals({3, 3}, 10));
    toy.parameters = {&toy.encoder, &toy.decoder, &w};
    toy.state = {&frozen};
    const Value e = toy.tape.read(frozen);
    const Value w_read = toy.tape.read(w);
    const unsigned line = __LINE__ + 1;
    const Value codes = broken ? stop_gradient(matmul(e, w_read)) : matmul(stop_gradient(e), w_read);
    const Value q = gather_rows(codes, nearest_code(toy.z, codes));
    toy.reconstruct(straight_through(toy.z, q));
    toy.add("codebook", codebook_loss(toy.z, q));
    toy.add("commitment", commitment_loss(toy.z, q));
    if (broken)
      expect_named(toy.look().problems(), {"'quantizer.w' gets no gradient", "codebook: blocked by", SG_AT(line)});
    else
      expect_clean(toy.look(), {{"codebook", "*.w", FlowIs::live}, {"*", "*.frozen", FlowIs::not_live}});
  }
}

// Reference 3.5 item 3 (LatentQuantize, 2305.18378): the values per latent dimension appear only inside a detach.
TEST(BrokenGraphs, LatentQuantizeValuesOnlyInsideADetach) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    Variable levels("quantizer.levels", normals({3, 4}, 9));  // four values for each of three dimensions
    toy.parameters = {&toy.encoder, &toy.decoder, &levels};
    const Value distance = abs(reshape(toy.z, Shape{6, 3, 1}) - toy.tape.read(levels));
    const Value pick = one_hot(argmin(distance), 4, DType::f64);
    const Value q = sum(pick * toy.tape.read(levels), {-1});
    const unsigned ste = __LINE__ + 1;
    toy.reconstruct(toy.z + stop_gradient(q - toy.z));
    toy.add("values", broken ? mean_squared_error(toy.z, stop_gradient(q)) : codebook_loss(toy.z, q));
    if (broken)
      expect_named(toy.look().problems(),
                   {"'quantizer.levels' gets no gradient", "reconstruction: blocked by", SG_AT(ste)});
    else
      expect_clean(toy.look(), {{"values", "*.levels", FlowIs::live}, {"values", "encoder.*", FlowIs::not_live}});
  }
}

// Reference 3.5 item 5: the masked commitment compares q with the input as it was before the projection.
TEST(BrokenGraphs, MaskedCommitmentOnTheInputBeforeTheProjection) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    Variable projection("quantizer.project_in", normals({3, 3}, 9));
    toy.parameters.push_back(&projection);
    const Value projected = matmul(toy.z, toy.tape.read(projection));
    const Value q = gather_rows(toy.codes, nearest_code(projected, toy.codes));
    toy.reconstruct(straight_through(projected, q));
    toy.add("codebook", codebook_loss(projected, q));
    toy.add("commitment", commitment_loss(broken ? toy.z : projected, q));
    std::vector<FlowExpectation> wanted = vqvae_flows();
    wanted.push_back({"commitment", "*.project_in", FlowIs::live});
    if (broken)
      expect_named(violations(toy.look(), wanted),
                   {"'commitment' is to train 'quantizer.project_in', but ", "blocked by", "nearest_code"});
    else
      expect_clean(toy.look(), wanted);
  }
}

// lucidrains 20, 40, 47, 84: "is the codebook trained?" It has a gradient, and is in no optimizer.
TEST(BrokenGraphs, CodebookLeftOutOfTheOptimizer) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    toy.reconstruct(straight_through(toy.z, toy.q));
    toy.usual_losses();
    toy.train(broken ? std::vector<Variable*>{&toy.encoder, &toy.decoder} : toy.parameters);
    if (broken)
      expect_named(toy.look().problems(),
                   {"'quantizer.codebook' gets a gradient from 'codebook' but is never assigned", "optimizer"});
    else
      expect_clean(toy.look(), vqvae_flows());
  }
}

// EdoardoBotta/RQ-VAE-Recommender PR26: parameters whose gradient is None go through the optimizer all the same. Here:
// IfUnreachable::zero, clipping and Adam with weight decay, and the codebook only decays.
TEST(BrokenGraphs, RecommenderPr26UnreachableParametersPassTheOptimizer) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    toy.reconstruct(straight_through(toy.z, toy.q));
    const unsigned line = __LINE__ + 1;
    toy.add("codebook", mean(square((broken ? stop_gradient(toy.q) : toy.q) - stop_gradient(toy.z))));
    toy.add("commitment", commitment_loss(toy.z, toy.q));
    std::vector<Value> wrt;
    for (Variable* p : toy.parameters) wrt.push_back(toy.tape.read(*p));
    const auto clipped = clip_by_global_norm(gradients(toy.total(), wrt, IfUnreachable::zero), 1.0);
    Adam adam(toy.parameters, {.weight_decay = 1e-4});
    const unsigned update = __LINE__ + 1;
    adam.apply(toy.tape, clipped.grads, toy.tape.input("rate", {DType::f64, {}}));
    for (Variable* v : adam.state()) toy.state.push_back(v);
    if (broken)
      expect_named(toy.look().problems(),
                   {"'quantizer.codebook' gets no gradient", SG_AT(update), "depends on itself and on numbers only",
                    "codebook: blocked by", SG_AT(line)});
    else
      expect_clean(toy.look(), vqvae_flows());
  }
}

// ritheshkumar95/pytorch-vqvae 7, 14: z is detached on its way into the estimator, the encoder hears nothing.
TEST(BrokenGraphs, EncoderOutputDetachedBeforeTheEstimator) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    const unsigned line = __LINE__ + 1;
    const Value z = broken ? stop_gradient(toy.z) : toy.z;
    toy.reconstruct(straight_through(z, toy.q));
    toy.add("codebook", codebook_loss(z, toy.q));
    toy.add("commitment", commitment_loss(z, toy.q));
    if (broken)
      expect_named(toy.look().problems(), {"'encoder.weight' gets no gradient", "reconstruction: blocked by",
                                           "commitment: blocked by", SG_AT(line)});
    else
      expect_clean(toy.look(), vqvae_flows());
  }
}

// CompVis/taming-transformers 44, 73, 93: disc_factor is 0 for both players before disc_start, so the discriminator is
// untrained when it sets in.
TEST(BrokenGraphs, TamingDiscriminatorWeightedByZeroBeforeItsStart) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    Variable discriminator("discriminator.weight", normals({4, 1}, 9));
    toy.parameters.push_back(&discriminator);
    const Value z_q = straight_through(toy.z, toy.q);
    toy.reconstruct(z_q);
    toy.usual_losses();
    const auto judged = [&](Value images) { return matmul(images, toy.tape.read(discriminator)); };
    const Value hinge = mean(relu(1.0 - judged(toy.x))) + mean(relu(1.0 + judged(stop_gradient(toy.decode(z_q)))));
    const unsigned line = __LINE__ + 1;
    toy.add("discriminator", (broken ? 0.0 : 0.5) * hinge);
    if (broken)
      expect_named(toy.look().problems(), {"'discriminator.weight' gets no gradient",
                                           "discriminator: the gradient is zero", "mul", SG_AT(line)});
    else
      expect_clean(toy.look(), {{"discriminator", "discriminator.*", FlowIs::live}});
  }
}

// Reference 6: the discriminator's loss sees x^ without a stop and trains the generator to please it.
TEST(BrokenGraphs, DiscriminatorLossReachesTheGenerator) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    Variable discriminator("discriminator.weight", normals({4, 1}, 9));
    toy.parameters.push_back(&discriminator);
    const Value images = toy.decode(straight_through(toy.z, toy.q));
    toy.add("reconstruction", mean_squared_error(images, toy.x));
    toy.usual_losses();
    toy.add("discriminator",
            mean(relu(1.0 + matmul(broken ? images : stop_gradient(images), toy.tape.read(discriminator)))));
    std::vector<FlowExpectation> wanted = vqvae_flows();
    wanted.push_back({"discriminator", "*coder.*", FlowIs::not_live});
    if (broken)
      expect_named(violations(toy.look(), wanted),
                   {"'discriminator' is not to train 'decoder.weight', but its gradient arrives"});
    else
      expect_clean(toy.look(), wanted);
  }
}

// Fifty et al. 2410.06424, section 3 ("double fp"): the second decode is for the encoder alone. Without sg on the
// parameters it trains the decoder on unquantized rows; their code scales the loss by 1e-6 instead.
TEST(BrokenGraphs, ExactGradientTrainsTheDecoderOnUnquantizedRows) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    toy.reconstruct(stop_gradient(toy.q));
    const Value w = toy.tape.read(toy.decoder);
    toy.add("exact", mean_squared_error(matmul(toy.z, broken ? w : stop_gradient(w)), toy.x));
    toy.add("codebook", codebook_loss(toy.z, toy.q));
    const std::vector<FlowExpectation> wanted{{"exact", "encoder.*", FlowIs::live},
                                              {"exact", "decoder.*", FlowIs::blocked}};
    if (broken)
      expect_named(violations(toy.look(), wanted),
                   {"'exact' is to be blocked from 'decoder.weight', but its gradient arrives"});
    else
      expect_clean(toy.look(), wanted);
  }
}

// Gumbel-softmax (1611.01144) without the straight-through term: the hard sample alone passes nothing to the logits.
TEST(BrokenGraphs, GumbelHardSampleWithoutTheSoftOne) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    Variable head("encoder.logits", normals({3, 5}, 9));
    toy.parameters.push_back(&head);
    const Value logits = matmul(toy.z, toy.tape.read(head)), soft = exp(logits) / sum(exp(logits), {-1}, true);
    const unsigned line = __LINE__ + 1;
    const Value hard = one_hot(argmax(logits), 5, DType::f64);
    toy.reconstruct(matmul(broken ? hard : hard + soft - stop_gradient(soft), toy.codes));
    if (broken)
      expect_named(toy.look().problems(), {"'encoder.logits' gets no gradient", "argmax", SG_AT(line)});
    else
      expect_clean(toy.look());
  }
}

// lucidrains 97, 110: both terms stop the codes, none stops z; with the weights beta and gamma all looks right.
TEST(BrokenGraphs, StopOnTheCodesInBothTerms) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    toy.reconstruct(straight_through(toy.z, toy.q));
    const unsigned line = __LINE__ + 1;
    toy.add("codebook", broken ? mean_squared_error(stop_gradient(toy.q), toy.z) : codebook_loss(toy.z, toy.q));
    toy.add("commitment", commitment_loss(toy.z, toy.q));
    if (broken)
      expect_named(toy.look().problems(),
                   {"'quantizer.codebook' gets no gradient", "codebook: blocked by", SG_AT(line)});
    else
      expect_clean(toy.look(), vqvae_flows());
  }
}

// Reference 10 item 8 (state updates outside the graph): the average's count is kept by nobody, so Laplace smoothing
// divides by what it was at the start.
TEST(BrokenGraphs, StateThatNobodyReadsOrWrites) {
  for (const bool broken : {kBroken, kFixed}) {
    Toy toy;
    Variable count("quantizer.count", Tensor::full({DType::f64, {5}}, 1));
    toy.state = {&count};
    toy.reconstruct(straight_through(toy.z, toy.q));
    toy.usual_losses();
    toy.train(toy.parameters);
    if (!broken) toy.tape.assign(count, 0.9 * toy.tape.read(count) + 0.1 * cast(histogram(toy.indices, 5), DType::f64));
    if (broken)
      expect_named(toy.look().problems(), {"state 'quantizer.count' is neither read nor assigned"});
    else
      expect_clean(toy.look(), vqvae_flows());
  }
}

}  // namespace
}  // namespace sg::test
