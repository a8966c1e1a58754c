// How the work of a row program is shared out among threads, and how its sums over rows come together.
#pragma once
#include <omp.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <utility>
#include <vector>

#include "backends/cpu/lowering.h"

namespace sg::cpu {

constexpr Index kMaxChunks = 64;

// A sum over rows: where it is among the folds of a chunk, and where it goes.
struct Fold {
  std::size_t offset;
  Index count;
  void* out;
  bool of_segment;  // one such sum per segment: out has them one after the other
};

// How a row program is shared out: its tiles or blocks in chunks that depend on their number alone, a scratch for each
// thread, and partial sums in double for each chunk, which are added in the order of the chunks. T: type of the sums.
//
// Pieces are those of `segments` equal runs, one run after the other. A chunk takes whole runs, or, where these are
// few, a part of one.
template <class T>
class Chunks {
 public:
  Chunks() = default;
  // work: elements times ops; below `parallel` it is not worth waking a thread for.
  Chunks(LowerCtx& ctx, Index pieces, Index segments, std::size_t thread_bytes, std::size_t fold_doubles,
         std::vector<Fold> sums, Index work, Index parallel)
      : pieces_(pieces),
        of_segment_(pieces / segments),
        thread_bytes_(align64(thread_bytes)),
        fold_doubles_(fold_doubles),
        sums_(std::move(sums)) {
    if (segments == 1 || segments >= kMaxChunks) {
      const Index units = segments == 1 ? pieces : segments;
      per_chunk_ = ceil_div(units, std::min(units, kMaxChunks)) * (pieces / units);
      chunks_ = ceil_div(pieces, per_chunk_);
      chunks_of_segment_ = segments == 1 ? chunks_ : 1;
    } else {
      per_chunk_ = ceil_div(of_segment_, std::min(of_segment_, ceil_div(kMaxChunks, segments)));
      chunks_of_segment_ = ceil_div(of_segment_, per_chunk_);
      chunks_ = segments * chunks_of_segment_;
    }
    whole_segments_ = segments >= kMaxChunks;
    all_threads_ = omp_get_max_threads();
    threads_ = work < parallel ? 1 : all_threads_;
    work_ = work;
    fold_bytes_ = align64(fold_doubles * sizeof(double));
    scratch_ = Scratch(ctx, thread_bytes_ * ix(all_threads_) + fold_bytes_ * ix(chunks_));
  }

  // f(piece, scratch of the thread, folds of the chunk) for all pieces, then the sums to their places.
  template <class F>
  void run(F&& f) const {
    const int threads = std::min<int>(static_cast<int>(threads_), omp_get_max_threads());
    if (threads == 1 || chunks_ == 1) {
      for (Index c = 0; c < chunks_; ++c) run_chunk(c, 0, f);
    } else {
#pragma omp parallel for schedule(static) num_threads(threads)
      for (Index c = 0; c < chunks_; ++c) run_chunk(c, omp_get_thread_num(), f);
    }
    combine();
  }

  // The same in the caller's order, by threads below omp_get_max_threads(): every chunk, then combine() ...
  Index chunks() const { return chunks_; }
  template <class F>
  void run_chunk(Index c, int thread, F&& f) const {
    double* const part = folds(c);
    std::fill_n(part, fold_doubles_, 0.0);
    const auto [begin, end] = pieces_of(c);
    for (Index k = begin; k < end; ++k) {
      f(k, scratch(thread), part);
      if (whole_segments_ && (k + 1) % of_segment_ == 0) finish_segment(k / of_segment_, part);
    }
    fence();
  }
  void combine() const {
    for (const Fold& sum : sums_)
      if (!sum.of_segment)
        combine(sum, 0, chunks_, 0);
      else if (!whole_segments_)
        for (Index c = 0; c < chunks_; c += chunks_of_segment_)
          combine(sum, c, c + chunks_of_segment_, c / chunks_of_segment_);
  }

  // ... or every segment, in runs of unit() by one thread, then combine_rows(). The same bits: chunks do not change.
  Index unit() const { return whole_segments_ ? per_chunk_ / of_segment_ : 1; }
  template <class F>
  void run_segment(Index segment, int thread, F&& f) const {
    if (whole_segments_) {
      double* const part = folds(segment / unit());
      if (segment % unit() == 0) std::fill_n(part, fold_doubles_, 0.0);
      for (Index k = segment * of_segment_; k < (segment + 1) * of_segment_; ++k) f(k, scratch(thread), part);
      finish_segment(segment, part);
      return;
    }
    const Index first = segment * chunks_of_segment_, last = first + chunks_of_segment_;
    for (Index c = first; c < last; ++c) {
      std::fill_n(folds(c), fold_doubles_, 0.0);
      const auto [begin, end] = pieces_of(c);
      for (Index k = begin; k < end; ++k) f(k, scratch(thread), folds(c));
    }
    for (const Fold& sum : sums_)
      if (sum.of_segment) combine(sum, first, last, segment);
  }
  void combine_rows() const {
    for (const Fold& sum : sums_)
      if (!sum.of_segment) combine(sum, 0, chunks_, 0);
  }

  bool worth_threads() const { return threads_ > 1; }
  Index work() const { return work_; }
  // Generated code may write past the caches: before another thread reads what this one wrote.
  static void fence() {
#ifdef __SSE__
    _mm_sfence();
#endif
  }

 private:
  static std::size_t ix(Index i) { return static_cast<std::size_t>(i); }

  std::pair<Index, Index> pieces_of(Index chunk) const {
    if (whole_segments_ || chunks_of_segment_ == chunks_)
      return {chunk * per_chunk_, std::min(pieces_, (chunk + 1) * per_chunk_)};
    const Index segment = chunk / chunks_of_segment_, part = chunk % chunks_of_segment_;
    return {segment * of_segment_ + part * per_chunk_,
            segment * of_segment_ + std::min(of_segment_, (part + 1) * per_chunk_)};
  }

  // The sums of a segment that one chunk made all of; the next one begins at zero.
  void finish_segment(Index segment, double* part) const {
    for (const Fold& sum : sums_)
      if (sum.of_segment) {
        T* const y = static_cast<T*>(sum.out) + segment * sum.count;
        double* const from = part + sum.offset;
        for (Index k = 0; k < sum.count; ++k) y[k] = static_cast<T>(from[k]);
        std::fill_n(from, sum.count, 0.0);
      }
  }

  // out[at, k] = sum over chunks of their folds[offset + k].
  void combine(const Fold& sum, Index begin, Index end, Index at) const {
    T* const y = static_cast<T*>(sum.out) + at * sum.count;
    for (Index k = 0; k < sum.count; ++k) {
      double s = 0;
      for (Index c = begin; c < end; ++c) s += folds(c)[sum.offset + ix(k)];
      y[k] = static_cast<T>(s);
    }
  }

  std::byte* scratch(int thread) const { return scratch_.at<std::byte>(thread_bytes_ * ix(thread)); }
  double* folds(Index chunk) const {
    return scratch_.at<double>(thread_bytes_ * ix(all_threads_) + fold_bytes_ * ix(chunk));
  }
  Index pieces_ = 0, of_segment_ = 1, chunks_ = 1, per_chunk_ = 1, chunks_of_segment_ = 1;
  Index work_ = 0, threads_ = 1, all_threads_ = 1;  // that run() wakes; that there is scratch for
  bool whole_segments_ = false;                     // of a cut program: a chunk never has a part of one
  std::size_t thread_bytes_ = 0, fold_doubles_ = 0, fold_bytes_ = 0;
  std::vector<Fold> sums_;
  Scratch scratch_;
};

}  // namespace sg::cpu
