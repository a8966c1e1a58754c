#include "tools/judge.h"

#include "core/error.h"
#include "models/classifier.h"
#include "models/inception.h"

namespace sg::tools {

ImageJudge classifier_judge(std::shared_ptr<const Classifier> classifier, const std::string& run) {
  ImageJudge judge;
  judge.distance = "fid_classifier_features", judge.distance_name = "FID (classifier features)";
  judge.score = "is_classifier", judge.score_name = "IS (classifier)";
  judge.features = classifier->config().features();
  judge.remark = fmt::format("{} features of {}; not comparable with FID", judge.features, run);
  judge.labels = true;
  judge.check = [classifier](const ImageSet& images) {
    const ClassifierConfig& c = classifier->config();
    if (c.height != images.height || c.width != images.width || c.channels != images.channels)
      fail(ErrorKind::usage, "the classifier is for images of {}x{}x{}; these are {}x{}x{}", c.height, c.width,
           c.channels, images.height, images.width, images.channels);
  };
  judge.see = [classifier = std::move(classifier)](Value images) {
    const Value pooled = classifier->pooled(images);
    return ImageJudge::Seen{pooled, classifier->logits_of(pooled)};
  };
  return judge;
}

ImageJudge inception_judge(const std::filesystem::path& weights) {
  ImageJudge judge;
  judge.distance = "fid_inception", judge.distance_name = "FID (Inception-v3)";
  judge.score = "is_inception", judge.score_name = "IS (Inception-v3)";
  judge.features = InceptionV3::kFeatures;
  judge.remark = fmt::format("weights of {}; FID where these are the original ones", weights.string());
  const auto network = std::make_shared<InceptionV3>(weights);
  judge.check = [](const ImageSet& images) {
    if (images.channels != 1 && images.channels != 3)
      fail(ErrorKind::usage, "Inception-v3 sees grey or colour images; these have {} channels", images.channels);
  };
  judge.see = [network](Value images) {
    const Value pooled = network->pooled(images);
    return ImageJudge::Seen{pooled, network->logits_of(pooled)};
  };
  return judge;
}

}  // namespace sg::tools
