// IDX: big-endian header (two zero bytes, element type, number of axes, then the extents), then the elements.
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "core/error.h"
#include "tools/data/dataset.h"

namespace sg::tools {
namespace {

struct GzClose {
  void operator()(gzFile_s* f) const { gzclose(f); }
};

// Reads plain files as they are and gzip files decompressed.
class GzReader {
 public:
  explicit GzReader(const std::filesystem::path& path) : name_(path.string()) {
    std::error_code ec;
    if (std::filesystem::is_directory(path, ec)) fail(ErrorKind::io, "{} is a folder; an IDX file was expected", name_);
    errno = 0;
    file_.reset(gzopen(path.c_str(), "rb"));
    if (!file_) fail(ErrorKind::io, "cannot open {}: {}", name_, errno != 0 ? std::strerror(errno) : "out of memory");
    gzbuffer(file_.get(), 1 << 17);
  }

  // Up to `bytes` bytes; fewer only at the end of the file.
  std::size_t read(void* to, std::size_t bytes) {
    const int got = gzread(file_.get(), to, static_cast<unsigned>(bytes));
    int code = Z_OK;
    const char* message = gzerror(file_.get(), &code);
    if (got < 0 || code == Z_BUF_ERROR || code == Z_DATA_ERROR)
      fail(ErrorKind::io, "{}: the gzip data is {}", name_,
           code == Z_BUF_ERROR ? "truncated" : fmt::format("corrupt ({})", message));
    return static_cast<std::size_t>(got);
  }

 private:
  std::string name_;
  std::unique_ptr<gzFile_s, GzClose> file_;
};

// Number of axes of an IDX file of unsigned bytes.
int read_header(GzReader& in, const std::string& file) {
  unsigned char head[4] = {};
  if (in.read(head, 4) != 4) fail(ErrorKind::io, "{}: truncated: shorter than an IDX header", file);
  if (head[0] != 0 || head[1] != 0)
    fail(ErrorKind::io, "{} is not an IDX file (it must start with two zero bytes)", file);
  if (head[2] != 0x08)
    fail(ErrorKind::io, "{}: IDX element type 0x{:02x}; images and labels are unsigned bytes (0x08)", file, head[2]);
  return head[3];
}

std::int64_t read_extent(GzReader& in, const std::string& file) {
  unsigned char b[4] = {};
  if (in.read(b, 4) != 4) fail(ErrorKind::io, "{}: truncated in the IDX header", file);
  return static_cast<std::int64_t>(b[0]) << 24 | b[1] << 16 | b[2] << 8 | b[3];
}

}  // namespace

std::vector<std::int32_t> read_idx_labels(const std::filesystem::path& path) {
  const std::string file = path.string();
  GzReader in(path);
  if (const int axes = read_header(in, file); axes != 1)
    fail(ErrorKind::io, "{}: IDX file with {} axes; labels have 1", file, axes);
  const std::int64_t count = read_extent(in, file);
  std::vector<std::int32_t> labels;
  std::vector<std::uint8_t> chunk(1 << 16);
  while (const std::size_t got = in.read(chunk.data(), chunk.size()))
    labels.insert(labels.end(), chunk.begin(), chunk.begin() + static_cast<std::ptrdiff_t>(got));
  if (static_cast<std::int64_t>(labels.size()) != count)
    fail(ErrorKind::io, "{}: the header says {} labels, the file has {}", file, count, labels.size());
  return labels;
}

ImageSet read_idx(const std::filesystem::path& path) {
  const std::string file = path.string();
  GzReader in(path);
  const int axes = read_header(in, file);
  if (axes != 3 && axes != 4)
    fail(ErrorKind::io, "{}: IDX file with {} axes; images have 3 (N,H,W) or 4 (N,H,W,C)", file, axes);

  std::int64_t extent[4] = {0, 0, 0, 1};
  for (int a = 0; a < axes; ++a) extent[a] = read_extent(in, file);
  ImageSet set{extent[0], extent[1], extent[2], extent[3], {}};
  constexpr std::int64_t kMaxSide = 1 << 14;
  if (set.count < 1 || set.height < 1 || set.width < 1 || set.channels < 1 || set.height > kMaxSide ||
      set.width > kMaxSide || set.channels > 4)
    fail(ErrorKind::io, "{}: the IDX header says {} images of {} x {} x {}", file, set.count, set.height, set.width,
         set.channels);

  // The size comes from the file, so memory grows only with what is really there.
  const std::size_t wanted = static_cast<std::size_t>(set.count) * set.image_bytes();
  constexpr std::size_t kChunk = 1 << 22;
  while (set.pixels.size() < wanted) {
    const std::size_t at = set.pixels.size(), ask = std::min(kChunk, wanted - at);
    if (set.pixels.capacity() < at + ask) set.pixels.reserve(std::min(wanted, 2 * (at + ask)));
    set.pixels.resize(at + ask);
    const std::size_t got = in.read(set.pixels.data() + at, ask);
    if (got < ask)
      fail(ErrorKind::io, "{}: truncated: the header says {} images ({} bytes), the file has {} bytes of pixels", file,
           set.count, wanted, at + got);
  }
  unsigned char extra = 0;
  if (in.read(&extra, 1) != 0)
    fail(ErrorKind::io, "{}: longer than its header says ({} images of {} x {})", file, set.count, set.height,
         set.width);
  return set;
}

}  // namespace sg::tools
