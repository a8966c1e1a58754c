// Element types. Real numbers are f32 or f64; i32 holds indices, counts and the 0/1 results of comparisons.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace sg {

enum class DType : std::uint8_t { f32, f64, i32 };

constexpr std::size_t size_of(DType t) { return t == DType::f64 ? 8 : 4; }
constexpr bool is_real(DType t) { return t != DType::i32; }
constexpr std::string_view to_string(DType t) {
  return t == DType::f32 ? "f32" : t == DType::f64 ? "f64" : "i32";
}

}  // namespace sg
