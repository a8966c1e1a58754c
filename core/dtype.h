// Element types. Real numbers are f32, f64 or bf16; i32 holds indices, counts and the 0/1 results of comparisons.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace sg {

// New ones at the end: tapes that were printed or stored hold the numbers.
enum class DType : std::uint8_t { f32, f64, i32, bf16 };

constexpr std::size_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::bf16 ? 2 : 4; }
constexpr bool is_real(DType t) { return t != DType::i32; }
constexpr std::string_view to_string(DType t) {
  return t == DType::f32 ? "f32" : t == DType::f64 ? "f64" : t == DType::i32 ? "i32" : "bf16";
}

}  // namespace sg
