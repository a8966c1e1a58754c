// Kernels compiled at run time: what is kept in memory and on disk, and that nothing that is not a whole, unaltered
// entry of the same key is ever used.
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/cuda/row_support.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

namespace fs = std::filesystem;

const std::string kText = "extern \"C\" __global__ void twice(float* x) { x[threadIdx.x] *= 2.0f; }\n";

std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}
void overwrite(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}
std::vector<fs::path> files_of(const fs::path& folder) {
  std::vector<fs::path> all;
  for (const auto& entry : fs::directory_iterator(folder)) all.push_back(entry.path());
  return all;
}

class CudaRowCache : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    if (!missing_nvrtc().empty()) GTEST_SKIP() << missing_nvrtc();
    std::string pattern = (fs::temp_directory_path() / "sg_cuda_cache.XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    cuda::set_jit_cache_folder(folder_.string());
    cuda::forget_compiled();
  }
  void TearDown() override {
    cuda::set_jit_cache_folder(std::nullopt);
    cuda::forget_compiled();
    if (!folder_.empty()) fs::remove_all(folder_);
  }
  static std::string compile(const std::string& text = kText, int arch = 80) {
    return cuda::compile_text(row_tables(Executor::generated), arch, text);
  }
  // As a process that starts afresh would.
  static std::string compile_anew() {
    cuda::forget_compiled();
    return compile();
  }
  fs::path only_file() const {
    const auto files = files_of(folder_);
    EXPECT_EQ(files.size(), 1u);
    return files.empty() ? fs::path() : files[0];
  }
  fs::path folder_;
};

struct Difference {
  cuda::JitCounters before = cuda::jit_counters();
  cuda::JitCounters operator()() const {
    const auto now = cuda::jit_counters();
    return {now.compiled - before.compiled, now.from_memory - before.from_memory, now.from_disk - before.from_disk,
            now.rejected - before.rejected};
  }
};

TEST_F(CudaRowCache, IsAskedInOrderMemoryDiskCompiler) {
  const Difference since;
  const std::string image = compile();
  EXPECT_NE(image.find("twice"), std::string::npos);
  EXPECT_EQ(compile(), image);
  EXPECT_EQ(since().compiled, 1u);
  EXPECT_EQ(since().from_memory, 1u);
  EXPECT_EQ(compile_anew(), image);
  EXPECT_EQ(since().compiled, 1u);
  EXPECT_EQ(since().from_disk, 1u);
  compile(kText + "\n");
  compile(kText, 90);
  EXPECT_EQ(since().compiled, 3u);
  EXPECT_EQ(files_of(folder_).size(), 3u);
  EXPECT_EQ(since().rejected, 0u);
}

TEST_F(CudaRowCache, AnAlteredOrShortEntryIsMadeAnew) {
  const std::string image = compile();
  const fs::path file = only_file();
  const std::string whole = contents(file);
  std::vector<std::string> broken{"", "x", std::string(whole.size(), '\0'), whole + "x", whole.substr(1)};
  for (const std::size_t at : {std::size_t{0}, std::size_t{9}, std::size_t{17}, std::size_t{25}, std::size_t{40},
                               std::size_t{60}, whole.size() - image.size(), whole.size() - 1}) {
    broken.push_back(whole);
    broken.back()[at] = static_cast<char>(broken.back()[at] ^ 0x10);
    broken.push_back(whole.substr(0, at));
  }
  for (std::size_t i = 0; i < broken.size(); ++i) {
    overwrite(file, broken[i]);
    const Difference since;
    EXPECT_EQ(compile_anew(), image) << i;
    EXPECT_EQ(since().compiled, 1u) << i;
    EXPECT_EQ(since().rejected, 1u) << i;
    EXPECT_EQ(contents(only_file()), whole) << i;
  }
}

TEST_F(CudaRowCache, AnEntryOfAnotherKeyIsNotUsed) {
  const std::string image = compile();
  const fs::path mine = only_file();
  compile(kText + "\n");
  for (const fs::path& file : files_of(folder_))
    if (file != mine) fs::copy_file(file, mine, fs::copy_options::overwrite_existing);
  const Difference since;
  EXPECT_EQ(compile_anew(), image);
  EXPECT_EQ(since().rejected, 1u);
  EXPECT_EQ(since().compiled, 1u);
}

TEST_F(CudaRowCache, AnotherVersionOfNvrtcCompilesAnew) {
  compile();
  cuda::forget_compiled();
  cuda::Tables newer = row_tables(Executor::generated);
  newer.nvrtc.nvrtcVersion_ = [](int* major, int* minor) {
    *major = 99, *minor = 0;
    return NVRTC_SUCCESS;
  };
  const Difference since;
  cuda::compile_text(newer, 80, kText);
  EXPECT_EQ(since().compiled, 1u);
  EXPECT_EQ(files_of(folder_).size(), 2u);
}

