// Divergence of lanes, order of warps and blocks, what is reported, and what is refused at load.
#include <algorithm>

#include "tests/cuda/ptx_harness.h"
#include "tests/support/expect.h"

namespace sg::ptx_test {
namespace {

const char* kIndex =
    "mov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %ntid.x;\nmov.u32 %r3, %tid.x;\nmad.lo.s32 %r0, %r1, %r2, %r3;\n"
    "mul.wide.u32 %d0, %r0, 4;\nadd.u64 %d1, %p0, %d0;\n";

struct Outcome {
  std::vector<u32> out;
  ptx::Result result;
};
// 4 bytes of out for each thread, at %d1; `out` counts as written, %p1 is `blocks * threads` fresh words, none written.
Outcome run_body(const std::string& body, ptx::Dim grid = {}, ptx::Dim block = {32}, const ptx::Options& options = {},
                 const std::string& before = "") {
  const std::size_t n = std::size_t{grid.x} * block.x * block.y;
  HostMemory memory;
  u32* out = memory.add(std::vector<u32>(n));
  u32* fresh = memory.add(std::vector<u32>(n, 7), true);
  Outcome outcome;
  outcome.result = run(kernel(2, kIndex + body, before), grid, block, memory, {out, fresh}, options);
  outcome.out.assign(out, out + n);
  return outcome;
}
ptx::Options checks(u64 seed = 1) {
  ptx::Options options;
  options.check_races = options.check_initialised = true;
  options.seed = seed;
  return options;
}

// ---- divergence

TEST(PtxDivergence, NestedBranchesAndLoopsOfDifferentLengths) {
  // Steps of the Collatz sequence from index + 1, in a loop with a branch in it.
  const auto [out, result] = run_body(R"(
      add.u32 %r5, %r0, 1; mov.u32 %r6, 0;
      LOOP: setp.eq.u32 %q0, %r5, 1; @%q0 bra DONE;
      and.b32 %r7, %r5, 1; setp.eq.u32 %q1, %r7, 0; @%q1 bra EVEN;
      mad.lo.u32 %r5, %r5, 3, 1; bra NEXT;
      EVEN: shr.u32 %r5, %r5, 1;
      NEXT: add.u32 %r6, %r6, 1; bra LOOP;
      DONE: st.global.u32 [%d1], %r6;)",
                                      {2}, {48});
  ASSERT_TRUE(result.ok()) << result.report;
  for (u32 i = 0; i < 96; ++i) {
    u32 steps = 0;
    for (u32 n = i + 1; n != 1; ++steps) n = n % 2 == 0 ? n / 2 : 3 * n + 1;
    EXPECT_EQ(out[i], steps) << i;
  }
}

TEST(PtxDivergence, LanesMeetAgainAfterABranchAndShuffle) {
  // After the two sides join, a shuffle needs all lanes; also where one side leaves for good.
  const std::string shuffle = " shfl.sync.bfly.b32 %r6, %r5, 1, 0x1f, -1; st.global.u32 [%d1], %r6;";
  const auto joined =
      run_body("setp.lt.u32 %q0, %r0, 11; @%q0 bra A; mov.u32 %r5, 100; bra B; A: mov.u32 %r5, %r0; B:" + shuffle);
  ASSERT_TRUE(joined.result.ok()) << joined.result.report;
  for (u32 i = 0; i < 32; ++i) EXPECT_EQ(joined.out[i], (i ^ 1) < 11 ? (i ^ 1) : 100);
  // Each side has a shuffle of its own lanes.
  const auto apart = run_body(
      "setp.lt.u32 %q0, %r0, 16; mov.u32 %r5, %r0; @%q0 bra A; shfl.sync.bfly.b32 %r6, %r5, 1, 0x1f, 0xffff0000; "
      "bra B; A: shfl.sync.bfly.b32 %r6, %r5, 2, 0x1f, 0x0000ffff; B: st.global.u32 [%d1], %r6;");
  ASSERT_TRUE(apart.result.ok()) << apart.result.report;
  for (u32 i = 0; i < 32; ++i) EXPECT_EQ(apart.out[i], i < 16 ? i ^ 2 : i ^ 1);
}

TEST(PtxDivergence, LanesOfOneInstructionMayHaveMasksOfTheirOwn) {
  // Quarters of a warp shuffle and vote among themselves; then only two of the quarters.
  const std::string masks =
      "shr.u32 %r7, %r0, 3; shl.b32 %r7, %r7, 3; shl.b32 %r8, 255, %r7; mov.u32 %r9, 0; mov.u32 %r6, 0; ";
  const std::string ask =
      "shfl.sync.idx.b32 %r6, %r0, 3, 0x181f, %r8; setp.ge.u32 %q1, %r0, 9; vote.sync.ballot.b32 %r9, %q1, %r8; ";
  const std::string store = "mad.lo.u32 %r6, %r6, 1000, %r9; st.global.u32 [%d1], %r6;";
  auto expected = [](u32 i) { return (i / 8 * 8 + 3) * 1000 + (i < 8 ? 0 : i < 16 ? 0xfe00u : 255u << (i / 8 * 8)); };
  const auto all = run_body(masks + ask + store);
  ASSERT_TRUE(all.result.ok()) << all.result.report;
  for (u32 i = 0; i < 32; ++i) EXPECT_EQ(all.out[i], expected(i));
  const auto some =
      run_body(masks + "and.b32 %r10, %r0, 8; setp.eq.u32 %q0, %r10, 0; @%q0 bra SKIP; " + ask + "SKIP: " + store);
  ASSERT_TRUE(some.result.ok()) << some.result.report;
  for (u32 i = 0; i < 32; ++i) EXPECT_EQ(some.out[i], (i & 8) == 0 ? 0 : expected(i));
  const auto half =
      run_body(masks + "setp.lt.u32 %q0, %r0, 20; @%q0 bra SKIP; " + ask + "SKIP: bar.warp.sync -1; " + store);
  EXPECT_EQ(half.result.fault, ptx::Fault::shuffle) << "four lanes of a quarter are missing";
}

TEST(PtxDivergence, ABranchByTableSendsEachLaneItsWay) {
  const std::string body = R"(
      rem.u32 %r5, %r0, 3; setp.eq.u32 %q0, %r0, 30; @%q0 bra SKIP;
      TABLE: .branchtargets ZERO, ONE, TWO;
      brx.idx %r5, TABLE;
      ZERO: mov.u32 %r6, 100; bra END;
      ONE: mov.u32 %r6, 200; bra END;
      TWO: mov.u32 %r6, 300; bra END;
      SKIP: mov.u32 %r6, 9;
      END: shfl.sync.idx.b32 %r7, %r6, 0, 0x1f, -1; add.u32 %r6, %r6, %r7; st.global.u32 [%d1], %r6;)";
  const auto [out, result] = run_body(body);
  ASSERT_TRUE(result.ok()) << result.report;
  for (u32 i = 0; i < 32; ++i) EXPECT_EQ(out[i], 100 + (i == 30 ? 9 : 100 * (i % 3 + 1)));
  std::string beyond = body;
  beyond.replace(beyond.find("%r0, 3"), 6, "%r0, 4");
  EXPECT_EQ(run_body(beyond).result.fault, ptx::Fault::trap);
}

