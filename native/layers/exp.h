/*
 * exp of the floats of a vector, off by less than 1.1 units in the last place, the same bits with every instruction set.
 * Include one of lanes_*.h first.
 */
#ifndef NPUMATMUL_EXP_H
#define NPUMATMUL_EXP_H

/*
 * exp(x) = p 2^k with whole k and p between 0.7 and 1.5. Adding the constant brings the whole part into the low bits; k
 * times the first part of ln 2 is exact. 2^k is two factors, so that results are subnormal, 0 or inf where they have to
 * be, rounded once, as an instruction does it where there is one. exp(0) is 1; a nan stays one.
 */
LANES vec vec_exp(vec x) {
  x = vec_min(vec_all(90.0f), vec_max(vec_all(-105.0f), x));
  const vec magic = vec_all(0x1.8p23f);
  const vec shifted = vec_fma(x, vec_all(0x1.715476p0f), magic); /* 1 / ln 2 */
  const vec k = vec_sub(shifted, magic);
  const vec r = vec_fma(k, vec_all(-0x1.7f7d1cp-20f), vec_fma(k, vec_all(-0x1.62e4p-1f), x));
  vec p = vec_all(0x1.6a23cep-10f);
  p = vec_fma(p, r, vec_all(0x1.123a20p-7f));
  p = vec_fma(p, r, vec_all(0x1.5558f2p-5f));
  p = vec_fma(p, r, vec_all(0x1.555492p-3f));
  p = vec_fma(p, r, vec_all(0x1.fffffcp-2f));
  p = vec_fma(p, r, vec_all(1.0f));
  p = vec_fma(p, r, vec_all(1.0f));
#if defined(VEC_SCALE)
  return VEC_SCALE(p, k);
#else
  const ivec whole = ivec_sub(vec_bits(shifted), ivec_all(0x4b400000u)), half = ivec_half(whole);
  const vec first = vec_of_bits(ivec_exponent(ivec_add(half, ivec_all(127))));
  const vec second = vec_of_bits(ivec_exponent(ivec_add(ivec_sub(whole, half), ivec_all(127))));
  return vec_mul(vec_mul(p, first), second);
#endif
}

/*
 * tanh, off by less than 3 units of 2^-24 (of 1, not of the result): 1 - 2 / (exp(2 |x|) + 1) with the sign of x.
 */
LANES vec vec_tanh(vec x) {
  const ivec sign = ivec_and(vec_bits(x), ivec_all(0x80000000u));
  const vec size = vec_of_bits(ivec_and(vec_bits(x), ivec_all(0x7fffffffu)));
  const vec e = vec_exp(vec_add(size, size)), one = vec_all(1.0f);
  const vec y = vec_sub(one, vec_div(vec_all(2.0f), vec_add(e, one)));
  return vec_of_bits(ivec_or(vec_bits(y), sign));
}

#endif
