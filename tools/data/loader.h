// Loader: batches of shuffled images, converted on a thread of its own while the step before runs.
// The images of step s are a function of (seed, s, batch, data set) alone: nothing has to be saved to resume.
#pragma once
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "core/tensor.h"
#include "tools/data/dataset.h"

namespace sg::tools {

// Which images step `step` (from 0) trains on: each epoch is a fresh permutation, its last incomplete batch is left
// out.
class BatchOrder {
 public:
  BatchOrder(std::int64_t images, std::int64_t batch, std::uint32_t seed);
  std::int64_t steps_per_epoch() const { return steps_per_epoch_; }
  std::span<const std::int32_t> indices(std::int64_t step);  // valid until the next call

 private:
  std::int64_t batch_, steps_per_epoch_, epoch_ = -1;
  std::uint32_t seed_;
  std::vector<std::int32_t> order_;
};

// Writes the images as f32 in [0,1] into batch (indices.size(), H, W, C).
void copy_images(const ImageSet& set, std::span<const std::int32_t> indices, Tensor& batch);

class Loader {
 public:
  // `images` must outlive the loader. Error{usage} where the batch is larger than the set.
  Loader(const ImageSet& images, std::int64_t batch, std::uint32_t seed, std::int64_t first_step);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  const Tensor& next();  // the batch of the next step; valid until the next call
  std::int64_t steps_per_epoch() const { return order_.steps_per_epoch(); }

 private:
  static constexpr std::size_t kBuffers = 3;  // one in use, one ready, one being filled
  void fill();

  const ImageSet& images_;
  BatchOrder order_;
  std::vector<Tensor> buffers_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::int64_t filled_, taken_;  // steps whose batch is ready; steps handed out
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace sg::tools
