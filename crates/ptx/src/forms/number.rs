//! Numbers as a GPU has them: 16-bit floats, one-bit-short approximations, NaN in minima and conversions.

use half::{bf16, f16};

pub(crate) fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

pub(crate) fn bf16_to_f32(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

pub(crate) fn f16_to_f32(bits: u32) -> f32 {
    f16::from_bits(bits as u16).to_f32()
}

/// The nearest bf16, ties to even; every NaN is 0x7fff.
pub(crate) fn to_bf16(x: f32) -> u32 {
    if x.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(x).to_bits()) }
}

/// The nearest f16, ties to even; every NaN is 0x7fff.
pub(crate) fn to_f16(x: f32) -> u32 {
    if x.is_nan() { 0x7fff } else { u32::from(f16::from_f32(x).to_bits()) }
}

/// What an `.approx` function gives for a true value: the nearest float, its last bit cleared unless it is exact.
pub(crate) fn approximate(x: f64) -> u32 {
    let nearest = x as f32;
    let exact = f64::from(nearest) == x || !nearest.is_finite();
    if exact { nearest.to_bits() } else { nearest.to_bits() & !1 }
}

/// Subnormal numbers are zero, as `.ftz` has them.
pub(crate) fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

/// `min` and `max`: a number where one of two is NaN, -0 below +0.
pub(crate) fn min(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => f(0x7fff_ffff),
        (true, false) => b,
        (false, true) => a,
        _ if a == b => f(a.to_bits() | b.to_bits()),
        _ => a.min(b),
    }
}

pub(crate) fn max(a: f32, b: f32) -> f32 {
    -min(-a, -b)
}

/// Rounds towards minus infinity what `exact` stands for and `nearest` is nearest to.
pub(crate) fn down(nearest: f32, exact: f64) -> f32 {
    if f64::from(nearest) > exact { nearest.next_down() } else { nearest }
}

/// Rounds `exact` towards zero.
pub(crate) fn truncate(exact: f64) -> f32 {
    let nearest = exact as f32;
    if f64::from(nearest).abs() > exact.abs() {
        if nearest > 0.0 { nearest.next_down() } else { nearest.next_up() }
    } else {
        nearest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roundings() {
        assert_eq!((to_bf16(1.0), to_bf16(f32::NAN), to_bf16(1.003_906_3)), (0x3f80, 0x7fff, 0x3f80));
        assert_eq!((to_f16(1.0), to_f16(70000.0)), (0x3c00, 0x7c00));
        assert_eq!(f(approximate(0.1)).to_bits(), 0.1f32.to_bits() & !1);
        assert_eq!(f(approximate(0.5)), 0.5);
        assert_eq!((min(f32::NAN, 1.0), max(1.0, f32::NAN), min(0.0, -0.0).is_sign_negative()), (1.0, 1.0, true));
        assert_eq!(truncate(1.0 + 1e-12), 1.0);
        assert!(truncate(0.1) <= 0.1f32 && f64::from(truncate(-0.1)) > -0.1 - 1e-12);
    }
}
