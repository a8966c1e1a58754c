// State files: round trips, files that lie about themselves, and saves that fail or are killed half way.
#include "core/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>

namespace sg {
namespace {

namespace fs = std::filesystem;

class Safetensors : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "sg_safetensors_XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    file_ = folder_ / "state.safetensors";
  }
  void TearDown() override {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  void write(std::string_view bytes) const {
    std::ofstream(file_, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  std::string read() const {
    std::ifstream in(file_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  std::size_t files_in_folder() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }

  // Loading must fail with Error{io} that names the file and contains `what`.
  void expect_rejected(std::string_view bytes, std::string_view what) const {
    write(bytes);
    try {
      load_safetensors(file_);
      ADD_FAILURE() << "accepted; expected: " << what;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::io) << e.message();
      EXPECT_NE(e.message().find(what), std::string::npos) << e.message() << "\n  expected: " << what;
      EXPECT_NE(e.message().find(file_.string()), std::string::npos) << e.message();
    }
  }

  fs::path folder_, file_;
};

std::string with_length(std::uint64_t length, std::string_view rest) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes.append(rest);
}

std::string file_of(std::string_view header, std::size_t data_bytes) {
  return with_length(header.size(), std::string(header) + std::string(data_bytes, '\0'));
}

StateFile small_state() {
  StateFile state;
  state.tensors.push_back({"a", Tensor::of<float>({2, 3}, {1, -2, 3.5f, 0, -0.0f, 1e-40f})});
  state.tensors.push_back({"step", Tensor::of<std::int32_t>({}, {-7})});
  state.tensors.push_back({"m/é \"quoted\"", Tensor::of<double>({2}, {0.1, std::numeric_limits<double>::infinity()})});
  state.tensors.push_back({"empty", Tensor({DType::f32, {0, 4}})});
  state.metadata = {{"model", "vqvae"}, {"note", "line\nline"}};
  return state;
}

void expect_same(const StateFile& a, const StateFile& b) {
  EXPECT_EQ(a.metadata, b.metadata);
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (const NamedTensor& t : a.tensors) {
    const Tensor* other = b.find(t.name);
    ASSERT_NE(other, nullptr) << t.name;
    ASSERT_EQ(t.value.type(), other->type()) << t.name;
    EXPECT_TRUE(std::equal(t.value.data(), t.value.data() + t.value.bytes(), other->data())) << t.name;
  }
}

TEST_F(Safetensors, RoundTripIsExact) {
  const StateFile state = small_state();
  save_safetensors(file_, state);
  expect_same(state, load_safetensors(file_));
  EXPECT_EQ(load_safetensors(file_).find("absent"), nullptr);
  EXPECT_EQ(files_in_folder(), 1u);
}

TEST_F(Safetensors, EmptyStateRoundTrips) {
  save_safetensors(file_, {});
  expect_same({}, load_safetensors(file_));
}

TEST_F(Safetensors, SavingTwiceGivesTheSameBytes) {
  save_safetensors(file_, small_state());
  const std::string first = read();
  save_safetensors(file_, small_state());
  EXPECT_EQ(read(), first);
}

// What other readers rely on: data aligned to 8 bytes, wide elements first.
TEST_F(Safetensors, DataIsAligned) {
  save_safetensors(file_, small_state());
  const std::string bytes = read();
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  const double first = 0.1;
  EXPECT_EQ(std::memcmp(bytes.data() + 8 + length, &first, 8), 0);
}

// A file as another writer makes it: other key order, spaces, unknown fields, tensors in any order.
TEST_F(Safetensors, ReadsAForeignFile) {
  std::string bytes = file_of(
      R"( {"b":{"shape":[1],"dtype":"I32","data_offsets":[8,12],"extra":null} ,"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}} )",
      12);
  bytes.erase(8, 1);  // the leading space, which the format forbids
  bytes[0] = static_cast<char>(bytes[0] - 1);
  const std::int32_t value = 42;
  std::memcpy(bytes.data() + bytes.size() - 4, &value, 4);
  write(bytes);
  const StateFile state = load_safetensors(file_);
  ASSERT_NE(state.find("b"), nullptr);
  EXPECT_EQ(state.find("b")->item(), 42);
  EXPECT_EQ(state.find("a")->shape(), (Shape{2, 1}));
}

