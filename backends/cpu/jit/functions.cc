// The code of each op. Functions are computed by the formulas of simd_math.inc.
#include <algorithm>
#include <array>
#include <iterator>
#include <limits>

#include "backends/cpu/jit/generator.h"
#include "backends/cpu/jit/tables.h"

namespace sg::cpu::jit {

bool generated(const RowKernel& kernel) {
  using simd::Unary;
  if (kernel.kind == RowKernel::binary) return static_cast<simd::Binary>(kernel.code) != simd::Binary::pow;
  if (kernel.kind != RowKernel::unary) return kernel.kind != RowKernel::none;
  constexpr std::array missing{Unary::sin, Unary::cos};
  return std::find(missing.begin(), missing.end(), static_cast<Unary>(kernel.code)) == missing.end();
}

void Generator::elementwise(const RowProgram::Op& op, const RowKernel& kernel, const Vec& y,
                            const std::vector<Vec>& x) {
  switch (kernel.kind) {
    case RowKernel::unary:
      unary(static_cast<simd::Unary>(kernel.code), op, y, x[0]);
      return;
    case RowKernel::cast:
      if (is_real(plan_.reg(op.in[0]).dtype))
        vmovaps(y, x[0]);
      else
        vcvtdq2ps(y, x[0]);
      return;
    case RowKernel::where:
      where(y, x[0], x[1], x[2]);
      return;
    case RowKernel::compare: {
      constexpr int kPredicate[] = {0x00, 0x04, 0x11, 0x12, 0x1E, 0x1D};  // quiet: =, !=, <, <=, >, >=
      const int predicate = kPredicate[kernel.code];
      broadcast_bits(temp(0), 1);
      if (plan_.wide) {
        vcmpps(k3, x[0], x[1], static_cast<std::uint8_t>(predicate));
        vmovdqa32(y | k3 | T_z, temp(0));
      } else {
        vcmpps(y, x[0], x[1], static_cast<std::uint8_t>(predicate));
        vandps(y, y, temp(0));
      }
      return;
    }
    case RowKernel::binary:
      break;
    default:
      throw NotGenerated{};
  }
  switch (static_cast<simd::Binary>(kernel.code)) {
    case simd::Binary::add:
      vaddps(y, x[0], x[1]);
      return;
    case simd::Binary::sub:
      vsubps(y, x[0], x[1]);
      return;
    case simd::Binary::mul:
      vmulps(y, x[0], x[1]);
      return;
    case simd::Binary::div:
      vdivps(y, x[0], x[1]);
      return;
    case simd::Binary::minimum:  // (a < b) or a is NaN ? a : b
      vminps(y, x[0], x[1]);
      keep_nan(y, x[0]);
      return;
    case simd::Binary::maximum:
      vmaxps(y, x[0], x[1]);
      keep_nan(y, x[0]);
      return;
    case simd::Binary::relu_grad:
      vxorps(temp(0), temp(0), temp(0));
      choose(y, 0x1E, x[1], temp(0), x[0], temp(0));
      return;
    default:
      throw NotGenerated{};
  }
}

void Generator::unary(simd::Unary f, const RowProgram::Op& op, const Vec& y, const Vec& x) {
  using simd::Unary;
  switch (f) {
    case Unary::neg:
      broadcast_bits(temp(0), 0x80000000u);
      vxorps(y, x, temp(0));
      return;
    case Unary::abs:
      broadcast_bits(temp(0), 0x7FFFFFFFu);
      vandps(y, x, temp(0));
      return;
    case Unary::sqrt:
      vsqrtps(y, x);
      return;
    case Unary::rsqrt:
      vsqrtps(y, x);
      broadcast_number(temp(0), 1);
      vdivps(y, temp(0), y);
      return;
    case Unary::square:
      vmulps(y, x, x);
      return;
    case Unary::relu:  // 0 > x ? 0 : x, so that NaN and -0 pass
      vxorps(temp(0), temp(0), temp(0));
      vmaxps(y, temp(0), x);
      return;
    case Unary::leaky_relu:
      broadcast_number(temp(0), static_cast<float>(op.attrs.d("slope")));
      vmulps(temp(0), temp(0), x);
      vxorps(temp(1), temp(1), temp(1));
      choose(y, 0x1E, x, temp(1), x, temp(0));
      return;
    case Unary::clamp:
      broadcast_number(temp(0), static_cast<float>(op.attrs.d("hi")));
      vminps(y, temp(0), x);
      broadcast_number(temp(0), static_cast<float>(op.attrs.d("lo")));
      vmaxps(y, temp(0), y);
      return;
    case Unary::round:
    case Unary::floor: {
      const std::uint8_t mode = f == Unary::round ? 8 : 9;  // to even, down; inexact is no exception
      if (plan_.wide)
        vrndscaleps(y, x, mode);
      else
        vroundps(y, x, mode);
      return;
    }
    case Unary::sign:  // x > 0 ? 1 : x < 0 ? -1 : x
      vxorps(temp(0), temp(0), temp(0));
      broadcast_number(temp(1), -1);
      choose(y, 0x11, x, temp(0), temp(1), x);
      broadcast_number(temp(1), 1);
      choose(y, 0x1E, x, temp(0), temp(1), y);
      return;
    case Unary::exp:
      exponential(y, x);
      return;
    case Unary::log:
      logarithm(y, x);
      return;
    case Unary::acos:
      arc_cosine(y, x);
      return;
    case Unary::tanh:
      hyperbolic_tangent(y, x);
      return;
    case Unary::sigmoid:
      logistic(y, x);
      return;
    case Unary::silu:
      logistic(y, x);
      vmulps(y, y, x);
      return;
    case Unary::erf:
      error_function(y, x);
      return;
    case Unary::gelu:
      gaussian_unit(y, x);
      return;
    case Unary::softplus:
      soft_plus(y, x);
      return;
    default:
      throw NotGenerated{};
  }
}

// The formulas of simd_math.inc; AVX-512 has an instruction for the power of two. y may be x. Uses temporaries 0 to 2.
void Generator::exponential(const Vec& y, const Vec& x) {
  const Vec c = temp(0), n = temp(1), k = temp(2);
  broadcast_number(k, 89.0f);
  vminps(c, k, x);
  broadcast_number(k, -104.5f);
  vmaxps(c, k, c);
  if (plan_.wide) {
    exponential_within(y);
    return;
  }
  broadcast_number(k, 12582912.0f);
  vmovaps(n, k);
  broadcast_number(y, 1.44269504f);
  vfmadd231ps(n, c, y);  // shifted
  vmovaps(y, n);
  vsubps(n, n, k);
  broadcast_bits(k, 0x4B400000u);
  vpsubd(y, y, k);  // the power of two; kept on the stack of registers as bits in y
  broadcast_number(k, 0.693359375f);
  vfnmadd231ps(c, n, k);
  broadcast_number(k, 2.12194440e-4f);
  vfmadd231ps(c, n, k);  // r
  polynomial(n, c, {0.001392617612f, 0.008363173075f, 0.04166655466f, 0.1666657703f, 0.5f}, k);
  vmulps(k, c, c);
  vfmadd213ps(n, k, c);  // r + r^2 p
  broadcast_number(k, 1.0f);
  vaddps(n, n, k);
  vpsrad(c, y, 1);
  vpsubd(y, y, c);
  broadcast_bits(k, 127);
  vpaddd(c, c, k);
  vpaddd(y, y, k);
  vpslld(c, c, 23);
  vpslld(y, y, 23);
  vmulps(n, n, c);
  vmulps(y, n, y);
}

// AVX-512: y = e^c, c in temporary 0 and neither far above nor far below what has a float as result.
void Generator::exponential_within(const Vec& y) {
  const Vec c = temp(0), n = temp(1), k = temp(2);
  vmulps(n, c, every_lane(1.44269504f));
  vrndscaleps(n, n, 8);
  vfnmadd231ps(c, n, every_lane(0.693359375f));
  vfmadd231ps(c, n, every_lane(2.12194440e-4f));
  polynomial(y, c, {0.001392617612f, 0.008363173075f, 0.04166655466f, 0.1666657703f, 0.5f, 1.0f, 1.0f}, k);
  vscalefps(y, y, n);
}

// p = (...(c0 x + c1) x + ...) + cn
void Generator::polynomial(const Vec& p, const Vec& x, std::initializer_list<float> coefficients, const Vec& scratch) {
  auto it = coefficients.begin();
  broadcast_number(p, *it++);
  for (; it != coefficients.end(); ++it) {
    if (plan_.wide) {
      vfmadd213ps(p, x, every_lane(*it));
    } else {
      broadcast_number(scratch, *it);
      vfmadd213ps(p, x, scratch);
    }
  }
}

void Generator::hyperbolic_tangent(const Vec& y, const Vec& x) {
  const Vec a = temp(0), z = temp(1), k = temp(2), p = temp(3);
  broadcast_bits(k, 0x7FFFFFFFu);
  vandps(y, x, k);
  vaddps(y, y, y);
  exponential(y, y);
  broadcast_number(k, 1.0f);
  vaddps(y, y, k);
  broadcast_number(a, 2.0f);
  vdivps(y, a, y);
  vsubps(y, k, y);  // large
  broadcast_bits(k, 0x7FFFFFFFu);
  vandps(a, x, k);
  vmulps(z, a, a);
  polynomial(p, z, {-0.006096714166f, 0.020997179f, -0.05385090958f, 0.1333276974f, -0.3333332894f}, k);
  vmulps(p, p, z);
  vfmadd213ps(p, a, a);  // small
  vmovaps(z, p);
  broadcast_number(k, 0.625f);
  choose(y, 0x11, a, k, z, y);
  broadcast_bits(k, 0x80000000u);
  vandps(k, x, k);
  vorps(y, y, k);
}

void Generator::logistic(const Vec& y, const Vec& x) {
  const Vec e = temp(2), k = temp(0), zero = temp(1);
  broadcast_bits(k, 0x80000000u);
  vorps(temp(3), x, k);
  exponential(temp(3), temp(3));
  vmovaps(e, temp(3));
  broadcast_number(k, 1.0f);
  vxorps(zero, zero, zero);
  choose(y, 0x11, x, zero, e, k);
  vaddps(e, e, k);
  vdivps(y, y, e);
}

void Generator::logarithm(const Vec& y, const Vec& x) {
  const Vec e = temp(0), p = temp(1), z = temp(2);
  broadcast_number(e, 1.17549435e-38f);
  broadcast_number(p, 8388608.0f);
  vmulps(p, x, p);
  choose(y, 0x11, x, e, p, x);  // subnormal numbers scaled by 2^23
  broadcast_number(p, 23.0f);
  vxorps(z, z, z);
  choose(p, 0x11, x, e, p, z);
  logarithm_of_normal(y);
  broadcast_number(e, std::numeric_limits<float>::infinity());
  choose(p, 0x11, x, e, p, x);  // infinity and NaN
  vxorps(e, e, e);
  broadcast_number(z, -std::numeric_limits<float>::infinity());
  broadcast_number(y, std::numeric_limits<float>::quiet_NaN());
  choose(z, 0x00, x, e, z, y);
  choose(y, 0x1E, x, e, p, z);
}

// Temporary 1 = log(y 2^-t) for a normal y > 0, t the value of temporary 1 before. Spoils y and all temporaries.
void Generator::logarithm_of_normal(const Vec& y) {
  const Vec e = temp(0), p = temp(1), z = temp(2), k = temp(3);
  broadcast_bits(e, 0x3F3504F3u);
  vpsubd(e, y, e);
  vpsrad(e, e, 23);
  vpslld(z, e, 23);
  vpsubd(y, y, z);
  broadcast_number(z, 1.0f);
  vsubps(y, y, z);  // f
  vcvtdq2ps(e, e);
  vsubps(e, e, p);  // exponent
  polynomial(p, y,
             {0.06971611471f, -0.1147973385f, 0.1168541992f, -0.1242568733f, 0.1424905765f, -0.1666780232f,
              0.2000071575f, -0.2499999696f, 0.3333333118f},
             z);
  vmulps(z, y, y);
  vmulps(k, y, z);
  vmulps(p, k, p);
  broadcast_number(k, 2.12194440e-4f);
  vfnmadd231ps(p, e, k);
  broadcast_number(k, 0.5f);
  vfnmadd231ps(p, z, k);
  vaddps(p, y, p);
  broadcast_number(k, 0.693359375f);
  vfmadd231ps(p, e, k);
}

// max(x, 0) + log(1 + u), u = e^-|x|; the rounding of w = 1 + u is divided out again.
void Generator::soft_plus(const Vec& y, const Vec& x) {
  const Vec u = temp(0), p = temp(1), c = temp(2), k = temp(3);
  const auto kept = ptr[rsp + kStackSlots * 64];
  broadcast_bits(k, 0x80000000u);
  vorps(y, x, k);
  exponential(y, y);
  vmovups(kept, y);
  broadcast_number(k, 1.0f);
  vaddps(y, y, k);  // w
  vxorps(p, p, p);
  logarithm_of_normal(y);
  vmovups(u, kept);
  broadcast_number(k, 1.0f);
  vaddps(c, u, k);
  vsubps(c, c, k);
  vdivps(k, u, c);
  vmulps(p, p, k);
  vxorps(y, y, y);
  choose(p, 0x00, c, y, u, p);
  vmaxps(y, x, y);
  vaddps(y, y, p);
}

// y = 1 - erf(a) for a >= 0; y may be a. Uses all temporaries.
void Generator::complementary_error(const Vec& y, const Vec& a) {
  const Vec p = temp(0), k = temp(2), t = temp(3);
  broadcast_number(k, 0.5f);
  broadcast_number(t, 1.0f);
  vmovaps(p, t);
  vfmadd231ps(t, a, k);
  vdivps(t, p, t);
  polynomial(p, t,
             {-0.1488116249f, 1.011947708f, -2.889173019f, 4.386361931f, -3.691011309f, 1.753996329f, -0.7479752247f,
              0.2355337093f, 0.3528721448f, 1.001837645f, -1.26557829f},
             k);
  vfnmadd231ps(p, a, a);
  exponential(y, p);
  vmulps(y, y, t);
}

// Temporary 2 = erf(a) for 0 <= a < 0.92, a in temporary 0.
void Generator::error_near_zero() {
  const Vec a = temp(0), z = temp(1), p = temp(2);
  vmulps(z, a, a);
  polynomial(p, z,
             {8.387074557e-5f, -0.0008147081117f, 0.005201456326f, -0.02685958812f, 0.1128369935f, -0.3761263402f,
              1.128379167f},
             temp(3));
  vmulps(p, p, a);
}

// Temporary 3 = the polynomial of a's interval, which the bits of a + shift from `low_bit` on name. a is no temporary.
void Generator::piecewise(const Vec& a, const float (*table)[16], int degree, float shift, int low_bit) {
  const Vec u = temp(0), index = temp(1), c = temp(2), p = temp(3);
  vaddps(u, a, every_lane(shift));
  vpsrld(index, u, static_cast<std::uint8_t>(low_bit));
  broadcast_bits(c, ~0u << low_bit);
  vpternlogd(u, c, every_lane(1u << (low_bit - 1)), 0xEA);  // (u & c) | low bit: the middle
  vsubps(u, u, every_lane(shift));
  vsubps(u, a, u);
  mov(tmp_, reinterpret_cast<std::uint64_t>(table));
  vpermps(Xbyak::Zmm(p.getIdx()), Xbyak::Zmm(index.getIdx()), ptr[tmp_]);
  for (int i = 1; i <= degree; ++i) {
    vpermps(Xbyak::Zmm(c.getIdx()), Xbyak::Zmm(index.getIdx()), ptr[tmp_ + i * 64]);
    vfmadd213ps(p, u, c);
  }
}

void Generator::error_function(const Vec& y, const Vec& x) {
  if (plan_.wide) {
    const Vec sign = temp(0);
    vpandd(y, x, every_lane(0x7FFFFFFFu));
    broadcast_number(temp(0), 3.99f);
    vminps(y, temp(0), y);
    piecewise(y, kErrorRatio, static_cast<int>(std::size(kErrorRatio)) - 1, 4.0f, 19);
    vmulps(y, y, temp(3));
    vpandd(sign, x, every_lane(-0.0f));
    vpord(y, y, sign);
    return;
  }
  const Vec a = temp(0), k = temp(1);
  broadcast_bits(k, 0x7FFFFFFFu);
  vandps(y, x, k);
  complementary_error(y, y);
  broadcast_number(k, 1.0f);
  vsubps(y, k, y);
  broadcast_bits(k, 0x7FFFFFFFu);
  vandps(a, x, k);
  error_near_zero();
  broadcast_number(k, 0.92f);
  choose(y, 0x11, a, k, temp(2), y);
  broadcast_bits(k, 0x80000000u);
  vandps(k, x, k);
  vorps(y, y, k);
}

void Generator::gaussian_unit(const Vec& y, const Vec& x) {
  if (plan_.wide) {
    const auto magnitude = [&](const Vec& to) {
      vpandd(to, x, every_lane(0x7FFFFFFFu));
      broadcast_number(temp(1), 14.9f);
      vminps(to, temp(1), to);
    };
    magnitude(y);
    piecewise(y, kTail, static_cast<int>(std::size(kTail)) - 1, 1.0f, 21);
    vmulps(temp(0), y, every_lane(-0.5f));
    vmulps(temp(0), temp(0), y);
    exponential_within(y);
    vmulps(y, y, temp(3));  // 1 - Phi(|x|)
    magnitude(temp(0));
    vxorps(temp(1), temp(1), temp(1));
    vmaxps(temp(1), x, temp(1));
    vfnmadd213ps(y, temp(0), temp(1));  // max(x, 0) - |x| (1 - Phi(|x|))
    return;
  }
  const Vec a = temp(0), k = temp(1), small = temp(2);
  const auto scaled = [&](const Vec& to) {
    broadcast_bits(k, 0x7FFFFFFFu);
    vandps(to, x, k);
    broadcast_number(k, 0.707106781f);
    vmulps(to, to, k);
  };
  scaled(y);
  complementary_error(y, y);
  broadcast_number(k, 0.5f);
  vmulps(y, y, k);  // the tail
  broadcast_number(k, 1.0f);
  vsubps(a, k, y);
  vxorps(k, k, k);
  choose(y, 0x11, x, k, y, a);
  scaled(a);
  error_near_zero();
  broadcast_bits(k, 0x80000000u);
  vandps(k, x, k);
  vorps(small, small, k);
  broadcast_number(k, 0.5f);
  vfmadd213ps(small, k, k);
  broadcast_number(k, 0.92f);
  choose(y, 0x11, a, k, small, y);
  vmulps(y, y, x);
}

void Generator::arc_cosine(const Vec& y, const Vec& x) {
  const Vec a = temp(0), s = temp(1), k = temp(2), p = temp(3);
  broadcast_bits(k, 0x7FFFFFFFu);
  vandps(a, x, k);
  broadcast_number(k, 0.5f);
  vmulps(y, a, a);
  vmovaps(s, k);
  vfnmadd231ps(s, a, k);
  choose(y, 0x11, a, k, y, s);  // z
  vsqrtps(s, y);
  choose(s, 0x11, a, k, a, s);
  polynomial(p, y, {0.03820645064f, 0.02649427764f, 0.04501070082f, 0.0749880895f, 0.1666667312f}, k);
  vmulps(p, p, y);
  vfmadd213ps(p, s, s);
  vmovaps(y, p);  // r
  vaddps(s, y, y);
  broadcast_number(k, 8.74227766e-8f);
  vaddps(k, s, k);
  broadcast_number(p, 3.14159274f);
  vsubps(k, p, k);
  vxorps(a, a, a);
  choose(s, 0x11, x, a, k, s);  // end
  broadcast_bits(k, 0x80000000u);
  vandps(k, x, k);
  vorps(y, y, k);
  broadcast_number(k, 4.37113883e-8f);
  vaddps(y, y, k);
  broadcast_number(k, 1.57079637f);
  vsubps(y, k, y);  // middle
  broadcast_bits(k, 0x7FFFFFFFu);
  vandps(a, x, k);
  broadcast_number(k, 0.5f);
  choose(y, 0x11, a, k, y, s);
}

void Generator::where(const Vec& y, const Vec& condition, const Vec& yes, const Vec& no) {
  if (plan_.wide) {
    vptestmd(k3, condition, condition);
    vblendmps(y | k3, no, yes);
  } else {
    vxorps(temp(0), temp(0), temp(0));
    vpcmpeqd(temp(0), condition, temp(0));
    vblendvps(y, yes, no, temp(0));
  }
}

// a <predicate> b ? yes : no. y may be any of them; none of them is temporary 3.
void Generator::choose(const Vec& y, int predicate, const Vec& a, const Vec& b, const Vec& yes, const Vec& no) {
  if (plan_.wide) {
    vcmpps(k3, a, b, static_cast<std::uint8_t>(predicate));
    vblendmps(y | k3, no, yes);
  } else {
    const Vec m = temp(3);
    vcmpps(m, a, b, static_cast<std::uint8_t>(predicate));
    vblendvps(y, no, yes, m);
  }
}

// y where it is no candidate's NaN, else the candidate.
void Generator::keep_nan(const Vec& y, const Vec& candidate) {
  if (plan_.wide) {
    vcmpps(k3, candidate, candidate, 0x03);
    vmovaps(y | k3, candidate);
  } else {
    vcmpps(temp(0), candidate, candidate, 0x03);
    vblendvps(y, y, candidate, temp(0));
  }
}

// From the constants behind the code: a load leaves the vector units alone.
void Generator::broadcast_bits(const Vec& v, std::uint32_t bits) { vbroadcastss(v, ptr[rip + constants_[bits]]); }

// A number as the last operand of an AVX-512 instruction.
Xbyak::Address Generator::every_lane(std::uint32_t bits) { return ptr_b[rip + constants_[bits]]; }

void Generator::emit_constants() {
  align(4);
  for (auto& [bits, label] : constants_) {
    L(label);
    dd(bits);
  }
}

}  // namespace sg::cpu::jit