TEST(PtxDivergence, GuardedExitLeavesTheOthersRunning) {
  const auto [out, result] = run_body(
      "setp.gt.u32 %q0, %r0, 20; @%q0 exit; setp.lt.u32 %q1, %r0, 4; @!%q1 bra MORE; ret; "
      "MORE: st.global.u32 [%d1], 5;");
  ASSERT_TRUE(result.ok()) << result.report;
  for (u32 i = 0; i < 32; ++i) EXPECT_EQ(out[i], i >= 4 && i <= 20 ? 5u : 0u);
}

TEST(PtxDivergence, ABarrierInALoopThatAllRunEquallyOften) {
  // Sum over the block by halves, in every order of warps.
  for (u64 seed = 1; seed <= 10; ++seed) {
    const auto [out, result] = run_body(R"(
        .shared .align 4 .b8 tile[1024]; mov.u32 %r4, tile; shl.b32 %r5, %r3, 2; add.u32 %r5, %r5, %r4; st.shared.u32 [%r5], %r0;
        mov.u32 %r6, 128;
        LOOP: bar.sync 0; setp.ge.u32 %q0, %r3, %r6; @%q0 bra NEXT;
        shl.b32 %r7, %r6, 2; add.u32 %r7, %r7, %r5; ld.shared.u32 %r8, [%r7]; ld.shared.u32 %r9, [%r5]; add.u32 %r8, %r8, %r9; st.shared.u32 [%r5], %r8;
        NEXT: shr.u32 %r6, %r6, 1; setp.ne.u32 %q1, %r6, 0; @%q1 bra LOOP;
        bar.sync 0; ld.shared.u32 %r8, [tile]; st.global.u32 [%d1], %r8;)",
                                        {3}, {256}, checks(seed));
    ASSERT_TRUE(result.ok()) << result.report;
    for (u32 b = 0; b < 3; ++b) EXPECT_EQ(out[256 * b], b * 256 * 256 + 255 * 128);
  }
}