TEST_F(Safetensors, TruncationAtEveryByteIsRejected) {
  save_safetensors(file_, small_state());
  const std::string whole = read();
  for (std::size_t n = 0; n < whole.size(); ++n) {
    SCOPED_TRACE(n);
    expect_rejected(std::string_view(whole).substr(0, n), "not a valid safetensors file");
  }
  expect_rejected(whole + '\0', "belong to no tensor");
}

// Whatever byte is changed, loading ends in a state or in an Error{io}, never in anything else.
TEST_F(Safetensors, DamagedBytesNeverCrash) {
  save_safetensors(file_, small_state());
  const std::string whole = read();
  std::mt19937 random(5);
  int rejected = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = whole;
    for (int k = 0; k < 1 + i % 3; ++k) bytes[random() % bytes.size()] = static_cast<char>(random());
    write(bytes);
    try {
      load_safetensors(file_);
    } catch (const Error& e) {
      ASSERT_EQ(e.kind(), ErrorKind::io) << e.message();
      ++rejected;
    }
  }
  EXPECT_GT(rejected, 1000);
}

TEST_F(Safetensors, LyingHeaderLengthIsRejected) {
  expect_rejected(with_length(3, "{}"), "header length 3, but only 2 bytes follow");
  expect_rejected(with_length(100'000'000, "{}"), "header length 100000000, but only 2 bytes follow");
  expect_rejected(with_length(100'000'001, "{}"), "above the limit");
  expect_rejected(with_length(std::numeric_limits<std::uint64_t>::max(), "{}"), "above the limit");
  expect_rejected(with_length(std::numeric_limits<std::uint64_t>::max() - 7, "{}"), "above the limit");
  expect_rejected(with_length(0, "{}"), "does not start with '{'");
}

TEST_F(Safetensors, MalformedHeaderIsRejected) {
  expect_rejected(file_of("[]", 0), "does not start with '{'");
  expect_rejected(file_of(" {}", 0), "does not start with '{'");
  expect_rejected(file_of("{", 0), "malformed JSON");
  expect_rejected(file_of("{} x", 0), "malformed JSON");
  expect_rejected(file_of("{\"a\xff\":{}}", 0), "malformed JSON");
  expect_rejected(file_of(R"({"a":)" + std::string(100'000, '['), 0), "nested too deeply");
  expect_rejected(file_of(R"({"a":[]})", 0), "not described by an object");
  expect_rejected(file_of(R"({"a":{}})", 0), "has no dtype");
  expect_rejected(file_of(R"({"a":{"dtype":"F32","data_offsets":[0,0]}})", 0), "has no shape");
  expect_rejected(file_of(R"({"a":{"dtype":"F32","shape":[0]}})", 0), "has no data_offsets");
  expect_rejected(file_of(R"({"__metadata__":[]})", 0), "__metadata__ is not an object");
  expect_rejected(file_of(R"({"__metadata__":{"k":1}})", 0), "'k' is not a text");
}

TEST_F(Safetensors, NameGivenTwiceIsRejected) {
  expect_rejected(file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                          R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                          4),
                  "names 'a' twice");
  expect_rejected(file_of(R"({"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}})", 4),
                  "names 'dtype' twice");
}

TEST_F(Safetensors, UnknownDtypeIsRejected) {
  expect_rejected(file_of(R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}})", 4), "dtype 'F16'");
  expect_rejected(file_of(R"({"a":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}})", 4), "dtype 'f32'");
  expect_rejected(file_of(R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,4]}})", 4), "malformed dtype");
}

TEST_F(Safetensors, LyingShapeIsRejected) {
  const auto f32 = [](std::string_view shape) {
    return file_of(fmt::format(R"({{"a":{{"dtype":"F32","shape":{},"data_offsets":[0,4]}}}})", shape), 4);
  };
  expect_rejected(f32("[2]"), "takes 8 bytes, but its data_offsets span 4");
  expect_rejected(f32("[0]"), "takes 0 bytes, but its data_offsets span 4");
  expect_rejected(f32("[-1]"), "not a whole number");
  expect_rejected(f32("[1.0]"), "not a whole number");
  expect_rejected(f32("[\"1\"]"), "not a whole number");
  expect_rejected(f32("1"), "malformed shape");
  expect_rejected(f32("[1,1,1,1,1,1,1]"), "rank 7");
  expect_rejected(f32("[4611686018427387904]"), "more elements");
  expect_rejected(f32("[4294967296,4294967296]"), "overflows");  // 2^64 elements: 0 in 64 bits
  expect_rejected(f32("[18446744073709551615]"), "overflows");
  expect_rejected(f32("[0,18446744073709551615]"), "overflows");
  expect_rejected(f32("[0,4294967296,4294967296]"), "overflows");
  expect_rejected(f32("[1152921504606846976]"), "more elements than can be addressed");
  expect_rejected(f32("[281474976710656]"), "takes 1125899906842624 bytes");
  expect_rejected(f32("[18446744073709551616]"), "not a whole number");  // a real number to the parser
}

