#include "backends/cuda/jit.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <vector>

namespace sg::cuda {
namespace {

namespace fs = std::filesystem;

// Results are not to depend on what was fused with what: no multiply-add is made of a product and a sum.
constexpr const char* kOptions[] = {"--std=c++17", "--fmad=false", "--generate-line-info",
                                    "--device-as-default-execution-space"};
constexpr char kMagic[8] = {'s', 'g', 'c', 'u', 'd', 'a', '0', '1'};

std::uint64_t hash(const std::string& bytes, std::uint64_t seed) {  // FNV-1a
  std::uint64_t h = seed;
  for (const char c : bytes) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return h;
}
constexpr std::uint64_t kSeed = 0xcbf29ce484222325ull, kOtherSeed = 0x9ae16a3b2f90404full;

struct Cache {
  std::mutex mutex;
  std::map<std::string, std::string> images;  // by key
  std::optional<std::string> folder;
  JitCounters counters;
};
Cache& cache() {
  static Cache* const c = new Cache;  // outlives whatever static object may still compile
  return *c;
}

std::string folder_by_environment() {
  const auto variable = [](const char* name) {
    const char* text = std::getenv(name);
    return std::string(text == nullptr ? "" : text);
  };
  if (std::getenv("STOPGRAD_CUDA_CACHE") != nullptr) {
    const std::string chosen = variable("STOPGRAD_CUDA_CACHE");
    return chosen == "off" ? "" : chosen;
  }
  fs::path base = variable("XDG_CACHE_HOME");
  if (base.empty() && !variable("HOME").empty()) base = fs::path(variable("HOME")) / ".cache";
  return base.empty() ? "" : (base / "stopgrad" / "cuda").string();
}

struct Header {
  char magic[8];
  std::uint64_t key_bytes, image_bytes, checksum;  // of key and image
};

fs::path file_of(const std::string& folder, const std::string& key) {
  return fs::path(folder) / fmt::format("{:016x}{:016x}.image", hash(key, kSeed), hash(key, kOtherSeed));
}

// Nothing where there is no file, or none that can be trusted; `rejected` tells which.
std::optional<std::string> read_image(const fs::path& path, const std::string& key, bool& rejected) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return std::nullopt;
  const std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  rejected = true;
  Header h;
  if (bytes.size() < sizeof h) return std::nullopt;
  std::memcpy(&h, bytes.data(), sizeof h);
  const std::size_t rest = bytes.size() - sizeof h;
  if (std::memcmp(h.magic, kMagic, sizeof kMagic) != 0 || h.key_bytes != key.size() || rest < key.size() ||
      h.image_bytes != rest - key.size() || bytes.compare(sizeof h, key.size(), key) != 0)
    return std::nullopt;
  std::string image = bytes.substr(sizeof h + key.size());
  if (image.empty() || h.checksum != hash(image, hash(key, kSeed))) return std::nullopt;
  rejected = false;
  return image;
}

bool write_all(int file, const void* data, std::size_t bytes) {
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(file, p, bytes);
    if (n <= 0) return false;
    p += n, bytes -= static_cast<std::size_t>(n);
  }
  return true;
}

// A cache that cannot be written is none: whatever fails here fails silently, and leaves no file behind.
void write_image(const fs::path& path, const std::string& key, const std::string& image) {
  static std::atomic<unsigned> count{0};
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  const std::string beside = fmt::format("{}.{}.{}", path.string(), ::getpid(), ++count);
  const int file = ::open(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) return;
  Header h{{}, key.size(), image.size(), hash(image, hash(key, kSeed))};
  std::memcpy(h.magic, kMagic, sizeof kMagic);
  const bool written = write_all(file, &h, sizeof h) && write_all(file, key.data(), key.size()) &&
                       write_all(file, image.data(), image.size()) && ::fsync(file) == 0;
  const bool closed = ::close(file) == 0;
  if (!written || !closed || ::rename(beside.c_str(), path.c_str()) != 0) ::unlink(beside.c_str());
}

class Nvrtc {
 public:
  explicit Nvrtc(const Tables& tables) : api_(tables.nvrtc) {
    if (!tables.no_nvrtc.empty())
      fail(ErrorKind::backend, "cuda: no kernel can be compiled without NVRTC: {}", tables.no_nvrtc);
    check(api_.nvrtcVersion_(&major_, &minor_), "nvrtcVersion");
  }

  std::string version() const { return fmt::format("{}.{}", major_, minor_); }

  // "sm_90" or "compute_80".
  std::string target(int arch, bool ptx) const {
    int count = 0;
    check(api_.nvrtcGetNumSupportedArchs_(&count), "nvrtcGetNumSupportedArchs");
    std::vector<int> known(static_cast<std::size_t>(count));
    check(api_.nvrtcGetSupportedArchs_(known.data()), "nvrtcGetSupportedArchs");
    if (!ptx && std::find(known.begin(), known.end(), arch) != known.end()) return fmt::format("sm_{}", arch);
    int best = 0;
    for (const int a : known)
      if (a <= arch) best = std::max(best, a);
    if (best == 0)
      fail(ErrorKind::backend, "cuda: NVRTC {} compiles for sm_{}, the GPU is an sm_{}; use an older NVRTC", version(),
           fmt::join(known, ", sm_"), arch);
    return fmt::format("compute_{}", best);
  }

