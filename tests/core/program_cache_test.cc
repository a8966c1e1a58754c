// ProgramCache: one program for each set of input types, the least recently used dropped, errors that leave nothing.
#include "core/program_cache.h"

#include "backends/backends.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

TensorType rows(std::int64_t n) { return {DType::f32, {n, 3}}; }

// y = x w and the number of runs of all programs together, for x of any number of rows.
struct Rows {
  Variable w{"w", Tensor::full({DType::f32, {3, 2}}, 0.5)}, runs{"runs", Tensor({DType::f32, {}})};
  std::vector<std::int64_t> recorded;  // rows of each recording
  ProgramCache programs;

  explicit Rows(const std::string& on, std::size_t most = 2)
      : programs(
            [this](Tape& tape, std::span<const TensorType> types) {
              recorded.push_back(types[0].shape[0]);
              const Value x = tape.input("x", types[0]), count = tape.read(runs) + 1.0;
              tape.assign(runs, count);
              return ProgramCache::Recording{{x}, {matmul(x, tape.read(w)), count}};
            },
            backend(on), most) {}
  std::vector<Tensor> run(std::int64_t n, double value) {
    const Tensor x = Tensor::full(rows(n), value);
    return programs.run({&x, 1});
  }
};

class ProgramCaches : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(, ProgramCaches, testing::Values("reference", "cpu"),
                         [](const auto& info) { return info.param; });

TEST_P(ProgramCaches, CompileOnceForEachSetOfTypes) {
  Rows r(GetParam());
  for (const std::int64_t n : {4, 1, 4, 4, 1}) {
    const auto out = r.run(n, static_cast<double>(n));
    ASSERT_EQ(out.size(), 2u);
    EXPECT_EQ(out[0].shape(), (Shape{n, 2}));
    for (std::int64_t i = 0; i < out[0].elements(); ++i) EXPECT_EQ(out[0].at(i), 1.5 * static_cast<double>(n));
  }
  EXPECT_EQ(r.recorded, (std::vector<std::int64_t>{4, 1}));
  EXPECT_EQ(r.programs.compilations(), 2u);
  EXPECT_EQ(r.programs.size(), 2u);
}

TEST_P(ProgramCaches, ShareTheirVariables) {
  Rows r(GetParam());
  double count = 0;
  for (const std::int64_t n : {2, 3, 2, 3}) EXPECT_EQ(r.run(n, 1)[1].item(), ++count);
  EXPECT_EQ(r.runs.value().item(), 4);
  r.w.set(Tensor::full({DType::f32, {3, 2}}, 2));
  for (const std::int64_t n : {2, 3}) EXPECT_EQ(r.run(n, 1)[0].at(0), 6);
}

TEST_P(ProgramCaches, DropTheLeastRecentlyUsed) {
  Rows r(GetParam(), 2);
  for (const std::int64_t n : {1, 2, 1, 3}) r.run(n, 1);  // 2 goes, not 1
  EXPECT_EQ(r.programs.size(), 2u);
  r.run(1, 1);
  EXPECT_EQ(r.programs.compilations(), 3u);
  EXPECT_EQ(r.run(2, 1)[0].at(0), 1.5);
  EXPECT_EQ(r.recorded, (std::vector<std::int64_t>{1, 2, 3, 2}));
  EXPECT_EQ(r.programs.size(), 2u);
}

TEST_P(ProgramCaches, TellTypesOfOneShapeApart) {
  std::size_t inputs = 0;
  ProgramCache programs(
      [&](Tape& tape, std::span<const TensorType> types) {
        ProgramCache::Recording r;
        inputs += types.size();
        for (std::size_t i = 0; i < types.size(); ++i) r.inputs.push_back(tape.input(fmt::format("x{}", i), types[i]));
        r.fetches = {sum(cast(r.inputs.back(), DType::f32))};
        return r;
      },
      backend(GetParam()));
  const Tensor real = Tensor::full({DType::f32, {2}}, 1.5), whole = Tensor::full({DType::i32, {2}}, 3);
  const Tensor both[] = {real, whole}, swapped[] = {whole, real};
  EXPECT_EQ(programs.run({&real, 1})[0].item(), 3);
  EXPECT_EQ(programs.run({&whole, 1})[0].item(), 6);
  EXPECT_EQ(programs.run(both)[0].item(), 6);
  EXPECT_EQ(programs.run(swapped)[0].item(), 3);
  EXPECT_EQ(programs.compilations(), 4u);
  EXPECT_EQ(inputs, 6u);
}

// Between programs of a bound of two, an entry stays what it was.
TEST(ProgramCache, GivesTheSameEntryAgain) {
  Rows r("cpu", 2);
  const TensorType one = rows(1), two = rows(2);
  const ProgramCache::Entry& a = r.programs.at({&one, 1});
  const ProgramCache::Entry& b = r.programs.at({&two, 1});
  EXPECT_EQ(&a, &r.programs.at({&one, 1}));
  EXPECT_EQ(&b, &r.programs.at({&two, 1}));
  EXPECT_EQ(a.types, std::vector<TensorType>{one});
}

TEST(ProgramCache, SaysWhatARecordingLacks) {
  Tape elsewhere;
  const Value foreign = elsewhere.input("x", rows(2));
  enum { nothing, other_tape, no_input, other_shape, other_type, throws } wrong = nothing;
  int recordings = 0;
  ProgramCache programs(
      [&](Tape& tape, std::span<const TensorType> types) -> ProgramCache::Recording {
        ++recordings;
        const Value x = tape.input("x", types[0]), y = sum(x);
        switch (wrong) {
          case other_tape:
            return {{foreign}, {y}};
          case no_input:
            return {{x + 1.0}, {y}};
          case other_shape:
            return {{tape.input("z", rows(types[0].shape[0] + 1))}, {y}};
          case other_type:
            return {{tape.input("z", {DType::i32, types[0].shape})}, {y}};
          case throws:
            fail(ErrorKind::attribute, "not for {} rows", types[0].shape[0]);
          default:
            return {{}, {y}};
        }
      },
      cpu_backend());
  const auto run = [&] {
    const Tensor x(rows(2));
    programs.run({&x, 1});
  };
  SG_EXPECT_ERROR(usage, "1 types were asked for and the record function gave 0 inputs", run());
  wrong = other_tape;
  SG_EXPECT_ERROR(usage, "input 0 of the recording is null or on another tape", run());
  wrong = no_input;
  SG_EXPECT_ERROR(usage, "input 0 of the recording is no input of the tape", run());
  wrong = other_shape;
  SG_EXPECT_ERROR(shape, "was asked for as f32[2,3] and recorded as f32[3,3]", run());
  wrong = other_type;
  SG_EXPECT_ERROR(dtype, "was asked for as f32[2,3] and recorded as i32[2,3]", run());
  wrong = throws;
  SG_EXPECT_ERROR(attribute, "not for 2 rows", run());
  EXPECT_EQ(recordings, 6);
  EXPECT_EQ(programs.size(), 0u);
  EXPECT_EQ(programs.compilations(), 0u);
}

TEST(ProgramCache, NeedsRoomAndAFunction) {
  const auto record = [](Tape& tape, std::span<const TensorType> types) {
    return ProgramCache::Recording{{tape.input("x", types[0])}, {}};
  };
  SG_EXPECT_ERROR(usage, "room for 0 programs", ProgramCache(record, cpu_backend(), 0));
  SG_EXPECT_ERROR(usage, "the record function is empty", ProgramCache(nullptr, cpu_backend()));
}

}  // namespace
}  // namespace sg::test