TEST_F(Safetensors, LyingOffsetsAreRejected) {
  const auto one = [](std::string_view offsets) {
    return file_of(fmt::format(R"({{"a":{{"dtype":"F32","shape":[1],"data_offsets":{}}}}})", offsets), 4);
  };
  expect_rejected(one("[4,0]"), "run backwards");
  expect_rejected(one("[0,8]"), "ends at byte 8 of the data, which has 4 bytes");
  expect_rejected(one("[0,18446744073709551615]"), "ends at byte");
  expect_rejected(one("[18446744073709551612,18446744073709551615]"), "ends at byte");
  expect_rejected(one("[-4,0]"), "not a whole number");
  expect_rejected(one("[0]"), "1 data_offsets instead of 2");
  expect_rejected(one("[0,4,8]"), "3 data_offsets instead of 2");
  expect_rejected(one("{}"), "malformed data_offsets");

  const auto two = [](int a, int b, std::size_t bytes) {
    return file_of(fmt::format(R"({{"a":{{"dtype":"F32","shape":[2],"data_offsets":[{},{}]}},)"
                               R"("b":{{"dtype":"F32","shape":[2],"data_offsets":[{},{}]}}}})",
                               a, a + 8, b, b + 8),
                   bytes);
  };
  write(two(8, 0, 16));
  EXPECT_EQ(load_safetensors(file_).tensors.size(), 2u);
  expect_rejected(two(0, 4, 12), "tensor 'b' starts at byte 4 inside the one before it");
  expect_rejected(two(0, 0, 8), "inside the one before it");
  expect_rejected(two(0, 12, 20), "bytes 8 to 12 of the data belong to no tensor");
  expect_rejected(two(4, 12, 20), "bytes 0 to 4 of the data belong to no tensor");
  expect_rejected(two(0, 8, 20), "bytes 16 to 20 of the data belong to no tensor");
}

// 2 GiB that the header promises and the file does not have: refused before anything is allocated for it.
TEST_F(Safetensors, HugeClaimIsRefused) {
  expect_rejected(file_of(R"({"a":{"dtype":"F32","shape":[536870912],"data_offsets":[0,2147483648]}})", 4),
                  "ends at byte 2147483648");
}

TEST_F(Safetensors, OpenFailuresNameTheFile) {
  for (const fs::path& path : {folder_ / "absent", folder_, fs::path("/dev/zero")}) {
    try {
      load_safetensors(path);
      ADD_FAILURE() << path;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::io);
      EXPECT_NE(e.message().find(path.string()), std::string::npos) << e.message();
    }
  }
}

void expect_save_fails(const fs::path& path, const StateFile& state, ErrorKind kind) {
  try {
    save_safetensors(path, state);
    ADD_FAILURE() << "saved to " << path;
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), kind) << e.message();
  }
}

TEST_F(Safetensors, SaveRefusesWhatTheFormatCannotSay) {
  const Tensor one = Tensor::of<float>({1}, {1});
  expect_save_fails(file_, {{{"a", one}, {"a", one}}, {}}, ErrorKind::usage);
  expect_save_fails(file_, {{{"__metadata__", one}}, {{"k", "v"}}}, ErrorKind::usage);
  expect_save_fails(file_, {{{"__metadata__", one}}, {}}, ErrorKind::usage);
  expect_save_fails(file_, {{{"a\xff", one}}, {}}, ErrorKind::usage);
  expect_save_fails(file_, {{}, {{"k", "\xff"}}}, ErrorKind::usage);
  EXPECT_EQ(files_in_folder(), 0u);
}