TEST_F(CudaRowCache, AFolderThatCannotBeWrittenIsNoCache) {
  overwrite(folder_ / "file", "no folder");
  for (const std::string& folder : {(folder_ / "file" / "cuda").string(), std::string("/proc/stopgrad/cuda")}) {
    cuda::set_jit_cache_folder(folder);
    const Difference since;
    EXPECT_FALSE(compile_anew().empty());
    EXPECT_FALSE(compile_anew().empty());
    EXPECT_EQ(since().compiled, 2u);
  }
  EXPECT_EQ(contents(folder_ / "file"), "no folder");
}

TEST_F(CudaRowCache, TheFolderIsChosenByTheEnvironment) {
  const auto keep = [](const char* name) {
    const char* value = getenv(name);
    return std::pair{value != nullptr, std::string(value == nullptr ? "" : value)};
  };
  const char* const names[] = {"STOPGRAD_CUDA_CACHE", "XDG_CACHE_HOME", "HOME"};
  std::vector<std::pair<bool, std::string>> before;
  for (const char* name : names) before.push_back(keep(name));
  const auto folder_with = [](const char* own, const char* xdg, const char* home) {
    const auto set = [](const char* name, const char* value) {
      value == nullptr ? unsetenv(name) : setenv(name, value, 1);
    };
    set("STOPGRAD_CUDA_CACHE", own), set("XDG_CACHE_HOME", xdg), set("HOME", home);
    cuda::set_jit_cache_folder(std::nullopt);
    return cuda::jit_cache_folder();
  };
  EXPECT_EQ(folder_with(nullptr, "/x", "/h"), "/x/stopgrad/cuda");
  EXPECT_EQ(folder_with(nullptr, nullptr, "/h"), "/h/.cache/stopgrad/cuda");
  EXPECT_EQ(folder_with(nullptr, "", "/h"), "/h/.cache/stopgrad/cuda");
  EXPECT_EQ(folder_with(nullptr, nullptr, nullptr), "");
  EXPECT_EQ(folder_with("/own", "/x", "/h"), "/own");
  EXPECT_EQ(folder_with("off", "/x", "/h"), "");
  EXPECT_EQ(folder_with("", "/x", "/h"), "");
  for (std::size_t i = 0; i < before.size(); ++i)
    before[i].first ? setenv(names[i], before[i].second.c_str(), 1) : unsetenv(names[i]);
}

TEST_F(CudaRowCache, ManyThreadsCompileAtOnce) {
  std::vector<std::string> images(4);
  std::vector<std::thread> threads;
  for (std::string& image : images) threads.emplace_back([&image] { image = compile(); });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& image : images) EXPECT_EQ(image, images[0]);
  EXPECT_FALSE(images[0].empty());
  only_file();
}

// Also what TwoProcesses starts twice, with a folder of its own.
TEST_F(CudaRowCache, AProcessLeavesWholeEntriesOnly) {
  if (const char* shared = getenv("SG_TEST_CACHE")) cuda::set_jit_cache_folder(std::string(shared));
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(compile(kText + std::string(static_cast<std::size_t>(i), '\n')).empty());
}

TEST_F(CudaRowCache, TwoProcessesShareAFolder) {
  const std::string command = "SG_TEST_CACHE='" + (folder_ / "shared").string() + "' " +
                              fs::read_symlink("/proc/self/exe").string() +
                              (row_tables(Executor::generated).emulated ? " --cuda=emulated" : " --cuda=device") +
                              " --gtest_filter=CudaRowCache.AProcessLeavesWholeEntriesOnly > /dev/null 2>&1";
  int results[2] = {-1, -1};
  std::thread other([&] { results[1] = std::system(command.c_str()); });
  results[0] = std::system(command.c_str());
  other.join();
  EXPECT_EQ(results[0], 0);
  EXPECT_EQ(results[1], 0);
  EXPECT_EQ(files_of(folder_ / "shared").size(), 10u);
  cuda::set_jit_cache_folder((folder_ / "shared").string());
  const Difference since;
  compile_anew();
  EXPECT_EQ(since().from_disk, 1u);
}

TEST_F(CudaRowCache, MachineCodeWhereNvrtcKnowsTheArchitecture) {
  cuda::Tables emulated = row_tables(Executor::generated);
  emulated.emulated = true;
  EXPECT_NE(cuda::compile_text(emulated, 90, kText).find(".target sm_90"), std::string::npos);  // always PTX
  cuda::Tables real = row_tables(Executor::generated);
  real.emulated = false;
  EXPECT_EQ(cuda::compile_text(real, 80, kText).substr(1, 3), "ELF");
  EXPECT_NE(cuda::compile_text(real, 9999, kText).find(".entry twice"), std::string::npos);  // newer than NVRTC
  SG_EXPECT_ERROR(backend, "use an older NVRTC", cuda::compile_text(real, 10, kText));
}

TEST_F(CudaRowCache, ErrorsSayTheLogAndTheText) {
  SG_EXPECT_ERROR(internal, "undefined_thing", compile("__global__ void k() { undefined_thing(); }"));
  SG_EXPECT_ERROR(internal, "identifier", compile("__global__ void k() { undefined_thing(); }"));
  SG_EXPECT_ERROR(backend, "switched off for this test",
                  cuda::compile_text(row_tables(Executor::interpreted), 80, kText));
  EXPECT_TRUE(files_of(folder_).empty());
}

}  // namespace
}  // namespace sg::test
