#include "core/error.h"
#include "tools/data/dataset.h"
#include "tools/files.h"

namespace sg::tools {

ImageSet read_cifar10(const std::vector<std::filesystem::path>& files) {
  constexpr std::size_t kSide = 32, kPlane = kSide * kSide, kRecord = 1 + 3 * kPlane;
  ImageSet set{0, kSide, kSide, 3, {}};
  for (const auto& path : files) {
    const std::vector<std::byte> bytes = read_file(path);
    if (bytes.empty() || bytes.size() % kRecord != 0)
      fail(ErrorKind::io, "{}: {} bytes is not a whole number of CIFAR-10 records of {} bytes: truncated?",
           path.string(), bytes.size(), kRecord);
    const std::size_t records = bytes.size() / kRecord;
    set.pixels.reserve(set.pixels.size() + records * 3 * kPlane);
    for (std::size_t r = 0; r < records; ++r) {
      const std::byte* record = bytes.data() + r * kRecord;
      if (const auto label = static_cast<unsigned>(record[0]); label > 9)
        fail(ErrorKind::io, "{}: record {} has label {}; CIFAR-10 labels are 0 to 9: corrupt, or another format",
             path.string(), r, label);
      set.labels.push_back(static_cast<std::int32_t>(record[0]));
      for (std::size_t p = 0; p < kPlane; ++p)
        for (std::size_t c = 0; c < 3; ++c) set.pixels.push_back(static_cast<std::uint8_t>(record[1 + c * kPlane + p]));
    }
    set.count += static_cast<std::int64_t>(records);
  }
  return set;
}

}  // namespace sg::tools
