/* What stands between the products of a transformer: dropout, exponentials, GELU and LayerNorm.

   Plain loops that a compiler turns into vectors; in float64, which tests take, the C library's functions. */

#ifndef ELEMENTWISE_H
#define ELEMENTWISE_H

#include <math.h>
#include <stdint.h>

#include "product.h"

/* A key for `random_bytes`, and the step from one of its words to the next (splitmix64: Steele, Lea and Flood 2014). */
static inline uint64_t mix(uint64_t word)
{
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9u;
    word = (word ^ (word >> 27)) * 0x94D049BB133111EBu;
    return word ^ (word >> 31);
}

/* `count` bytes from number `first` on of the stream of a key, both multiples of 8: the same whenever it is asked. */
static inline void random_bytes(uint64_t key, long first, long count, uint8_t *bytes)
{
    for (long word = 0; word < count / 8; word++) {
        uint64_t value = mix(key + (uint64_t)(first / 8 + word + 1) * 0x9E3779B97F4A7C15u);
        memcpy(bytes + 8 * word, &value, 8);
    }
}

/* Dropout in place: an entry stays, times `scale`, where its byte is below `kept`. */
static inline void drop(long count, const uint8_t *bytes, int kept, real scale, real *x)
{
    for (long i = 0; i < count; i++)
        x[i] = bytes[i] < kept ? x[i] * scale : 0;
}

/* e^x. In float32 by Cody and Waite's reduction and the polynomial of Cephes' expf, within 2 units of the last place
   between e^-87, below which it does not go, and e^88, above which it is infinite; NaN stays NaN. */
static inline real exponential(real x)
{
    if (sizeof(real) == sizeof(double))
        return (real)exp((double)x);
    union {
        float value;
        uint32_t bits; /* of NaN they are anything, and what becomes of them is multiplied by NaN */
    } whole, power;
    float y = x < -87.0f ? -87.0f : x > 89.0f ? 89.0f : (float)x;
    whole.value = y * 1.44269504f + 12582912.0f; /* 1.5 2^23: the integer ends up in the last bits */
    float count = whole.value - 12582912.0f;
    power.bits = (whole.bits - 0x4B400000u + 127u) << 23;
    float rest = y - count * 0.693359375f + count * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    return (real)((sum * rest * rest + rest + 1.0f) * power.value);
}

/* The normal distribution at x, and its density: GELU(x) = x Phi(x), GELU'(x) = Phi(x) + x phi(x).
   In float32 by Abramowitz and Stegun 7.1.26, within 1e-7, as torch's vectors have it. */
static inline real normal(real x, real *density)
{
    real bell = exponential((real)-0.5 * x * x);
    *density = bell * (real)0.3989422804014327;
    if (sizeof(real) == sizeof(double))
        return (real)(0.5 * (1.0 + erf((double)x * 0.7071067811865476)));
    float t = 1.0f / (1.0f + 0.23164189f * (float)fabs((double)x)); /* 0.3275911 / sqrt(2) */
    float sum = 1.061405429f;
    sum = sum * t - 1.453152027f;
    sum = sum * t + 1.421413741f;
    sum = sum * t - 0.284496736f;
    sum = sum * t + 0.254829592f;
    float half = 0.5f * sum * t * (float)bell; /* the smaller tail */
    return (real)(x < 0 ? half : 1.0f - half);
}

/* LayerNorm of a row of `width`: `unit` is the row with mean 0 and variance 1, `out` unit times weight plus bias, both
   with zeros behind the width up to `stride`. Returns one over the standard deviation. */
static inline real normalise(long width, long stride, const real *x, const real *weight, const real *bias, real *unit,
                      real *out)
{
    real sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < width; i++)
        sum += x[i];
    real mean = sum / width;
#pragma omp simd reduction(+ : squares)
    for (long i = 0; i < width; i++)
        squares += (x[i] - mean) * (x[i] - mean);
    real inverse = (real)1 / (real)sqrt((double)(squares / width + (real)1e-5));
    for (long i = 0; i < width; i++) {
        real value = (x[i] - mean) * inverse;
        unit[i] = value;
        out[i] = value * weight[i] + bias[i];
    }
    for (long i = width; i < stride; i++)
        unit[i] = out[i] = 0;
    return inverse;
}

/* The way back: from the gradient of `out` to that of the row, and what it adds to those of weight and bias. */
static inline void normalise_backward(long width, long stride, const real *gradient, const real *unit, real inverse,
                               const real *weight, real *weight_sum, real *bias_sum, real *x_gradient)
{
    real sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (long i = 0; i < width; i++) {
        real weighted = gradient[i] * weight[i];
        sum += weighted;
        dot += weighted * unit[i];
        weight_sum[i] += gradient[i] * unit[i];
        bias_sum[i] += gradient[i];
    }
    sum /= width;
    dot /= width;
    for (long i = 0; i < width; i++)
        x_gradient[i] = (gradient[i] * weight[i] - sum - unit[i] * dot) * inverse;
    for (long i = width; i < stride; i++)
        x_gradient[i] = 0;
}

#endif