TEST_F(Safetensors, SaveNeedsARegularFileInAFolderThatExists) {
  expect_save_fails(folder_ / "absent" / "x", small_state(), ErrorKind::io);
  expect_save_fails(folder_, small_state(), ErrorKind::io);
  expect_save_fails("/dev/full", small_state(), ErrorKind::io);
  EXPECT_TRUE(fs::is_character_file("/dev/full"));
}

// The save of another process, which can be crippled without harm to this one: 0 where it failed with Error{io} of
// that message.
template <class Cripple>
int exit_status_of_save(const fs::path& path, const StateFile& state, std::string_view message, Cripple cripple) {
  const pid_t child = ::fork();
  if (child == 0) {
    int result = 1;
    if (cripple()) {
      try {
        save_safetensors(path, state);
      } catch (const Error& e) {
        result = e.kind() == ErrorKind::io && e.message().starts_with(message) ? 0 : 2;
      }
    }
    ::_exit(result);
  }
  int status = 0;
  return child > 0 && ::waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_F(Safetensors, UnwritableFolderLeavesTheOldFile) {
  save_safetensors(file_, small_state());
  const std::string before = read();
  fs::permissions(folder_, fs::perms(0555));
  const auto as_nobody = [] { return ::geteuid() != 0 || ::setuid(65534) == 0; };  // root may write to any folder
  EXPECT_EQ(exit_status_of_save(file_, {}, "cannot create", as_nobody), 0);
  fs::permissions(folder_, fs::perms::owner_all);
  EXPECT_EQ(read(), before);
  EXPECT_EQ(files_in_folder(), 1u);
}

// As on a full disk: the write fails part of the way (EFBIG).
TEST_F(Safetensors, FailedWriteLeavesTheOldFile) {
  save_safetensors(file_, small_state());
  const auto small_files_only = [] {
    const rlimit limit{8192, 8192};
    return std::signal(SIGXFSZ, SIG_IGN) != SIG_ERR && ::setrlimit(RLIMIT_FSIZE, &limit) == 0;
  };
  const StateFile big{{{"big", Tensor({DType::f64, {4096}})}}, {}};
  EXPECT_EQ(exit_status_of_save(file_, big, "cannot write", small_files_only), 0);
  EXPECT_EQ(files_in_folder(), 1u);
  expect_same(small_state(), load_safetensors(file_));
}

// kill -9 at some moment of a save: the file is one of the two states, whole; the next save works.
TEST_F(Safetensors, KilledSaveLeavesAWholeFile) {
  const StateFile zeros{{{"w", Tensor({DType::f32, {1 << 18}})}}, {}};
  const StateFile ones{{{"w", Tensor::full({DType::f32, {1 << 18}}, 1)}}, {}};
  save_safetensors(file_, zeros);
  for (int i = 0; i < 8; ++i) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (;;) {
        save_safetensors(file_, ones);
        save_safetensors(file_, zeros);
      }
    }
    ::usleep(static_cast<useconds_t>(7'000 + 3'100 * i));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    const StateFile state = load_safetensors(file_);
    ASSERT_NE(state.find("w"), nullptr);
    expect_same(state, state.find("w")->at(0) == 0 ? zeros : ones);
  }
  save_safetensors(file_, small_state());
  expect_same(small_state(), load_safetensors(file_));
  EXPECT_EQ(files_in_folder(), 1u);
}

TEST_F(Safetensors, SaveThroughALinkKeepsTheLink) {
  save_safetensors(file_, {});
  const fs::path link = folder_ / "latest";
  fs::create_symlink("state.safetensors", link);
  save_safetensors(link, small_state());
  EXPECT_TRUE(fs::is_symlink(link));
  expect_same(small_state(), load_safetensors(file_));
}

TEST_F(Safetensors, AnyFileIsWrittenAtomically) {
  const std::string text = "step = 3\n";
  write("old text that is longer than the new one");
  write_file_atomically(file_, std::as_bytes(std::span(text)));
  EXPECT_EQ(read(), text);
  write_file_atomically(file_, {});
  EXPECT_EQ(read(), "");
  EXPECT_EQ(files_in_folder(), 1u);
  EXPECT_THROW(write_file_atomically(folder_ / "absent" / "x", std::as_bytes(std::span(text))), Error);
}

}  // namespace
}  // namespace sg