TEST(PtxSchedule, TheSeedDecidesTheOrderAndNothingElse) {
  // Tickets: who comes when. The same for the same seed, another for another.
  auto tickets = [](u64 seed) {
    ptx::Options options;
    options.seed = seed;
    return run_body("atom.global.add.u32 %r5, [count], 1; st.global.u32 [%d1], %r5;", {8}, {64}, options,
                    ".global .u32 count = 0;")
        .out;
  };
  EXPECT_EQ(tickets(1), tickets(1));
  EXPECT_NE(tickets(1), tickets(2));
  auto sorted = tickets(3);
  std::sort(sorted.begin(), sorted.end());
  for (u32 i = 0; i < 512; ++i) EXPECT_EQ(sorted[i], i);
}

TEST(PtxSchedule, AnEndlessLoopIsReported) {
  ptx::Options options;
  options.max_steps = 10000;
  const auto result = run_body("LOOP: bra LOOP;", {}, {64}, options).result;
  EXPECT_EQ(result.fault, ptx::Fault::endless);
  EXPECT_GE(result.warp_instructions, 10000u);
}

// ---- what is reported

void expect_fault(const std::string& body, ptx::Fault fault, const std::string& text, ptx::Dim grid = {},
                  ptx::Dim block = {64}, const ptx::Options& options = checks()) {
  SCOPED_TRACE(body);
  const auto result = run_body(body, grid, block, options, ".global .u32 word = 0;").result;
  EXPECT_EQ(static_cast<int>(result.fault), static_cast<int>(fault)) << result.report;
  SG_EXPECT_CONTAINS(result.report, text);
}
void expect_clean(const std::string& body, ptx::Dim grid = {}, ptx::Dim block = {64}) {
  SCOPED_TRACE(body);
  for (u64 seed = 1; seed <= 20; ++seed) {
    const auto result = run_body(body, grid, block, checks(seed), ".global .u32 word = 0;").result;
    ASSERT_TRUE(result.ok()) << result.report;
  }
}

TEST(PtxReports, NameKernelLineBlockAndThread) {
  const auto text = std::string(kHeader) +
                    ".visible .entry k(.param .u64 p)\n{\n.reg .b64 %d<2>;\n.loc 3 17 5\n.loc 3 0 0, function_name $x, "
                    "inlined_at 1 2 3\nld.param.u64 %d0, [p];\n"
                    ".loc\t3 42 9, function_name $x, inlined_at 1 2 3\nst.global.u32\t[%d0+64], 1;\nret;\n}\n.file 3 "
                    "\"/somewhere/thing.cu\"\n";
  HostMemory memory;
  u32* out = memory.add(std::vector<u32>(16));
  const auto result = run(text, {1, 2}, {2, 2}, memory, {out});
  EXPECT_EQ(result.fault, ptx::Fault::out_of_bounds);
  for (const char* part : {"out of bounds", "kernel k", "thing.cu:42", "block (0,", "thread (0,0,0)", "PTX line 11",
                           "st.global.u32 [%d0+64], 1", "beyond the 64 bytes at"})
    EXPECT_NE(result.report.find(part), std::string::npos) << part << "\n" << result.report;
}

