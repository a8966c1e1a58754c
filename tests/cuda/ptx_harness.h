// For the interpreter's own tests: memory of the host as memory of the device, kernels as text, and every instruction
// against a function of C++ on edge values and random ones.
#pragma once
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "tests/cuda_emulator/ptx/machine.h"

namespace sg::ptx_test {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;

// Allocations with their exact bounds; `tracked`: which bytes were written is known.
class HostMemory : public ptx::Memory {
 public:
  template <class T>
  T* add(const std::vector<T>& values, bool tracked = false) {
    Block block;
    block.size = values.size() * sizeof(T);
    block.storage = std::make_unique<u8[]>(block.size + 512);
    u8* base = block.storage.get() + (256 - reinterpret_cast<u64>(block.storage.get()) % 256);
    if (block.size != 0) std::memcpy(base, values.data(), block.size);
    if (tracked) block.written.assign(block.size, 0);
    blocks_[reinterpret_cast<u64>(base)] = std::move(block);
    return reinterpret_cast<T*>(base);
  }
  bool find(u64 p, u64& base, u64& size) const override {
    auto it = blocks_.upper_bound(p);
    if (it == blocks_.begin()) return false;
    --it;
    base = it->first;
    size = it->second.size;
    return p - base < size;
  }
  u8* written(u64 base) override {
    auto& bytes = blocks_.at(base).written;
    return bytes.empty() ? nullptr : bytes.data();
  }

