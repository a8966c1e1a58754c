#include "tools/data/loader.h"

#include <array>
#include <numeric>

#include "core/philox.h"

namespace sg::tools {
namespace {

constexpr std::uint32_t kShuffleStream = 0x73687566;  // apart from the streams of instructions

}  // namespace

BatchOrder::BatchOrder(std::int64_t images, std::int64_t batch, std::uint32_t seed)
    : batch_(batch),
      steps_per_epoch_(batch > 0 ? images / batch : 0),
      seed_(seed),
      order_(static_cast<std::size_t>(images)) {
  if (batch < 1) fail(ErrorKind::usage, "batch is {}; it must be at least 1", batch);
  if (steps_per_epoch_ < 1)
    fail(ErrorKind::usage, "batch is {}, but the training set has only {} images; use --batch {} or less", batch,
         images, images);
}

std::span<const std::int32_t> BatchOrder::indices(std::int64_t step) {
  const std::int64_t epoch = step / steps_per_epoch_;
  if (epoch != epoch_) {
    std::iota(order_.begin(), order_.end(), 0);
    for (std::size_t i = order_.size() - 1; i > 0; --i) {
      const PhiloxBlock r = random_block(seed_, static_cast<std::uint32_t>(epoch), kShuffleStream, i);
      const std::uint64_t wide = static_cast<std::uint64_t>(r[0]) << 32 | r[1];
      std::swap(order_[i], order_[static_cast<std::size_t>(wide % (i + 1))]);
    }
    epoch_ = epoch;
  }
  return std::span(order_).subspan(static_cast<std::size_t>(step % steps_per_epoch_ * batch_),
                                   static_cast<std::size_t>(batch_));
}

void copy_images(const ImageSet& set, std::span<const std::int32_t> indices, Tensor& batch) {
  static const std::array<float, 256> scaled = [] {
    std::array<float, 256> table{};
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>(i) / 255.0f;
    return table;
  }();
  float* out = batch.span<float>().data();
  SG_CHECK(batch.elements() == static_cast<std::int64_t>(indices.size() * set.image_bytes()));
  for (const std::int32_t index : indices)
    for (const std::uint8_t pixel : set.image(index)) *out++ = scaled[pixel];
}

Loader::Loader(const ImageSet& images, std::int64_t batch, std::uint32_t seed, std::int64_t first_step)
    : images_(images), order_(images.count, batch, seed), filled_(first_step), taken_(first_step) {
  for (std::size_t i = 0; i < kBuffers; ++i)
    buffers_.emplace_back(TensorType{DType::f32, {batch, images.height, images.width, images.channels}});
  thread_ = std::thread([this] { fill(); });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Loader::fill() {
  for (;;) {
    std::int64_t step = 0;
    {
      std::unique_lock lock(mutex_);
      // The batch handed out last stays untouched, so at most kBuffers - 1 others may be ready.
      changed_.wait(lock, [this] { return stop_ || filled_ - taken_ < static_cast<std::int64_t>(kBuffers) - 1; });
      if (stop_) return;
      step = filled_;
    }
    copy_images(images_, order_.indices(step), buffers_[static_cast<std::size_t>(step) % kBuffers]);
    {
      const std::lock_guard lock(mutex_);
      ++filled_;
    }
    changed_.notify_all();
  }
}

const Tensor& Loader::next() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return filled_ > taken_; });
  const Tensor& batch = buffers_[static_cast<std::size_t>(taken_++) % kBuffers];
  lock.unlock();
  changed_.notify_all();
  return batch;
}

}  // namespace sg::tools
