// Memory of every space, atomics, asynchronous copies, parameters, calls and what the lanes of a warp do together.
#include <algorithm>
#include <bit>
#include <numeric>

#include "tests/cuda/ptx_harness.h"

namespace sg::ptx_test {
namespace {

// d0 = index of the thread in the grid, 4 bytes a piece: %d1 = p0 + 4 * index, ...
const char* kIndex =
    "mov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %ntid.x;\nmov.u32 %r3, %tid.x;\nmad.lo.s32 %r0, %r1, %r2, %r3;\n"
    "mul.wide.u32 %d0, %r0, 4;\nadd.u64 %d1, %p0, %d0;\n";

template <class T>
std::vector<T> counted(std::size_t n) {
  std::vector<T> v(n);
  std::iota(v.begin(), v.end(), T{});
  return v;
}

// Runs `body` with n threads of one block; out[i] at %d1, 4 bytes a thread.
std::vector<u32> run_threads(const std::string& body, unsigned n = 32, const std::vector<u32>& in = {},
                             const std::string& before = "") {
  HostMemory memory;
  u32* out = memory.add(std::vector<u32>(n));
  const auto result = run(kernel(2, kIndex + body, before), {}, {n}, memory, {out, memory.add(in)});
  EXPECT_TRUE(result.ok()) << result.report;
  return std::vector<u32>(out, out + n);
}

TEST(PtxMemory, LoadsAndStoresOfEveryWidth) {
  HostMemory memory;
  const std::vector<u8> bytes{0x80, 1, 0xff, 0x7f, 0xfe, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 7, 0x88};
  u8* in = memory.add(bytes);
  u64* out = memory.add(std::vector<u64>(12));
  const std::string text = kernel(2, R"(
      ld.global.s8 %r0, [%p1]; st.global.u32 [%p0], %r0;
      ld.global.u8 %r0, [%p1+0]; st.global.u32 [%p0+8], %r0;
      ld.global.s8 %h0, [%p1+2]; st.global.u16 [%p0+16], %h0;
      ld.global.s16 %d0, [%p1+4]; st.global.u64 [%p0+24], %d0;
      ld.global.u16 %r1, [%p1+4]; st.global.u32 [%p0+32], %r1;
      ld.global.s32 %d1, [%p1+4]; st.global.u64 [%p0+40], %d1;
      ld.global.u32 %d2, [%p1+4]; st.global.u64 [%p0+48], %d2;
      ld.global.v2.u32 {%r2, _}, [%p1+8]; st.global.u32 [%p0+56], %r2;
      ld.global.v4.u8 {%h1, %h2, %h3, %h4}, [%p1+8]; st.global.v4.u8 [%p0+64], {%h4, %h3, %h2, %h1};
      ld.global.v2.b64 {%d3, %d4}, [%p1]; st.global.v2.b64 [%p0+80], {%d4, 7};
      add.u64 %d5, %p1, 16; ld.global.u8 %r3, [%d5+-1]; st.global.u8 [%p0+72], %r3;)");
  const auto result = run(text, {}, {1}, memory, {out, in});
  ASSERT_TRUE(result.ok()) << result.report;
  EXPECT_EQ(static_cast<u32>(out[0]), 0xffffff80u);
  EXPECT_EQ(out[1], 0x80u);
  EXPECT_EQ(out[2], 0xffffu);
  EXPECT_EQ(out[3], 0xfffffffffffffffeull);
  EXPECT_EQ(out[4], 0xfffeu);
  EXPECT_EQ(out[5], ~u64{1});
  EXPECT_EQ(out[6], 0xfffffffeu);
  EXPECT_EQ(out[7], 0x04030201u);
  EXPECT_EQ(out[8], 0x01020304u);
  EXPECT_EQ(out[9], 0x88u);
  EXPECT_EQ(out[10], 0x8807060504030201ull);
  EXPECT_EQ(out[11], 7u);
}

TEST(PtxMemory, ASharedPermutationOfAnyPattern) {
  // out[i] = in[(7 i) % n]: stored in order, loaded scattered; broadcast of the first added.
  const auto in = counted<u32>(64);
  const auto out = run_threads(R"(
      add.u64 %d2, %p1, %d0; ld.global.u32 %r5, [%d2];
      shl.b32 %r6, %r0, 2; mov.u32 %r7, tile; add.u32 %r8, %r7, %r6; st.shared.u32 [%r8], %r5;
      bar.sync 0;
      mul.lo.u32 %r9, %r0, 7; rem.u32 %r9, %r9, 64; shl.b32 %r9, %r9, 2; add.u32 %r9, %r9, %r7;
      ld.shared.u32 %r10, [%r9]; ld.shared.u32 %r11, [tile+4]; add.u32 %r10, %r10, %r11;
      st.global.u32 [%d1], %r10;)",
                               64, in, ".shared .align 4 .b8 tile[256];");
  for (u32 i = 0; i < 64; ++i) EXPECT_EQ(out[i], 7 * i % 64 + 1);
}

TEST(PtxMemory, SpacesThroughGenericAddresses) {
  const auto out = run_threads(
      R"(
      .local .align 4 .b8 mine[16]; .shared .align 4 .b8 ours[128];
      mov.u64 %d2, mine; cvta.local.u64 %d2, %d2;
      mov.u64 %d3, ours; cvta.shared.u64 %d3, %d3; add.u64 %d3, %d3, %d0;
      st.u32 [%d2+4], %r0; st.local.u32 [mine+8], 100; st.u32 [%d3], %r0;
      bar.sync 0;
      xor.b32 %r5, %r0, 1; mul.wide.u32 %d4, %r5, 4; mov.u64 %d5, ours; add.u64 %d5, %d5, %d4; ld.shared.u32 %r6, [%d5];
      ld.local.u32 %r7, [mine+4]; ld.u32 %r8, [%d2+8];
      ld.global.u32 %r10, [counter]; ld.const.u32 %r11, [table+4];
      mad.lo.u32 %r9, %r6, 1000, %r7; add.u32 %r9, %r9, %r8; add.u32 %r9, %r9, %r10; add.u32 %r9, %r9, %r11;
      cvta.global.u64 %d6, %d1; st.u32 [%d6], %r9;)",
      32, {}, ".global .align 4 .u32 counter = 5;\n.const .align 4 .b8 table[8] = {0, 0, 0, 0, 0, 1, 0, 0};");
  for (u32 i = 0; i < 32; ++i) EXPECT_EQ(out[i], (i ^ 1) * 1000 + i + 100 + 5 + 256);
}

