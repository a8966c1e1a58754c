#include "models/quantizers/none.h"

#include "core/error.h"

namespace sg {

Quantized NoQuantizer::operator()(Operand z, const QuantizeContext& context) const {
  check_dim(*this, "none", z);
  flatten_mask(context, z);
  Quantized out;
  out.z_q = z.value();
  return out;
}

Value NoQuantizer::decode(Operand indices) const {
  throw Error(ErrorKind::usage, "none: there are no codes that indices could stand for", indices.loc());
}

Value NoQuantizer::requantize(Operand indices) const { return decode(indices); }

}  // namespace sg