TEST(PtxReports, BoundsAndAlignmentInEverySpace) {
  expect_fault("ld.global.u32 %r5, [%d1+4];", ptx::Fault::out_of_bounds, "thread (63,0,0)");
  expect_fault("ld.global.u32 %r5, [%d1+4];", ptx::Fault::out_of_bounds, "thread (63,0,0)", {}, {64}, {});
  expect_fault("st.global.u32 [%p0+-4], 0;", ptx::Fault::out_of_bounds, "outside every live allocation");
  expect_fault("ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%d1];", ptx::Fault::misaligned, "16 bytes");
  expect_fault("st.global.u64 [%p0+252], %d0;", ptx::Fault::misaligned, "8 bytes");
  expect_fault(".shared .align 4 .b8 x[16]; st.shared.u32 [x+16], 0;", ptx::Fault::out_of_bounds, "shared");
  expect_fault(".shared .align 8 .b8 x[16]; st.shared.u16 [x+3], 0;", ptx::Fault::misaligned, "shared");
  expect_fault(".local .align 4 .b8 x[16]; st.local.u32 [x+16], 0;", ptx::Fault::out_of_bounds, "local");
  expect_fault("atom.global.add.u32 %r5, [%p0+2], 1;", ptx::Fault::misaligned, "atomic");
  expect_fault("mov.u64 %d5, 0; ld.global.u32 %r5, [%d5];", ptx::Fault::out_of_bounds, "0x0");
  expect_fault("mov.u64 %d5, -4; ld.global.u64 %d6, [%d5];", ptx::Fault::misaligned, "");
  expect_fault("mov.u64 %d5, -8; ld.u64 %d6, [%d5];", ptx::Fault::out_of_bounds, "");
  expect_fault(".shared .align 4 .b8 x[16]; mov.u32 %r5, -4; ld.shared.u32 %r6, [%r5];", ptx::Fault::out_of_bounds, "",
               {}, {64}, {});
}

TEST(PtxReports, ReadsOfWhatNobodyWrote) {
  expect_fault("add.u64 %d2, %p1, %d0; ld.global.u32 %r5, [%d2];", ptx::Fault::uninitialised, "nobody has written");
  expect_fault(".shared .align 4 .b8 x[512]; ld.shared.u32 %r5, [x+4];", ptx::Fault::uninitialised, "shared");
  expect_fault(".shared .align 4 .b8 x[512]; st.shared.u16 [x], 1; bar.sync 0; ld.shared.u32 %r5, [x];",
               ptx::Fault::race, "", {}, {64});
  expect_fault(".shared .align 4 .b8 x[512]; st.shared.u16 [x], 1; ld.shared.u32 %r5, [x];", ptx::Fault::uninitialised,
               "", {}, {1});
  // Written in the same launch, or told to be written: no report. Where memory is not tracked neither.
  expect_clean("add.u64 %d2, %p1, %d0; st.global.u32 [%d2], 1; ld.global.u32 %r5, [%d2]; ld.global.u32 %r6, [%d1];");
  ptx::Options none;
  expect_fault("add.u64 %d2, %p1, %d0; ld.global.u32 %r5, [%d2];", ptx::Fault::none, "", {}, {64}, none);
}

