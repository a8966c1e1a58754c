// What tasks on images share: the data set, its batches in the order of Loader, sizes without data.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tools/data/loader.h"
#include "tools/judge.h"
#include "tools/session.h"
#include "tools/task.h"

namespace sg::tools {

class ImageTask : public Task {
 public:
  // Error{io}: the data cannot be read.
  explicit ImageTask(const TaskSetup& setup);

  std::string data_shape() const override { return to_string(images_); }
  std::int64_t steps_per_epoch() const override;  // Error{usage}: a batch larger than the data set
  std::string unit() const override { return "images"; }
  void feed(Program& program, std::int64_t step) override;  // to the input "images"
  void end_feeding() override { loader_.reset(); }
  std::string evaluated_on() const override;
  // Who judges the model's images in evaluate(). Nobody until this is called.
  void add_judge(ImageJudge judge) { judges_.push_back(std::move(judge)); }

 protected:
  std::span<const ImageJudge> judges() const { return judges_; }
  const Dataset& data() const;  // Error{usage}: made without data
  const ImageSize& images() const { return images_; }
  std::uint32_t seed() const { return static_cast<std::uint32_t>(config().seed); }
  Tensor batch_of(std::int64_t step) const;  // the images that feed() feeds
  std::string described_data() const;        // "fashion-mnist: 60000 training and 10000 test images of 28x28x1 (...)"

 private:
  const Dataset* data_;
  ImageSize images_;
  std::unique_ptr<Loader> loader_;
  std::vector<ImageJudge> judges_;
  std::int64_t next_step_ = 0;  // that the loader gives
};

}  // namespace sg::tools