TEST(PtxMemory, DynamicSharedMemoryFollowsTheStatic) {
  HostMemory memory;
  u32* out = memory.add(std::vector<u32>(32));
  const std::string text = kernel(1, std::string(kIndex) + R"(
      .shared .align 4 .b8 fixed[20];
      mov.u32 %r5, heap; mov.u32 %r6, fixed; sub.u32 %r7, %r5, %r6; shl.b32 %r8, %r0, 2; add.u32 %r9, %r5, %r8;
      st.shared.u32 [%r9], %r7; st.shared.u32 [fixed+16], 0; ld.shared.u32 %r10, [%r9]; st.global.u32 [%d1], %r10;)",
                                  ".extern .shared .align 16 .b8 heap[];");
  EXPECT_TRUE(run(text, {}, {32}, memory, {out}, {}, 128).ok());
  EXPECT_EQ(out[31], 32u);
  const auto short_of = run(text, {}, {32}, memory, {out}, {}, 124);
  EXPECT_EQ(short_of.fault, ptx::Fault::out_of_bounds) << short_of.report;
}

TEST(PtxMemory, ParametersOfEveryKind) {
  const std::string text = std::string(kHeader) + R"(
    .visible .entry k(.param .u64 .ptr .global .align 4 out, .param .u8 byte, .param .f64 real, .param .align 8 .b8 pack[24])
    { .reg .b64 %d<8>; .reg .b32 %r<8>; .reg .f64 %fd<4>;
      ld.param.u64 %d0, [out]; ld.param.u8 %r0, [byte]; ld.param.f64 %fd0, [real]; ld.param.v2.u32 {%r1, %r2}, [pack+8];
      cvt.rzi.s32.f64 %r3, %fd0; mov.b64 %d1, pack; ld.param.s16 %r4, [%d1+22];
      st.global.v4.u32 [%d0], {%r0, %r1, %r2, %r3}; st.global.u32 [%d0+16], %r4; ret; })";
  const ptx::Module module(text);
  const auto p = ptx::parameters(*module.find("k"));
  ASSERT_EQ(p.size(), 4u);
  EXPECT_EQ(p[1].offset, 8u);
  EXPECT_EQ(p[1].size, 1u);
  EXPECT_EQ(p[2].offset, 16u);
  EXPECT_EQ(p[3].offset, 24u);
  EXPECT_EQ(p[3].size, 24u);
  HostMemory memory;
  s32* out = memory.add(std::vector<s32>(5));
  u8 byte = 200;
  double real = -7.9;
  s32 pack[6] = {0, 0, 11, 12, 0, static_cast<s32>(0xfffe0000u)};
  void* arguments[] = {&out, &byte, &real, pack};
  ASSERT_TRUE(ptx::launch(*module.find("k"), {}, {}, 0, arguments, memory).ok());
  EXPECT_EQ(std::vector<s32>(out, out + 5), (std::vector<s32>{200, 11, 12, -7, -2}));
}

