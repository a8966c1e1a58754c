// OpId's enumerators, one per line of op_list.inc.
#pragma once
#include "core/op.h"

namespace sg {
enum class OpId : std::uint16_t {
#define SG_OP(name) name,
#include "ops/op_list.inc"
#undef SG_OP
};
}  // namespace sg
