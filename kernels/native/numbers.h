// One number as it is stored. Rounding is to nearest, ties to even; written so that compilers vectorise it.
#pragma once

static inline float as_float(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

struct Float32 {
    typedef float Stored;
    static float widen(float value) { return value; }
    static float narrow(float value) { return value; }
};

struct Float16 {
    typedef uint16_t Stored;

    static float widen(uint16_t half) {
        const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = uint32_t(half & 0x7fff) << 13;
        const uint32_t finite = as_bits(as_float(rest) * 0x1p112f);
        return as_float(sign | (rest >= 0x0f800000 ? rest | 0x7f800000 : finite));
    }

    static uint16_t narrow(float value) {
        const uint32_t bits = as_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
        const uint32_t small = as_bits(as_float(rest) + 0.5f) - 0x3f000000;
        const uint32_t usual = (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13;
        const uint32_t special = rest > 0x7f800000 ? 0x7e00 : 0x7c00;
        return uint16_t(sign | (rest >= 0x477ff000 ? special : rest < 0x38800000 ? small : usual));
    }
};

struct BFloat16 {
    typedef uint16_t Stored;
    static float widen(uint16_t value) { return as_float(uint32_t(value) << 16); }

    static uint16_t narrow(float value) {
        const uint32_t bits = as_bits(value), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded);
    }
};
