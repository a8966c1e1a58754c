// Sums, minima and maxima: over the columns of a row, into one lane or one vector for a block of rows, into the folds.
#include "backends/cpu/jit/generator.h"

namespace sg::cpu::jit {

void Generator::accumulate(Reduction r, const Vec& acc, const Vec& v, bool part) {
  if (r == Reduction::sum) {
    if (!part) {
      vaddps(acc, acc, v);
    } else if (plan_.wide) {
      vaddps(acc | mask(), acc, v);
    } else {
      vandps(temp(0), v, vec(mask_vector_));
      vaddps(acc, acc, temp(0));
    }
    return;
  }
  Vec x = v;
  if (part) {  // lanes that are no columns take what is there already
    if (plan_.wide)
      vblendmps(temp(1) | mask(), acc, v);
    else
      vblendvps(temp(1), acc, v, vec(mask_vector_));
    x = temp(1);
  }
  // The second operand is kept where one is NaN; then a NaN of the first is put in.
  if (r == Reduction::max)
    vmaxps(acc, x, acc);
  else
    vminps(acc, x, acc);
  keep_nan(acc, x);
}

// All lanes into lane 0.
void Generator::fold_lanes(Reduction r, const Vec& acc) {
  const int i = acc.getIdx(), t = temp(2).getIdx();
  const auto combine = [&](const Vec& a, const Vec& b) {
    if (r == Reduction::sum) {
      vaddps(a, a, b);
    } else {
      if (r == Reduction::max)
        vmaxps(a, b, a);
      else
        vminps(a, b, a);
      if (plan_.wide) {
        vcmpps(k3, b, b, 0x03);
        vmovaps(a | k3, b);
      } else {
        const Vec m = a.isYMM() ? Vec(Xbyak::Ymm(temp(0).getIdx())) : Vec(Xbyak::Xmm(temp(0).getIdx()));
        vcmpps(m, b, b, 0x03);
        vblendvps(a, a, b, m);
      }
    }
  };
  if (plan_.wide) {
    vextractf64x4(Xbyak::Ymm(t), Xbyak::Zmm(i), 1);
    combine(Xbyak::Ymm(i), Xbyak::Ymm(t));
    vextractf32x4(Xbyak::Xmm(t), Xbyak::Ymm(i), 1);
  } else {
    vextractf128(Xbyak::Xmm(t), Xbyak::Ymm(i), 1);
  }
  const Xbyak::Xmm low(i), other(t);
  combine(low, other);
  vpermilps(other, low, 0x4E);
  combine(low, other);
  vpermilps(other, low, 0xB1);
  combine(low, other);
}

void Generator::add_to_fold(int op, const Vec& sum) {
  const Xbyak::Xmm x(sum.getIdx());
  const auto place = ptr[folds_ + static_cast<int>(plan_.fold[ix(op)] * 8)];
  vcvtss2sd(x, x, x);
  vaddsd(x, x, place);
  vmovsd(place, x);
}

}  // namespace sg::cpu::jit
