#include "tools/tasks/image_task.h"

#include "core/error.h"

namespace sg::tools {
namespace {

// Of a checkpoint, or as drawn images are with these settings.
ImageSize size_without_data(const TaskSetup& setup) {
  ImageSize size;
  if (parse_image_size(setup.data_shape, size)) return size;
  if (!setup.data_shape.empty())
    fail(ErrorKind::io, "the checkpoint is for data of {}; {} is a model of images", setup.data_shape,
         setup.config.model);
  const std::int64_t side = setup.config.image_size > 0 ? setup.config.image_size : 28;
  return {side, side, setup.config.channels > 0 ? setup.config.channels : 1};
}

}  // namespace

ImageTask::ImageTask(const TaskSetup& setup)
    : Task(setup.config),
      data_(setup.data == nullptr ? nullptr : &setup.data->images(data_options(setup.config))),
      images_(data_ == nullptr ? size_without_data(setup) : size_of(data_->train)) {}

const Dataset& ImageTask::data() const {
  if (data_ == nullptr) fail(ErrorKind::usage, "{}: made without data, which are needed here", config().model);
  return *data_;
}

std::int64_t ImageTask::steps_per_epoch() const {
  return BatchOrder(data().train.count, config().batch, seed()).steps_per_epoch();
}

Tensor ImageTask::batch_of(std::int64_t step) const {
  Tensor batch({DType::f32, {config().batch, images_.height, images_.width, images_.channels}});
  BatchOrder order(data().train.count, config().batch, seed());
  copy_images(data().train, order.indices(step), batch);
  return batch;
}

void ImageTask::feed(Program& program, std::int64_t step) {
  if (loader_ == nullptr || next_step_ != step)
    loader_ = std::make_unique<Loader>(data().train, config().batch, seed(), step);
  program.feed("images", loader_->next());
  next_step_ = step + 1;
}

std::string ImageTask::described_data() const {
  return fmt::format("{}: {} training and {} test images of {} ({})", data().name, data().train.count,
                     data().test.count, to_string(images_), data().origin);
}

std::string ImageTask::evaluated_on() const {
  return fmt::format("all {} test images of {}", data().test.count, data().name);
}

}  // namespace sg::tools
