// Networks that judge images: by how they see the originals and what a model makes of them, FID's and IS's formulas
// give numbers. What the network is decides what they mean, so a judge carries the names of its numbers.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "core/tape.h"
#include "tools/data/dataset.h"

namespace sg {
class Classifier;
}

namespace sg::tools {

struct ImageJudge {
  std::string distance, distance_name;  // of the Frechet distance of its features: "fid_classifier_features" in JSON,
                                        // "FID (classifier features)" for people
  std::string score, score_name;        // of the inception score of its logits: "is_classifier", "IS (classifier)"
  std::string remark;                   // on the distance: "128 features of runs/c; not comparable with FID"
  std::int64_t features = 0;
  bool labels = false;  // whether its logits are of the labels of the data, so that it can be right

  // Images (N,H,W,C) as an 8-bit file holds them, in [0,1] -> features (N, features) and logits (N, classes).
  struct Seen {
    Value features, logits;
  };
  std::function<Seen(Value images)> see;
  std::function<void(const ImageSet& images)> check = [](const ImageSet&) {};  // Error{usage}: it cannot see these
};

ImageJudge classifier_judge(std::shared_ptr<const Classifier> classifier, const std::string& run);
// Inception-v3 with the weights of a file (models/inception.h).
ImageJudge inception_judge(const std::filesystem::path& weights);

}  // namespace sg::tools