TEST(PtxReports, RacesInSharedMemory) {
  const std::string start =
      ".shared .align 4 .b8 x[512]; mov.u32 %r4, x; shl.b32 %r5, %r3, 2; add.u32 %r5, %r5, %r4; "
      "xor.b32 %r6, %r3, 32; shl.b32 %r6, %r6, 2; add.u32 %r6, %r6, %r4; st.shared.u32 [%r5], %r3; ";
  const std::string read = "ld.shared.u32 %r7, [%r6]; ", own = "ld.shared.u32 %r7, [%r5]; ",
                    write = "st.shared.u32 [%r5], 1; ";
  ptx::Options races;
  races.check_races = true;
  for (u64 seed = 1; seed <= 5; ++seed) {  // whatever comes first, some pair of accesses is reported
    races.seed = seed;
    expect_fault(start + read, ptx::Fault::race, "shared memory offset", {}, {64}, races);
    expect_fault(start + "bar.sync 0; " + read + write, ptx::Fault::race, "race", {}, {64}, races);
  }
  expect_clean(start + own);
  expect_clean(start + "bar.sync 0; " + read);
  expect_clean(start + "bar.sync 0; " + read + "bar.sync 0; " + write);
  expect_clean(start + "bar.sync 0; " + read + "bar.sync 0; " + write, {5});
  expect_fault(".shared .align 4 .b8 x[4]; st.shared.u32 [x], %r3;", ptx::Fault::race, "write-after-write", {}, {64},
               races);
  // Nor does a thread race that reads and writes one half of a word beside another that has the other half.
  expect_clean(
      ".shared .align 4 .b8 x[256]; shl.b32 %r4, %r3, 1; mov.u32 %r5, x; add.u32 %r4, %r4, %r5; st.shared.u16 "
      "[%r4], 1; ld.shared.u16 %h0, [%r4]; st.shared.u16 [%r4], %h0;");
  // Neighbours that write different bytes of a word are no race.
  expect_clean(".shared .b8 x[64]; mov.u32 %r4, x; add.u32 %r4, %r4, %r3; st.shared.u8 [%r4], 1;");
  // Atomics do not race with each other, but with what is none.
  expect_clean(
      ".shared .align 4 .b8 x[4]; setp.eq.u32 %q0, %r3, 0; @%q0 st.shared.u32 [x], 0; bar.sync 0; red.shared.add.u32 "
      "[x], 1;");
  expect_fault(
      ".shared .align 4 .b8 x[4]; setp.eq.u32 %q0, %r3, 0; @%q0 st.shared.u32 [x], 0; red.shared.add.u32 [x], 1;",
      ptx::Fault::race, "", {}, {64}, races);
}

TEST(PtxReports, ABarrierOfTheWarpOrdersItsLanes) {
  const std::string start =
      ".shared .align 4 .b8 x[512]; mov.u32 %r4, x; shl.b32 %r5, %r3, 2; add.u32 %r5, %r5, %r4; "
      "xor.b32 %r6, %r3, 1; shl.b32 %r6, %r6, 2; add.u32 %r6, %r6, %r4; st.shared.u32 [%r5], %r3; ";
  const std::string read = "ld.shared.u32 %r7, [%r6]; ", all = "bar.warp.sync 0xffffffff; ",
                    write = "st.shared.u32 [%r5], %r7; ";
  expect_fault(start + read, ptx::Fault::race, "read-after-write");
  expect_clean(start + all + read);
  expect_clean(start + all + read + all + write + all + read);
  expect_fault(start + all + read + write, ptx::Fault::race, "write-after-read");
  // Pairs are ordered by a barrier of their half of the warp; a barrier of the other half orders nothing for them.
  const std::string halves =
      "and.b32 %r8, %r3, 31; setp.lt.u32 %q0, %r8, 16; selp.u32 %r9, 0xffff, 0xffff0000, %q0; bar.warp.sync %r9; ";
  expect_clean(start + halves + read);
  expect_fault(start + "and.b32 %r8, %r3, 31; setp.lt.u32 %q0, %r8, 16; @%q0 bar.warp.sync 0xffff; " + read,
               ptx::Fault::race, "thread (16,0,0)", {}, {32});
  // It says nothing between warps.
  std::string other = start + all + read;
  other.replace(other.find("%r3, 1"), 6, "%r3, 32");
  ptx::Options races;
  races.check_races = true;
  expect_fault(other, ptx::Fault::race, "", {}, {64}, races);
}

TEST(PtxReports, RacesBetweenBlocks) {
  expect_fault("ld.global.u32 %r5, [%p0]; add.u32 %r5, %r5, 1; st.global.u32 [%p0], %r5;", ptx::Fault::race, "address",
               {4}, {1});
  expect_clean("red.global.add.u32 [word], 1;", {4});
  expect_clean("st.global.u32 [%d1], %r0; ld.global.u32 %r5, [%d1];", {4});
  expect_fault("red.global.add.u32 [word], 1; ld.global.u32 %r5, [word];", ptx::Fault::race, "", {4});
  // A strong load looks at what others may write; it is theirs to order.
  expect_clean(
      "red.global.add.u32 [word], 1; ld.volatile.global.u32 %r5, [word]; ld.relaxed.gpu.global.u32 %r6, [word];", {4});
}

