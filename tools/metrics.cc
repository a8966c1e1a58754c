#include "tools/metrics.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <numeric>

#include "models/init.h"

namespace sg::tools {
namespace {

using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;

// A real (N,D) tensor as a matrix.
Matrix rows_of(const char* who, const Tensor& t, std::int64_t least) {
  if (t.dtype() == DType::i32 || t.shape().rank() != 2 || t.shape()[1] < 1)
    fail(ErrorKind::usage, "{}: a real matrix with one row for each image is needed, got {}", who, to_string(t.type()));
  const std::int64_t n = t.shape()[0], d = t.shape()[1];
  if (n < least) fail(ErrorKind::usage, "{}: {} rows, at least {} are needed", who, n, least);
  Matrix m(n, d);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < d; ++j) {
      m(i, j) = t.at(i * d + j);
      if (!std::isfinite(m(i, j))) fail(ErrorKind::usage, "{}: column {} of row {} is {}", who, j, i, m(i, j));
    }
  return m;
}

struct Moments {
  Vector mean;
  Matrix covariance;
};

Moments moments(Matrix rows) {
  const Vector mean = rows.colwise().mean();
  rows.rowwise() -= mean.transpose();
  return {mean, rows.transpose() * rows / static_cast<double>(rows.rows() - 1)};
}

// Rounding can make a zero eigenvalue of a covariance slightly negative.
Vector roots(const Vector& eigenvalues) { return eigenvalues.cwiseMax(0.0).cwiseSqrt(); }

}  // namespace

double perplexity(std::span<const double> counts) {
  const double all = std::accumulate(counts.begin(), counts.end(), 0.0);
  double entropy = 0;
  for (const double count : counts)
    if (count > 0) entropy -= count / all * std::log(count / all);
  return std::exp(entropy);
}

CodeUsage code_usage(const Tensor& tokens, std::int64_t codes, std::int64_t books, std::int64_t group,
                     std::int64_t window) {
  const auto all = tokens.span<std::int32_t>();
  const std::int64_t images = tokens.shape().rank() == 0 ? 0 : tokens.shape()[0];
  if (images < 1 || all.empty() || tokens.elements() / images % books != 0)
    fail(ErrorKind::usage, "code_usage: tokens {} are not those of images with {} books", to_string(tokens.type()),
         books);
  const std::int64_t places = tokens.elements() / images / books;  // of an image, in one book
  CodeUsage result;
  std::vector<double> total(static_cast<std::size_t>(codes));
  std::vector<std::int64_t> recent(total.size());
  for (std::int64_t book = 0; book < books; ++book) {
    const auto token = [&](std::int64_t i) {
      const std::int32_t code = all[static_cast<std::size_t>(i * books + book)];
      if (code < 0 || code >= codes)
        fail(ErrorKind::usage, "code_usage: token {} is {}, the codes are 0 to {}", i, code, codes - 1);
      return static_cast<std::size_t>(code);
    };
    // The mean, over the places of a window of `length` tokens moved by `stride`, of the codes seen in it.
    const auto windowed = [&](std::int64_t length, std::int64_t stride) {
      length = std::min(length, images * places);
      std::fill(recent.begin(), recent.end(), 0);
      std::int64_t seen = 0, windows = 0;
      double sum = 0;
      for (std::int64_t i = 0; i < images * places; ++i) {
        seen += recent[token(i)]++ == 0;
        if (i >= length) seen -= --recent[token(i - length)] == 0;
        if (i + 1 < length || (i + 1 - length) % stride != 0) continue;
        sum += static_cast<double>(seen), ++windows;
      }
      return sum / static_cast<double>(windows * codes * books);
    };
    result.per_256_images += windowed(group * places, group * places);
    result.per_65536_tokens += windowed(window, 1);
    std::fill(total.begin(), total.end(), 0.0);
    for (std::int64_t i = 0; i < images * places; ++i) ++total[token(i)];
    const auto used = std::count_if(total.begin(), total.end(), [](double count) { return count > 0; });
    result.over_set += static_cast<double>(used) / static_cast<double>(codes * books);
    result.perplexity += perplexity(total) / static_cast<double>(books);
  }
  return result;
}

double frechet_distance(const Tensor& a, const Tensor& b) {
  constexpr const char* kWho = "frechet_distance";
  const Moments ma = moments(rows_of(kWho, a, 2)), mb = moments(rows_of(kWho, b, 2));
  if (ma.mean.size() != mb.mean.size())
    fail(ErrorKind::usage, "{}: features of {} and of {} numbers: both sets must come from the same network", kWho,
         ma.mean.size(), mb.mean.size());
  const Eigen::SelfAdjointEigenSolver<Matrix> of_a(ma.covariance);
  const Matrix root = of_a.eigenvectors() * roots(of_a.eigenvalues()).asDiagonal() * of_a.eigenvectors().transpose();
  const Matrix product = root * mb.covariance * root;
  const Eigen::SelfAdjointEigenSolver<Matrix> of_product(0.5 * (product + product.transpose()), Eigen::EigenvaluesOnly);
  if (of_a.info() != Eigen::Success || of_product.info() != Eigen::Success)
    fail(ErrorKind::internal, "{}: the eigenvalues of a covariance were not found", kWho);
  return (ma.mean - mb.mean).squaredNorm() + ma.covariance.trace() + mb.covariance.trace() -
         2 * roots(of_product.eigenvalues()).sum();
}

InceptionScore inception_score(const Tensor& logits, std::int64_t splits, std::span<const std::int64_t> order) {
  if (splits < 1) fail(ErrorKind::usage, "inception_score: {} splits; at least 1 is needed", splits);
  const Matrix rows = rows_of("inception_score", logits, splits);
  const std::int64_t n = rows.rows();
  SG_CHECK(std::ssize(order) == n, "{}", std::ssize(order));
  // log p(y|x), without overflow whatever the logits' size
  Matrix log_p = rows.colwise() - rows.rowwise().maxCoeff();
  const Vector log_total = log_p.array().exp().rowwise().sum().log();
  log_p.colwise() -= log_total;

  std::vector<double> scores;
  for (std::int64_t s = 0; s < splits; ++s) {
    const std::int64_t first = s * n / splits, last = (s + 1) * n / splits;
    Vector marginal = Vector::Zero(rows.cols());
    for (std::int64_t i = first; i < last; ++i)
      marginal += log_p.row(order[static_cast<std::size_t>(i)]).array().exp().matrix().transpose();
    marginal /= static_cast<double>(last - first);
    double divergence = 0;
    for (std::int64_t i = first; i < last; ++i)
      for (std::int64_t c = 0; c < rows.cols(); ++c) {
        const double log_pc = log_p(order[static_cast<std::size_t>(i)], c), pc = std::exp(log_pc);
        if (pc > 0) divergence += pc * (log_pc - std::log(marginal(c)));  // p log p is 0 at 0
      }
    scores.push_back(std::exp(divergence / static_cast<double>(last - first)));
  }
  const Eigen::Map<const Vector> all(scores.data(), std::ssize(scores));
  const double mean = all.mean();
  return {mean, std::sqrt((all.array() - mean).square().mean())};
}

InceptionScore inception_score(const Tensor& logits, std::int64_t splits, std::uint32_t seed) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(logits.shape().rank() == 0 ? 0 : logits.shape()[0]));
  std::iota(order.begin(), order.end(), 0);
  HostRandom random(seed, "inception_score");
  for (std::size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(i)))]);
  return inception_score(logits, splits, order);
}

}  // namespace sg::tools