  std::string compile(const std::string& text, const std::string& target) const {
    struct Program {
      const NvrtcApi& api;
      nvrtcProgram p = nullptr;
      ~Program() {
        if (p != nullptr) api.nvrtcDestroyProgram_(&p);
      }
    } program{api_};
    check(api_.nvrtcCreateProgram_(&program.p, text.c_str(), "row_program.cu", 0, nullptr, nullptr),
          "nvrtcCreateProgram");
    const std::string arch = "--gpu-architecture=" + target;
    std::vector<const char*> options(std::begin(kOptions), std::end(kOptions));
    options.push_back(arch.c_str());
    const nvrtcResult result = api_.nvrtcCompileProgram_(program.p, static_cast<int>(options.size()), options.data());
    if (result != NVRTC_SUCCESS) {
      std::size_t bytes = 0;
      std::string log;
      if (api_.nvrtcGetProgramLogSize_(program.p, &bytes) == NVRTC_SUCCESS && bytes > 1) {
        log.resize(bytes);
        api_.nvrtcGetProgramLog_(program.p, log.data());
        log.resize(bytes - 1);
      }
      fail(ErrorKind::internal, "cuda: NVRTC {} for {}: {}\n{}\n{}", version(), target,
           api_.nvrtcGetErrorString_(result), log, text);
    }
    const bool machine_code = target.starts_with("sm_");
    std::size_t bytes = 0;
    check(machine_code ? api_.nvrtcGetCUBINSize_(program.p, &bytes) : api_.nvrtcGetPTXSize_(program.p, &bytes),
          "nvrtc: size of the image");
    std::string image(bytes, '\0');
    check(machine_code ? api_.nvrtcGetCUBIN_(program.p, image.data()) : api_.nvrtcGetPTX_(program.p, image.data()),
          "nvrtc: the image");
    return image;
  }

 private:
  void check(nvrtcResult r, const char* call) const {
    if (r != NVRTC_SUCCESS) fail(ErrorKind::internal, "cuda: {}: {}", call, api_.nvrtcGetErrorString_(r));
  }
  const NvrtcApi& api_;
  int major_ = 0, minor_ = 0;
};

// The key of a result, and the result.
struct Compiled {
  std::string key, image;
};

Compiled compiled(const Tables& tables, int arch, const std::string& text) {
  const Nvrtc nvrtc(tables);
  const std::string target = nvrtc.target(arch, tables.emulated);
  const std::string key = fmt::format("NVRTC {}, {}, {}\n{}", nvrtc.version(), target, fmt::join(kOptions, " "), text);
  Cache& c = cache();
  fs::path path;
  {
    const std::lock_guard lock(c.mutex);
    if (const auto it = c.images.find(key); it != c.images.end()) {
      ++c.counters.from_memory;
      return {key, it->second};
    }
    if (!c.folder) c.folder = folder_by_environment();
    if (!c.folder->empty()) path = file_of(*c.folder, key);
  }
  bool rejected = false;
  std::optional<std::string> image = path.empty() ? std::nullopt : read_image(path, key, rejected);
  const bool from_disk = image.has_value();
  if (!from_disk) {
    image = nvrtc.compile(text, target);
    if (!path.empty()) write_image(path, key, *image);
  }
  const std::lock_guard lock(c.mutex);
  ++(from_disk ? c.counters.from_disk : c.counters.compiled);
  c.counters.rejected += rejected ? 1 : 0;
  c.images.emplace(key, *image);
  return {key, *std::move(image)};
}

}  // namespace

std::string compile_text(const Tables& tables, int arch, const std::string& text) {
  return compiled(tables, arch, text).image;
}

CUfunction jit_kernel(Device& device, const std::string& text, const std::string& kernel) {
  const Compiled c = compiled(device.tables(), device.arch(), text);
  const std::lock_guard lock(cache().mutex);
  const auto [it, fresh] = device.made().try_emplace(c.key, nullptr);
  if (fresh) {
    try {
      it->second = device.load(c.image.data(), "a row program");
    } catch (...) {
      device.made().erase(it);
      throw;
    }
  }
  return device.function(it->second, kernel);
}

std::string jit_cache_folder() {
  Cache& c = cache();
  const std::lock_guard lock(c.mutex);
  if (!c.folder) c.folder = folder_by_environment();
  return *c.folder;
}

void set_jit_cache_folder(std::optional<std::string> folder) {
  Cache& c = cache();
  const std::lock_guard lock(c.mutex);
  c.folder = std::move(folder);
}

JitCounters jit_counters() {
  Cache& c = cache();
  const std::lock_guard lock(c.mutex);
  return c.counters;
}

void forget_compiled() {
  Cache& c = cache();
  const std::lock_guard lock(c.mutex);
  c.images.clear();
}

}  // namespace sg::cuda