TEST(PtxReports, TheLastBlockMayReadWhatFencesAndAnAtomicHandOver) {
  // Each block writes its word, fences and counts; who counts last reads all.
  auto last_block = [](const std::string& fence) {
    return "add.u64 %d2, %p0, 0; mul.wide.u32 %d3, %r1, 4; add.u64 %d2, %d2, %d3; st.global.u32 [%d2], %r1; " + fence +
           " atom.global.add.u32 %r5, [word], 1; setp.ne.u32 %q0, %r5, 3; @%q0 bra END; ld.global.u32 %r6, [%p0]; "
           "ld.global.u32 %r7, [%p0+4]; ld.global.u32 %r8, [%p0+8]; ld.global.u32 %r9, [%p0+12]; END:";
  };
  expect_clean(last_block("membar.gl;"), {4}, {1});
  expect_clean(last_block("fence.acq_rel.gpu;"), {4}, {1});
  expect_fault(last_block(""), ptx::Fault::race, "read-after-write", {4}, {1});
  expect_fault(last_block("membar.cta;"), ptx::Fault::race, "read-after-write", {4}, {1});
}

TEST(PtxReports, BarriersWithoutAllThreads) {
  expect_fault("setp.lt.u32 %q0, %r3, 40; @%q0 ret; bar.sync 0;", ptx::Fault::barrier, "40 of the 64 threads");
  expect_fault("setp.lt.u32 %q0, %r3, 40; @%q0 bra A; bar.sync 0; bra B; A: bar.sync 0; B:", ptx::Fault::barrier,
               "divergent");
  expect_fault("setp.lt.u32 %q0, %r3, 5; @%q0 bar.sync 0;", ptx::Fault::barrier, "never arrive", {}, {64});
  // A warp whole on each side, but at another barrier than the other warp.
  expect_fault("setp.lt.u32 %q0, %r3, 32; @%q0 bra A; bar.sync 0; bra B; A: bar.sync 0; B:", ptx::Fault::barrier,
               "divergent");
  expect_clean("setp.lt.u32 %q0, %r3, 40; @%q0 bra A; add.u32 %r5, %r5, 1; A: bar.sync 0;");
}

TEST(PtxReports, ShufflesWithMissingLanes) {
  expect_fault("setp.ge.u32 %q0, %r3, 50; @%q0 ret; shfl.sync.down.b32 %r5, %r3, 1, 0x1f, -1;", ptx::Fault::shuffle,
               "has exited");
  expect_fault("shfl.sync.down.b32 %r5, %r3, 1, 0x1f, -1;", ptx::Fault::shuffle, "never was", {}, {48});
  expect_fault("shfl.sync.down.b32 %r5, %r3, 1, 0x1f, 1;", ptx::Fault::shuffle, "own member mask");
  expect_fault("setp.lt.u32 %q0, %r3, 8; @%q0 shfl.sync.idx.b32 %r5, %r3, 20, 0x1f, 0xff;", ptx::Fault::shuffle,
               "lane 20", {}, {32});
  expect_fault("setp.lt.u32 %q0, %r3, 8; @%q0 bra A; bar.sync 0; bra B; A: bar.warp.sync -1; B:", ptx::Fault::shuffle,
               "never arrive", {}, {32});
  expect_fault("setp.lt.u32 %q0, %r3, 8; @%q0 bra A; vote.sync.ballot.b32 %r5, %q0, -1; bra B; A: bar.sync 0; B:",
               ptx::Fault::shuffle, "never arrive", {}, {32});
  expect_clean("setp.lt.u32 %q0, %r3, 40; @%q0 ret; activemask.b32 %r6; shfl.sync.bfly.b32 %r5, %r3, 1, 0x1f, %r6;");
}