TEST(PtxMemory, FactsOfAKernel) {
  const ptx::Module module(std::string(kHeader) + R"(
    .visible .entry first() .maxntid 64, 2, 1 { .reg .b32 %r<9>; .reg .pred %p<3>; .shared .b8 x[100]; ret; }
    .entry second() .reqntid 16 { ret; })");
  EXPECT_EQ(module.names(), (std::vector<std::string>{"first", "second"}));
  EXPECT_EQ(module.find("third"), nullptr);
  const ptx::Kernel& first = *module.find("first");
  EXPECT_EQ(ptx::registers_declared(first), 8);
  EXPECT_EQ(ptx::static_shared_bytes(first), 100u);
  EXPECT_EQ(ptx::max_threads(first), 128u);
  HostMemory memory;
  EXPECT_EQ(ptx::launch(first, {}, {129}, 0, nullptr, memory).fault, ptx::Fault::bad_launch);
  EXPECT_EQ(ptx::launch(*module.find("second"), {}, {8}, 0, nullptr, memory).fault, ptx::Fault::bad_launch);
  EXPECT_TRUE(ptx::launch(*module.find("second"), {3, 2, 2}, {16}, 0, nullptr, memory).ok());
  EXPECT_EQ(ptx::launch(*module.find("second"), {0}, {16}, 0, nullptr, memory).fault, ptx::Fault::bad_launch);
}

// The old value of each thread, and what stays in memory after all 64 of them.
void check_atomic(const std::string& instruction, u64 start, u64 expected, bool wide) {
  for (const char* space : {"global", "shared"}) {
    SCOPED_TRACE(instruction + " " + space);
    HostMemory memory;
    u64* out = memory.add(std::vector<u64>{start});
    std::string text = instruction;
    text.replace(text.find("SPACE"), 5, space);
    const std::string type = wide ? "b64" : "b32", reg = wide ? "%d" : "%r",
                      address = space == std::string("global") ? "[%p0]" : "[cell]";
    text.replace(text.find("[x]"), 3, address);
    const std::string body = fmt::format(R"(
        .shared .align 8 .b8 cell[8];
        mov.u32 %r0, %tid.x; cvt.u64.u32 %d0, %r0; cvt.rn.f32.u32 %f0, %r0; setp.eq.u32 %q0, %r0, 0;
        @%q0 ld.global.b64 %d9, [%p0]; @%q0 st.shared.b64 [cell], %d9; bar.sync 0;
        {}; bar.sync 0;
        @%q0 ld.{}.{} {}20, {}; @%q0 st.global.{} [%p0], {}20;)",
                                         text, space, type, reg, address, type, reg);
    const auto result = run(kernel(1, body), {}, {64}, memory, {out});
    ASSERT_TRUE(result.ok()) << result.report;
    EXPECT_EQ(wide ? out[0] : static_cast<u32>(out[0]), expected);
  }
}

