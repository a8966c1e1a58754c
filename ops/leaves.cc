// Leaves of a tape (input, constant, read: their type is stated in the attributes) and assign, which has no output.
// Also row_program and row_bundle, whose meaning are entries of the tape's pool and whose output types are attributes.
// Tape records leaves itself, for it keeps the names, variables and constant tensors that their attributes refer to.
#include "ops/op_ids.h"

namespace sg {
namespace {

std::vector<TensorType> infer_leaf(std::span<const TensorType>, const Attrs& attrs) {
  return {{static_cast<DType>(attrs.i("dtype")), Shape(attrs.ints("shape"))}};
}

// types: for each output its dtype, its rank and its extents.
std::vector<TensorType> infer_row_program(std::span<const TensorType>, const Attrs& attrs) {
  const std::vector<std::int64_t>& list = attrs.ints("types");
  std::vector<TensorType> types;
  for (std::size_t i = 0; i < list.size();) {
    const auto rank = static_cast<std::size_t>(list[i + 1]);
    types.push_back({static_cast<DType>(list[i]), Shape(std::span(list).subspan(i + 2, rank))});
    i += 2 + rank;
  }
  return types;
}

OpDef leaf(std::string_view name, Role role) {
  return {.name = name, .arity = 0, .grad = GradKind::none, .role = role, .infer = infer_leaf};
}

}  // namespace

namespace defs {

OpDef input() { return leaf("input", Role::input); }
OpDef constant() { return leaf("constant", Role::constant); }
OpDef row_program() {
  return {.name = "row_program", .arity = kVariadic, .grad = GradKind::none, .role = Role::region, .infer = infer_row_program};
}
OpDef row_bundle() {
  return {.name = "row_bundle", .arity = kVariadic, .grad = GradKind::none, .role = Role::bundle, .infer = infer_row_program};
}
OpDef read() { return leaf("read", Role::read); }
OpDef assign() {
  return {.name = "assign",
          .arity = 1,
          .grad = GradKind::none,
          .role = Role::assign,
          .infer = [](std::span<const TensorType>, const Attrs&) { return std::vector<TensorType>{}; }};
}

}  // namespace defs
}  // namespace sg