TEST(PtxReports, TrapsAndAssertions) {
  expect_fault("setp.eq.u32 %q0, %r3, 33; @%q0 trap;", ptx::Fault::trap, "thread (33,0,0)");
  const std::string declare =
      ".extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e) "
      ".noreturn;\n"
      ".global .align 1 .b8 said[6] = {120, 32, 62, 32, 48};\n.global .align 1 .b8 where[5] = {97, 46, 99, 117};\n";
  const auto result = run_body(R"(
      { .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e; mov.u64 %d5, said; cvta.global.u64 %d6, %d5;
        st.param.b64 [a+0], %d6; mov.u64 %d5, where; st.param.b64 [b], %d5; st.param.b32 [c], 88; st.param.b64 [d], %d5; st.param.b64 [e], 1;
        call.uni __assertfail, (a, b, c, d, e); })",
                               {}, {32}, {}, declare)
                          .result;
  EXPECT_EQ(result.fault, ptx::Fault::assertion);
  SG_EXPECT_CONTAINS(result.report, "x > 0 (a.cu:88)");
}

// ---- what is refused

void expect_refused(const std::string& body, const std::string& text, const std::string& before = "") {
  SCOPED_TRACE(body);
  try {
    ptx::Module module(kernel(2, body, before));
    ADD_FAILURE() << "accepted";
  } catch (const std::runtime_error& error) {
    SG_EXPECT_CONTAINS(std::string(error.what()), text);
    SG_EXPECT_CONTAINS(std::string(error.what()), "ptx line ");
  }
}

TEST(PtxRefusals, AnUnknownInstructionNamesItsLineAndText) {
  try {
    ptx::Module module(kernel(0, "add.u32 %r0, %r0, 1;\n\nfrobnicate.u32 %r0, %r1;"));
    ADD_FAILURE();
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "ptx line 15: unknown instruction: frobnicate.u32 %r0, %r1");
  }
  // Instructions that exist, with something about them that is not known.
  for (const char* instruction :
       {"add.ftz.f32 %f0, %f1, %f2;",
        "add.s32.wrong %r0, %r1, %r2;",
        "fma.rn.relu.f32 %f0, %f1, %f2, %f3;",
        "div.f32 %f0, %f1, %f2;",
        "ld.global.v3.u32 {%r0, %r1, %r2}, [%p0];",
        "ld.tex.u32 %r0, [%p0];",
        "st.global.v2.u32 [%p0], %r0;",
        "ld.global.L9::hint.u32 %r0, [%p0];",
        "atom.global.add.b32 %r0, [%p0], 1;",
        "atom.global.sub.u32 %r0, [%p0], 1;",
        "atom.local.add.u32 %r0, [%p0], 1;",
        "shfl.up.b32 %r0, %r1, 1, 0;",
        "shfl.sync.left.b32 %r0, %r1, 1, 0, -1;",
        "vote.sync.most.pred %q0, %q1, -1;",
        "cvt.rn.f32.f99 %f0, %f1;",
        "cvt.f32 %f0, %f1;",
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d0, %d1}, {%d2}, {%d3}, {%d4, %d5};",
        "cp.async.bulk.shared.global [%p0], [%p1], 16;",
        "cp.async.cg.shared.global [%r0], [%p1], 8;",
        "wgmma.fence.sync.aligned;",
        "membar.proxy;",
        "redux.sync.mul.u32 %r0, %r1, -1;",
        "setp.lt.f16x2 %q0|%q1, %r0, %r1;",
        "brx %r0, A;",
        "elect.sync %r0|%q0, -1;",
        "tex.2d.v4.f32.s32 {%f0, %f1, %f2, %f3}, [t, {%r0, %r1}];"})
    expect_refused(instruction, "unknown instruction");
}

TEST(PtxRefusals, NamedAndPartialBarriers) {
  for (const char* instruction :
       {"bar.sync 1;", "bar.sync %r0;", "bar.sync 0, 64;", "barrier.sync 2;", "bar.red.popc.u32 %r0, 1, %q0;"})
    expect_refused(instruction, "a barrier other than number 0");
  expect_refused("bar.arrive 0, 32;", "unknown instruction");
}