TEST(PtxMemory, AtomicsOfEveryKind) {
  check_atomic("red.SPACE.add.u32 [x], %r0", 10, 10 + 63 * 32, false);
  check_atomic("atom.SPACE.add.u32 %r5, [x], 1", ~u64{0}, 63, false);
  check_atomic("red.SPACE.min.s32 [x], %r0", static_cast<u32>(-5), static_cast<u32>(-5), false);
  check_atomic("red.SPACE.min.u32 [x], %r0", static_cast<u32>(-5), 0, false);
  check_atomic("red.SPACE.max.s32 [x], %r0", static_cast<u32>(-5), 63, false);
  check_atomic("red.SPACE.max.u32 [x], %r0", static_cast<u32>(-5), static_cast<u32>(-5), false);
  check_atomic("atom.SPACE.or.b32 %r5, [x], %r0", 64, 127, false);
  check_atomic("atom.SPACE.and.b32 %r5, [x], 12", 7, 4, false);
  check_atomic("atom.SPACE.xor.b32 %r5, [x], %r0", 9, 9, false);
  check_atomic("atom.SPACE.inc.u32 %r5, [x], 9", 0, 64 % 10, false);
  check_atomic("atom.SPACE.dec.u32 %r5, [x], 9", 3, 9, false);
  check_atomic("atom.SPACE.exch.b32 %r5, [x], 77", 3, 77, false);
  check_atomic("atom.SPACE.cas.b32 %r5, [x], 5, 6", 5, 6, false);
  check_atomic("atom.SPACE.cas.b32 %r5, [x], 5, 6", 4, 4, false);
  check_atomic("red.SPACE.add.f32 [x], %f0", std::bit_cast<u32>(0.5f), std::bit_cast<u32>(2016.5f), false);
  check_atomic("red.SPACE.add.u64 [x], %d0", u64{1} << 32, (u64{1} << 32) + 2016, true);
  check_atomic("atom.SPACE.min.s64 %d5, [x], %d0", ~u64{0}, ~u64{0}, true);
  check_atomic("atom.SPACE.max.u64 %d5, [x], %d0", 5, 63, true);
  check_atomic("atom.SPACE.cas.b64 %d5, [x], 5, 7", 5, 7, true);
  check_atomic("atom.SPACE.exch.b64 %d5, [x], 8", 5, 8, true);
  check_atomic("red.SPACE.add.f64 [x], 0d3FF0000000000000", std::bit_cast<u64>(1.0), std::bit_cast<u64>(65.0), true);
}

TEST(PtxMemory, AtomicsGiveEachThreadItsOwnOldValue) {
  const auto old = run_threads(R"(
      .shared .align 4 .b8 cell[4]; setp.eq.u32 %q0, %r0, 0; @%q0 st.shared.u32 [cell], 0; bar.sync 0;
      atom.shared.add.u32 %r5, [cell], 1; st.global.u32 [%d1], %r5;)",
                               96);
  std::vector<u32> sorted = old;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(sorted, counted<u32>(96));
}

TEST(PtxMemory, AnAsynchronousCopyLandsAtItsWait) {
  const auto in = counted<u32>(128);
  // Each thread copies 16 bytes; read before the wait and after it. A second group may stay open.
  const std::string start = R"(
      .shared .align 16 .b8 tile[512]; .shared .align 16 .b8 other[512];
      shl.b32 %r5, %r0, 4; mov.u32 %r6, tile; add.u32 %r6, %r6, %r5; mov.u32 %r7, other; add.u32 %r7, %r7, %r5;
      mul.wide.u32 %d3, %r0, 16; add.u64 %d4, %p1, %d3;
      cp.async.cg.shared.global [%r6], [%d4], 16; cp.async.commit_group;
      cp.async.ca.shared.global [%r7], [%d4+4], 4; cp.async.commit_group; )";
  const std::string end =
      " ld.shared.u32 %r8, [%r6+12]; ld.shared.u32 %r9, [%r7]; mad.lo.u32 %r8, %r8, 1000, %r9; st.global.u32 [%d1], "
      "%r8;";
  for (u32 i = 0; const u32 x : run_threads(start + "cp.async.wait_group 1;" + end, 32, in)) {
    EXPECT_EQ(x, (4 * i + 3) * 1000 + ~u32{0});
    ++i;
  }
  for (const char* wait : {"cp.async.wait_group 0;", "cp.async.wait_all;"})
    for (u32 i = 0; const u32 x : run_threads(start + wait + end, 32, in)) {
      EXPECT_EQ(x, (4 * i + 3) * 1000 + 4 * i + 1);
      ++i;
    }
  for (const u32 x : run_threads(start + end, 32, in)) EXPECT_EQ(x, ~u32{0} * 1000 + ~u32{0});
  // Fewer bytes than the copy has: the rest is zero.
  for (u32 i = 0; const u32 x : run_threads(R"(
      .shared .align 16 .b8 tile[512]; shl.b32 %r5, %r0, 4; mov.u32 %r6, tile; add.u32 %r6, %r6, %r5;
      mul.wide.u32 %d3, %r0, 16; add.u64 %d4, %p1, %d3; cp.async.cg.shared.global [%r6], [%d4], 16, 8; cp.async.wait_all;
      ld.shared.v4.u32 {%r7, %r8, %r9, %r10}, [%r6]; mad.lo.u32 %r7, %r8, 100, %r7; add.u32 %r7, %r7, %r9; add.u32 %r7, %r7, %r10;
      st.global.u32 [%d1], %r7;)",
                                            32, in)) {
    EXPECT_EQ(x, (4 * i + 1) * 100 + 4 * i);
    ++i;
  }
}

