// stop_gradient: the identity forward, zero backward, at every order (vq-vae papers write it sg[x]).
#pragma once
#include "core/tape.h"

namespace sg {

Value stop_gradient(Operand x);

}  // namespace sg