 private:
  struct Block {
    std::unique_ptr<u8[]> storage;
    std::size_t size = 0;
    std::vector<u8> written;
  };
  std::map<u64, Block> blocks_;
};

inline const char* kHeader = ".version 8.0\n.target sm_80\n.address_size 64\n";

// A kernel `k` of pointers p0, p1, ... (in %p0, %p1, ...), with registers of every kind; `before`: at module level.
inline std::string kernel(int pointers, const std::string& body, const std::string& before = "") {
  std::string text = kHeader + before + "\n.visible .entry k(";
  for (int i = 0; i < pointers; ++i) text += fmt::format("{}.param .u64 k_param_{}", i == 0 ? "" : ", ", i);
  text += ")\n{\n.reg .pred %q<16>;\n.reg .b16 %h<32>;\n.reg .b32 %r<32>;\n.reg .f32 %f<32>;\n.reg .b64 %d<32>;\n";
  text += fmt::format(".reg .b64 %p<{}>;\n", pointers + 1);
  for (int i = 0; i < pointers; ++i) text += fmt::format("ld.param.u64 %p{}, [k_param_{}];\n", i, i);
  return text + body + "\nret;\n}\n";
}

inline ptx::Result run(const ptx::Module& module, ptx::Dim grid, ptx::Dim block, HostMemory& memory,
                       std::vector<void*> pointers, const ptx::Options& options = {}, std::size_t shared = 0) {
  std::vector<void*> arguments;
  for (void*& pointer : pointers) arguments.push_back(&pointer);
  return ptx::launch(*module.find("k"), grid, block, shared, arguments.data(), memory, options);
}
inline ptx::Result run(const std::string& text, ptx::Dim grid, ptx::Dim block, HostMemory& memory,
                       std::vector<void*> pointers, const ptx::Options& options = {}, std::size_t shared = 0) {
  return run(ptx::Module(text), grid, block, memory, std::move(pointers), options, shared);
}

// Bits of operands: each edge against each other, then random ones, some of them near a power of two.
inline const std::vector<u64>& edge_values(std::size_t bytes, bool real) {
  static std::map<std::pair<std::size_t, bool>, std::vector<u64>> all;
  std::vector<u64>& edges = all[{bytes, real}];
  if (!edges.empty()) return edges;
  if (real && bytes == 8) {
    for (double x : {0.0,
                     1.0,
                     0.5,
                     1.5,
                     2.5,
                     1e-310,
                     5e-324,
                     1.7976931348623157e308,
                     2147483647.0,
                     2147483648.0,
                     4294967295.5,
                     9.2233720368547758e18,
                     1.8446744073709552e19,
                     65504.0,
                     65520.0,
                     255.5,
                     127.5,
                     0.1,
                     std::numeric_limits<double>::infinity(),
                     std::numeric_limits<double>::quiet_NaN()})
      for (double y : {x, -x}) edges.push_back(std::bit_cast<u64>(y));
  } else if (real && bytes == 4) {
    for (float x : {0.0f,
                    1.0f,
                    0.5f,
                    1.5f,
                    2.5f,
                    1e-40f,
                    1e-45f,
                    3.4028235e38f,
                    1.17549435e-38f,
                    2147483648.0f,
                    4294967296.0f,
                    9.2233720e18f,
                    1.8446744e19f,
                    65504.0f,
                    65520.0f,
                    127.5f,
                    255.5f,
                    0.1f,
                    3.1415927f,
                    std::numeric_limits<float>::infinity(),
                    std::numeric_limits<float>::quiet_NaN()})
      for (float y : {x, -x}) edges.push_back(std::bit_cast<u32>(y));
  } else {
    for (s64 x :
         {0,      1,      2,      3,      7,      8,      15,     16,      17,         31,        32,     33,
          63,     64,     65,     127,    128,    255,    256,    1023,    0x7c00,     0x7bff,    0x3c00, 0x0400,
          0x03ff, 0x7e00, 0x7f80, 0x3f80, 0x7fff, 0x8000, 0xffff, 0x10000, 0x7fffffff, 0x40000000})
      for (s64 y : {x, -x}) edges.push_back(static_cast<u64>(y));
    for (u64 x : {u64{1} << 31, u64{0xffffffff}, u64{1} << 32, u64{1} << 63, ~u64{0} >> 1, ~(~u64{0} >> 1) + 1})
      edges.push_back(x);
  }
  return edges;
}

constexpr std::size_t kCases = 8192;

template <class T>
T from_bits(u64 bits) {
  if constexpr (std::is_same_v<T, float>)
    return std::bit_cast<float>(static_cast<u32>(bits));
  else if constexpr (std::is_same_v<T, double>)
    return std::bit_cast<double>(bits);
  else
    return static_cast<T>(bits);
}
template <class T>
u64 to_bits(T x) {
  if constexpr (std::is_same_v<T, float>)
    return std::bit_cast<u32>(x);
  else if constexpr (std::is_same_v<T, double>)
    return std::bit_cast<u64>(x);
  else
    return static_cast<std::make_unsigned_t<T>>(x);
}

template <class T>
std::vector<u64> operands(std::size_t position, std::size_t count) {
  const std::vector<u64>& edges = edge_values(sizeof(T), std::is_floating_point_v<T>);
  std::mt19937_64 random(position * 7919 + sizeof(T));
  std::vector<u64> all(kCases);
  for (std::size_t i = 0; i < kCases; ++i) {
    const bool pairs = count <= 2 && i < edges.size() * edges.size();
    if (pairs)
      all[i] = position == 0 ? edges[i / edges.size()] : edges[i % edges.size()];
    else if (i % 3 == 0)
      all[i] = edges[random() % edges.size()];
    else if (std::is_floating_point_v<T> && i % 3 == 1)
      all[i] = to_bits(static_cast<T>(
          std::ldexp(static_cast<double>(random() >> 11) * 0x1p-53 - 0.5, static_cast<int>(random() % 60) - 30)));
    else
      all[i] = random() >> (random() % 8 == 0 ? random() % 64 : 0);
  }
  return all;
}

inline const char* register_of(std::size_t bytes) { return bytes == 8 ? "d" : bytes == 4 ? "r" : "h"; }
inline const char* type_of(std::size_t bytes) { return bytes == 8 ? "b64" : bytes == 4 ? "b32" : "b16"; }

// Runs "add.s32 $d, $a, $b" on kCases operands, on all lanes and then on every third alone (the others keep what they
// had), and compares with f. Narrow types live in registers of 2 bytes. tolerance: relative, where D is real.
template <class D, class... S, class F>
void check(const std::string& instruction, F f, double tolerance = 0) {
  SCOPED_TRACE(instruction);
  constexpr std::size_t kCount = sizeof...(S);
  const std::size_t bytes[] = {std::max<std::size_t>(sizeof(S), 2)..., 0};
  std::size_t position = 0;
  std::vector<std::vector<u64>> sources;
  (sources.push_back(operands<S>(position++, kCount)), ...);
  const std::size_t result_bytes = std::max<std::size_t>(sizeof(D), 2);
  const std::string d = fmt::format("%{}31", register_of(result_bytes));

  std::string body =
      "mov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %ntid.x;\nmov.u32 %r3, %tid.x;\nmad.lo.s32 %r1, %r1, %r2, %r3;\n"
      "mul.wide.u32 %d1, %r1, 8;\nrem.u32 %r2, %r1, 3;\nsetp.eq.u32 %q1, %r2, 0;\n";
  std::string text = instruction;
  auto replace = [&](const std::string& from, const std::string& to) {
    for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
      text.replace(at, from.size(), to);
  };
  for (std::size_t i = 0; i < kCount; ++i) {
    const std::string name = fmt::format("%{}{}", register_of(bytes[i]), 10 + i);
    body += fmt::format("add.u64 %d2, %p{}, %d1;\nld.global.{} {}, [%d2];\n", i + 1, type_of(bytes[i]), name);
    replace(fmt::format("${}", "abce"[i]), name);
  }
  replace("$d", d);
  for (const bool guarded : {false, true}) {
    std::string guarded_text = text;
    if (guarded) {
      guarded_text.clear();
      for (std::size_t at = 0; at < text.size();) {  // a guard for each of the instructions
        const std::size_t end = text.find(';', at);
        guarded_text += "@%q1 " + text.substr(at, end == std::string::npos ? end : end - at) + ";\n";
        at = end == std::string::npos ? text.size() : end + 1;
      }
    }
    const std::string kernel_text =
        kernel(static_cast<int>(kCount) + 1,
               body + fmt::format("mov.{} {}, 0x5a5a;\n{};\nadd.u64 %d2, %p0, %d1;\nst.global.{} [%d2], {};",
                                  type_of(result_bytes), d, guarded_text, type_of(result_bytes), d));
    HostMemory memory;
    u64* out = memory.add(std::vector<u64>(kCases));
    std::vector<void*> pointers{out};
    for (const auto& source : sources) pointers.push_back(memory.add(source));
    ptx::Result result;
    ASSERT_NO_THROW(result = run(kernel_text, {static_cast<unsigned>(kCases / 128)}, {128}, memory, pointers));
    ASSERT_TRUE(result.ok()) << result.report;
    int failures = 0;
    for (std::size_t i = 0; i < kCases && failures < 4; ++i) {
      const std::tuple<S...> arguments = [&]<std::size_t... I>(std::index_sequence<I...>) {
        return std::tuple<S...>{from_bits<S>(sources[I][i])...};
      }
      (std::index_sequence_for<S...>{});
      const D expected = guarded && i % 3 != 0 ? from_bits<D>(0x5a5a) : std::apply(f, arguments);
      const D actual = from_bits<D>(out[i]);
      bool same = to_bits(expected) == to_bits(actual);
      if constexpr (std::is_floating_point_v<D>) {
        same = same || (expected != expected && actual != actual);
        if (tolerance > 0) {
          const double scale = std::max(std::fabs(static_cast<double>(expected)), 1e-30);
          same = same || std::fabs(static_cast<double>(expected) - static_cast<double>(actual)) <= tolerance * scale;
        }
      }
      if (same) continue;
      ++failures;
      std::string given;
      for (const auto& source : sources) given += fmt::format(" {:#x}", source[i]);
      ADD_FAILURE() << "of" << given << (guarded ? " (guarded)" : "") << ": " << fmt::format("{:#x}", to_bits(actual))
                    << " instead of " << fmt::format("{:#x}", to_bits(expected));
    }
  }
}

}  // namespace sg::ptx_test