// ---- lanes of a warp

TEST(PtxWarp, ShufflesAreAsTheIsaDefinesThem) {
  std::mt19937 random(3);
  for (const std::string mode : {"up", "down", "bfly", "idx"})
    for (const u32 c : {0x1fu, 0u, 0x101fu, 0x181fu, 0x1c1fu, 0x1000u, 0x0707u})
      for (int round = 0; round < 4; ++round) {
        std::vector<u32> lane(32);
        for (u32& b : lane) b = round == 0 ? 1 : static_cast<u32>(random() % 40);
        const auto out = run_threads(fmt::format(R"(
            add.u64 %d2, %p1, %d0; ld.global.u32 %r5, [%d2]; mul.lo.u32 %r6, %r0, 10;
            shfl.sync.{}.b32 %r7|%q0, %r6, %r5, {}, 0xffffffff; selp.u32 %r8, 1, 0, %q0; add.u32 %r7, %r7, %r8;
            st.global.u32 [%d1], %r7;)",
                                                 mode, c),
                                     32, lane);
        for (int l = 0; l < 32; ++l) {
          const int b = static_cast<int>(lane[static_cast<std::size_t>(l)] & 31),
                    segment = static_cast<int>(c >> 8 & 31), clamp = static_cast<int>(c & 31);
          const int most = (l & segment) | (clamp & ~segment), least = l & segment;
          const int from = mode == "up"     ? l - b
                           : mode == "down" ? l + b
                           : mode == "bfly" ? (l ^ b)
                                            : (least | (b & ~segment));
          const bool inside = mode == "up" ? from >= most : from <= most;
          EXPECT_EQ(out[static_cast<std::size_t>(l)], static_cast<u32>((inside ? from : l) * 10 + (inside ? 1 : 0)))
              << mode << " " << c << " lane " << l;
        }
      }
}