TEST(PtxRefusals, OperandsThatDoNotFit) {
  expect_refused("add.u32 %r0, %r1, %d0;", "%d0 has 8 bytes where 4");
  expect_refused("add.u64 %d0, %r1, %d0;", "%r1 has 4 bytes where 8");
  expect_refused("add.u16 %h0, %r1, %h0;", "%r1 has 4 bytes where 2");
  expect_refused("add.u32 %r0, %r1;", "2 operands");
  expect_refused("add.u32 %r0, %r1, %r2, %r3;", "4 operands");
  expect_refused("add.u32 %r0, %r1, %r99;", "unknown operand: %r99");
  expect_refused("add.u32 5, %r1, %r2;", "not a register: 5");
  expect_refused("add.u32 %tid.x, %r1, %r2;", "not a register");
  expect_refused("mov.u32 %r0, %clock;", "%clock");
  expect_refused("add.f64 %d0, %d1, 0f3F800000;", "constant");
  expect_refused("add.f32 %f0, %f1, 0f3F80;", "unknown operand");
  expect_refused("@%r0 bra A; A:", "not a predicate");
  expect_refused("and.pred %q0, !%q1, %q2;", "inverted");
  expect_refused("selp.u32 %r0, 1, 2, %r3;", "not a predicate");
  expect_refused("ld.global.u64 %r0, [%p0];", "smaller than the element");
  expect_refused("ld.global.u32 %r0, [%q0];", "address");
  expect_refused("ld.global.u32 %r0, %p0;", "unknown address");
  expect_refused("ld.param.u32 %r0, [nothing];", "unknown address");
  expect_refused("cvt.u64.u32 %r0, %r1;", "no register for the result");
  expect_refused("bra NOWHERE;", "no such label: NOWHERE");
  expect_refused("brx.idx %r0, NOWHERE;", "no such table");
  expect_refused("A: A: bra A;", "label twice");
}

TEST(PtxRefusals, TextThatIsNoModule) {
  for (const char* text : {"add.u32 %r0, %r1, %r2;",
                           ".entry",
                           ".entry k",
                           ".entry k(",
                           ".entry k(.param .u32 x",
                           ".entry k() {",
                           ".entry k() { add.u32 ",
                           ".entry k() { .reg .b32 %r<; }",
                           ".entry k() { .reg .q7 %r<4>; ret; }",
                           ".entry k() { .reg .b32 }",
                           ".entry k(.param .u32) { ret; }",
                           ".entry k() .surprise 4 { ret; }",
                           ".entry k() { /* ",
                           ".entry k() { { ret; ",
                           ".entry k() { ret; } }",
                           ".global .u32 x = {1, 2};",
                           ".global .u32 x = y;",
                           ".global .align 3 .u32 x;",
                           ".global .u32 x[;",
                           ".global .u32 x[99999999999999999999];",
                           ".surface x;",
                           ".entry k() { .loc 1; ret; }",
                           ".entry k() { @ ; }",
                           ".entry k() { .; }",
                           ".file 1",
                           ".entry k() { ret ret; }",
                           ".extern .global .u32 x;",
                           ".shared .b8 x[];",
                           ".section .debug {",
                           "}"}) {
    SCOPED_TRACE(text);
    EXPECT_THROW(ptx::Module{std::string(kHeader) + text}, std::runtime_error);
  }
  EXPECT_NO_THROW(ptx::Module(""));
  // Any beginning of a good module is refused or is a module, and any one character away from it as well.
  const std::string good = kernel(
      2,
      std::string(kIndex) + "setp.lt.u32 %q0, %r0, 9; @%q0 bra A; ld.global.v2.u32 {%r4, %r5}, [%d1+8]; A: bar.sync 0;",
      ".global .align 4 .b8 t[8] = {1, 2, 3};\n.extern .func f(.param .b32 x);\n");
  auto load = [](const std::string& text) {
    try {
      ptx::Module module(text);
    } catch (const std::runtime_error&) {
    }
  };
  std::mt19937 random(5);
  for (std::size_t i = 0; i < good.size(); ++i) {
    load(good.substr(0, i));
    load(good.substr(0, i) + good.substr(i + 1));
    std::string changed = good;
    changed[i] = "{}()[];,.%@!0x\"/ \n"[random() % 18];
    load(changed);
  }
}

}  // namespace
}  // namespace sg::ptx_test