TEST(PtxWarp, VotesMatchesAndReductions) {
  const std::vector<u32> in = [] {
    std::vector<u32> v;
    for (u32 i = 0; i < 32; ++i) v.push_back(i * 2654435761u >> 30);
    return v;
  }();
  const std::string load = "add.u64 %d2, %p1, %d0; ld.global.u32 %r5, [%d2]; setp.eq.u32 %q0, %r5, 2; ";
  const std::string store = " st.global.u32 [%d1], %r6;", select = " selp.u32 %r6, 1, 0, %q1;";
  u32 ballot = 0;
  for (u32 i = 0; i < 32; ++i) ballot |= static_cast<u32>(in[i] == 2) << i;
  auto expect_all = [&](const std::string& body, u32 expected) {
    SCOPED_TRACE(body);
    EXPECT_EQ(run_threads(load + body + store, 32, in), std::vector<u32>(32, expected));
  };
  expect_all("vote.sync.ballot.b32 %r6, %q0, 0xffffffff;", ballot);
  expect_all("vote.sync.ballot.b32 %r6, !%q0, -1;", ~ballot);
  expect_all("vote.sync.any.pred %q1, %q0, -1;" + select, 1);
  expect_all("vote.sync.all.pred %q1, %q0, -1;" + select, 0);
  expect_all("vote.sync.uni.pred %q1, %q0, -1;" + select, 0);
  expect_all("setp.lt.u32 %q0, %r5, 9; vote.sync.all.pred %q1, %q0, -1;" + select, 1);
  expect_all("redux.sync.add.s32 %r6, %r0, -1;", 496);
  expect_all("sub.s32 %r7, 5, %r0; redux.sync.min.s32 %r6, %r7, -1;", static_cast<u32>(5 - 31));
  expect_all("sub.s32 %r7, 5, %r0; redux.sync.max.s32 %r6, %r7, -1;", 5);
  expect_all("sub.s32 %r7, 5, %r0; redux.sync.max.u32 %r6, %r7, -1;", ~u32{0});
  expect_all("redux.sync.or.b32 %r6, %r0, -1;", 31);
  expect_all("redux.sync.xor.b32 %r6, %r0, -1;", 0);
  expect_all("activemask.b32 %r6;", ~u32{0});
  expect_all("match.all.sync.b32 %r6|%q1, %r5, -1;", 0);
  expect_all("mov.u32 %r7, 3; match.all.sync.b32 %r6|%q1, %r7, -1;", ~u32{0});
  const auto matched = run_threads(load + "match.any.sync.b32 %r6, %r5, -1;" + store, 32, in);
  for (u32 i = 0; i < 32; ++i) {
    u32 expected = 0;
    for (u32 j = 0; j < 32; ++j) expected |= static_cast<u32>(in[i] == in[j]) << j;
    EXPECT_EQ(matched[i], expected);
  }
  const auto halves =
      run_threads("mov.u32 %r6, %lanemask_lt; setp.lt.u32 %q0, %r0, 16; @%q0 activemask.b32 %r6;" + store);
  for (u32 i = 0; i < 32; ++i) EXPECT_EQ(halves[i], i < 16 ? 0xffffu : (1u << i) - 1);
}

TEST(PtxWarp, BarriersReduceOverTheBlock) {
  for (const unsigned n : {64u, 100u}) {
    const auto count = run_threads(
        "setp.lt.u32 %q0, %r0, 37; barrier.cta.red.popc.aligned.u32 %r5, 0, %q0; st.global.u32 [%d1], %r5;", n);
    EXPECT_EQ(count, std::vector<u32>(n, 37));
    const auto all = run_threads(
        "setp.lt.u32 %q0, %r0, 200; bar.red.and.pred %q1, 0, %q0; bar.red.or.pred %q2, 0, !%q0; "
        "selp.u32 %r5, 2, 0, %q1; selp.u32 %r6, 1, 0, %q2; add.u32 %r5, %r5, %r6; st.global.u32 [%d1], %r5;",
        n);
    EXPECT_EQ(all, std::vector<u32>(n, 2));
  }
}

// Row-major A (16 x K) and B (K x 8) by element; the fragments as the tables of the PTX ISA have them.
void check_matrix_product(const std::string& shape, const std::string& type, int depth, u32 (*word)(float),
                          float (*value)(u32), int packed) {
  SCOPED_TRACE(shape + " " + type);
  const int registers = depth / packed / 4;
  std::mt19937 random(7);
  std::vector<std::vector<float>> a(16, std::vector<float>(static_cast<std::size_t>(depth))),
      b(static_cast<std::size_t>(depth), std::vector<float>(8)), c(16, std::vector<float>(8));
  for (auto* m : {&a, &b, &c})
    for (auto& row : *m)
      for (float& x : row) x = static_cast<float>(static_cast<int>(random() % 33) - 16) / 8.0f;  // exact in all formats
  std::vector<u32> in;
  for (int l = 0; l < 32; ++l) {
    const auto group = static_cast<std::size_t>(l / 4);
    auto pack = [&](auto at) {
      u32 r = 0;
      for (int i = 0; i < packed; ++i) r |= word(at(i)) << (16 * i);
      return r;
    };
    for (int r = 0; r < 2 * registers; ++r)
      in.push_back(pack(
          [&](int i) { return a[group + 8 * (r % 2)][static_cast<std::size_t>((l % 4 + 4 * (r / 2)) * packed + i)]; }));
    for (int r = 0; r < registers; ++r)
      in.push_back(pack([&](int i) { return b[static_cast<std::size_t>((l % 4 + 4 * r) * packed + i)][group]; }));
    for (int r = 0; r < 4; ++r)
      in.push_back(std::bit_cast<u32>(c[group + 8 * (r / 2)][static_cast<std::size_t>(l % 4 * 2 + r % 2)]));
  }
  const int words = 3 * registers + 4;
  std::string
      load = fmt::format(
          "mul.wide.u32 %d2, %r0, {}; add.u64 %d2, %p1, %d2; mul.wide.u32 %d3, %r0, 16; add.u64 %d3, %p0, %d3;\n",
          4 * words),
      list[3];
  for (int i = 0; i < words; ++i) {
    load += fmt::format("ld.global.b32 %r{}, [%d2+{}];\n", 10 + i, 4 * i);
    std::string& of = list[i < 2 * registers ? 0 : i < 3 * registers ? 1 : 2];
    of += fmt::format("{}%r{}", of.empty() ? "" : ", ", 10 + i);
  }
  load += fmt::format("mma.sync.aligned.{}.row.col.f32.{}.{}.f32 {{%r4, %r5, %r6, %r7}}, {{{}}}, {{{}}}, {{{}}};\n",
                      shape, type, type, list[0], list[1], list[2]);
  HostMemory memory;
  float* out = memory.add(std::vector<float>(128));
  const auto result = run(kernel(2, kIndex + load + "st.global.v4.b32 [%d3], {%r4, %r5, %r6, %r7};"), {}, {32}, memory,
                          {out, memory.add(in)});
  ASSERT_TRUE(result.ok()) << result.report;
  for (std::size_t i = 0; i < 16; ++i)
    for (std::size_t j = 0; j < 8; ++j) {
      float expected = c[i][j];
      for (std::size_t k = 0; k < static_cast<std::size_t>(depth); ++k)
        expected += value(word(a[i][k])) * value(word(b[k][j]));
      const std::size_t lane = i % 8 * 4 + j / 2, r = i / 8 * 2 + j % 2;
      EXPECT_EQ(out[4 * lane + r], expected) << i << " " << j;
    }
}

TEST(PtxWarp, MatrixProductsOfEveryShape) {
  auto tf32 = [](float x) { return std::bit_cast<u32>(x); };
  auto from_tf32 = [](u32 w) { return std::bit_cast<float>(w); };
  auto bf16 = [](float x) { return std::bit_cast<u32>(x) >> 16; };
  auto from_bf16 = [](u32 w) { return std::bit_cast<float>(w << 16); };
  auto f16 = [](float x) -> u32 {  // of a normal number, exactly
    if (x == 0) return 0;
    const u32 w = std::bit_cast<u32>(x);
    return (w >> 31 << 15) | (((w >> 23 & 255) - 112) << 10) | (w >> 13 & 1023);
  };
  auto from_f16 = [](u32 w) {
    if ((w & 0x7fff) == 0) return 0.0f;
    return std::bit_cast<float>((w >> 15 << 31) | (((w >> 10 & 31) + 112) << 23) | (w & 1023) << 13);
  };
  check_matrix_product("m16n8k4", "tf32", 4, tf32, from_tf32, 1);
  check_matrix_product("m16n8k8", "tf32", 8, tf32, from_tf32, 1);
  check_matrix_product("m16n8k8", "bf16", 8, bf16, from_bf16, 2);
  check_matrix_product("m16n8k16", "bf16", 16, bf16, from_bf16, 2);
  check_matrix_product("m16n8k8", "f16", 8, f16, from_f16, 2);
  check_matrix_product("m16n8k16", "f16", 16, f16, from_f16, 2);
}

TEST(PtxWarp, MatricesLoadFromSharedMemory) {
  for (const bool transposed : {false, true}) {
    HostMemory memory;
    u32* out = memory.add(std::vector<u32>(128));
    // Element e of 256 in shared memory is e; lane l points to row l of 8.
    const std::string body = fmt::format(R"(
        .shared .align 16 .b8 tile[512]; mov.u32 %r5, tile; shl.b32 %r6, %r0, 4; add.u32 %r6, %r5, %r6;
        shl.b32 %r7, %r0, 3; mov.u32 %r8, 0;
        LOOP: add.u32 %r9, %r7, %r8; cvt.u16.u32 %h0, %r9; shl.b32 %r10, %r8, 1; add.u32 %r10, %r6, %r10; st.shared.u16 [%r10], %h0;
        add.u32 %r8, %r8, 1; setp.lt.u32 %q0, %r8, 8; @%q0 bra LOOP;
        bar.sync 0; ldmatrix.sync.aligned.m8n8.x4{}.shared.b16 {{%r11, %r12, %r13, %r14}}, [%r6];
        mul.wide.u32 %d2, %r0, 16; add.u64 %d2, %p0, %d2; st.global.v4.u32 [%d2], {{%r11, %r12, %r13, %r14}};)",
                                         transposed ? ".trans" : "");
    const auto result = run(kernel(1, kIndex + body), {}, {32}, memory, {out});
    ASSERT_TRUE(result.ok()) << result.report;
    for (u32 l = 0; l < 32; ++l)
      for (u32 m = 0; m < 4; ++m) {
        const u32 row = l / 4, column = l % 4 * 2;
        const u32 lo = transposed ? column * 8 + row : row * 8 + column,
                  hi = transposed ? (column + 1) * 8 + row : row * 8 + column + 1;
        EXPECT_EQ(out[4 * l + m], (64 * m + hi) << 16 | (64 * m + lo));
      }
  }
}

// ---- calls

const char* kPower = R"(
.func (.param .b32 result) power(.param .b32 base, .param .b32 count);
.func (.param .b32 result) power(.param .b32 base, .param .b32 count)
{ .reg .b32 %r<8>; .reg .pred %p<2>;
  ld.param.b32 %r0, [base]; ld.param.b32 %r1, [count]; mov.u32 %r2, 1;
  setp.eq.u32 %p0, %r1, 0; @%p0 bra DONE;
  LOOP: mul.lo.u32 %r2, %r2, %r0; sub.u32 %r1, %r1, 1; setp.ne.u32 %p1, %r1, 0; @%p1 bra LOOP;
  DONE: st.param.b32 [result], %r2; ret; }
)";

TEST(PtxCalls, AFunctionWithABodyRunsInItsOwnNames) {
  const std::string call = R"(
      { .param .b32 x; .param .b32 n; .param .b32 y; st.param.b32 [x], 3; rem.u32 %r4, %r0, 5; st.param.b32 [n+0], %r4;
        call.uni (y), power, (x, n); ld.param.b32 %r5, [y+0]; }
      { .param .b32 x; .param .b32 n; .param .b32 y; st.param.b32 [x], %r5; st.param.b32 [n], 2;
        call (y), power, (x, n); ld.param.b32 %r2, [y]; }
      st.global.u32 [%d1], %r2;)";
  const auto out = run_threads(call, 32, {}, kPower);
  for (u32 i = 0; i < 32; ++i) {
    u32 p = 1;
    for (u32 j = 0; j < i % 5; ++j) p *= 3;
    EXPECT_EQ(out[i], p * p);
  }
}

TEST(PtxCalls, OthersAreRefused) {
  const std::string arguments =
      "{ .param .b32 x; .param .b32 n; .param .b32 y; st.param.b32 [x], 3; st.param.b32 [n], 3; ";
  EXPECT_THROW(ptx::Module(kernel(1, arguments + "call.uni (y), power, (x, n); }")), std::runtime_error);
  EXPECT_THROW(ptx::Module(kernel(1, arguments + "call.uni (y), power, (x); }", kPower)), std::runtime_error);
  EXPECT_THROW(
      ptx::Module(kernel(1, "{ .param .b64 f; st.param.b64 [f], 0; .param .b32 y; call.uni (y), vprintf, (f, f); }")),
      std::runtime_error);
  EXPECT_NO_THROW(ptx::Module(
      kernel(1, "{ .param .b64 f; st.param.b64 [f], 0; .param .b32 y; call.uni (y), vprintf, (f, f); }",
             ".extern .func (.param .b32 func_retval0) vprintf\n(\n.param .b64 a,\n.param .b64 b\n)\n;\n")));
  EXPECT_THROW(ptx::Module(kernel(1, "call.uni endless;", ".func endless() { call.uni endless; ret; }")),
               std::runtime_error);
}

}  // namespace
}  // namespace sg::ptx_test
