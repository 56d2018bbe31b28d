//! Functions of one lane and sums over slices, written so that the compiler vectorises what contains them.

use super::Element;

/// How a level multiplies and adds.
pub(crate) trait MulAdd {
    /// `a b + c`.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// In one instruction with one rounding; only for levels that have it.
pub(crate) struct Fused;

/// In two roundings.
pub(crate) struct Separate;

impl MulAdd for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl MulAdd for Separate {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// What the compilation target does best.
#[cfg(target_arch = "aarch64")]
pub(crate) type Native = Fused;
/// What the compilation target does best.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) type Native = Separate;

/// `exp(x)` within 2e-7 relative; 0 below -87.3, infinite above 88.3, NaN of NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, and a polynomial of degree 7 in r (Cephes' coefficients).
#[inline(always)]
pub(crate) fn exp<M: MulAdd>(x: f32) -> f32 {
    /// Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = M::mul_add(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = M::mul_add(n, -LN2_LOW, M::mul_add(n, -LN2_HIGH, x));
    let mut p = 1.987_569_2e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = M::mul_add(p, r, c);
    }
    let mantissa = M::mul_add(p, r * r, r) + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let value = mantissa * f32::from_bits(power);
    let value = if x < -87.3 { 0.0 } else { value };
    if x > 88.3 { f32::INFINITY } else { value }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn sigmoid<M: MulAdd>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<M>(-x))
}

/// Accumulators of a vectorised sum: one register at the widest level.
pub(crate) const LANES: usize = 16;

/// Joins the lanes of a reduction, pairwise.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of `f` of each element, in sixteen interleaved parts.
#[inline(always)]
pub(crate) fn sum<X: Element>(xs: &[X], f: impl Fn(f32) -> f32) -> f32 {
    let (blocks, rest) = xs.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for x in blocks {
        for l in 0..LANES {
            lanes[l] += f(x[l].get());
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(x.get());
    }
    fold(lanes, |a, b| a + b)
}

/// Sum of `x y`, in sixteen interleaved parts.
#[inline(always)]
pub(crate) fn dot<X: Element, Y: Element>(xs: &[X], ys: &[Y]) -> f32 {
    let ((blocks, rest), (blocks_y, rest_y)) = (xs.as_chunks::<LANES>(), ys.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (x, y) in blocks.iter().zip(blocks_y) {
        for l in 0..LANES {
            lanes[l] += x[l].get() * y[l].get();
        }
    }
    for ((lane, x), y) in lanes.iter_mut().zip(rest).zip(rest_y) {
        *lane += x.get() * y.get();
    }
    fold(lanes, |a, b| a + b)
}

/// Sum of `x y z`, in sixteen interleaved parts.
#[inline(always)]
pub(crate) fn dot3<X: Element, Y: Element, Z: Element>(xs: &[X], ys: &[Y], zs: &[Z]) -> f32 {
    let ((blocks, rest), (blocks_y, rest_y)) = (xs.as_chunks::<LANES>(), ys.as_chunks::<LANES>());
    let (blocks_z, rest_z) = zs.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for ((x, y), z) in blocks.iter().zip(blocks_y).zip(blocks_z) {
        for l in 0..LANES {
            lanes[l] += x[l].get() * (y[l].get() * z[l].get());
        }
    }
    for (((lane, x), y), z) in lanes.iter_mut().zip(rest).zip(rest_y).zip(rest_z) {
        *lane += x.get() * (y.get() * z.get());
    }
    fold(lanes, |a, b| a + b)
}

/// The larger of two, the first where one is NaN.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Largest element, -infinity of none; NaN elements are passed over.
#[inline(always)]
pub(crate) fn max(xs: &[f32]) -> f32 {
    let (blocks, rest) = xs.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = larger(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, x);
    }
    fold(lanes, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_range() {
        check_exp::<Fused>();
        check_exp::<Separate>();
    }

    fn check_exp<M: MulAdd>() {
        let exp = exp::<M>;
        let mut x = -87.2f32;
        while x < 88.2 {
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 2e-7, "exp({x}) is off by {error:e}");
            x += 0.001_37;
        }
        assert_eq!((exp(0.0), exp(-1000.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert_eq!((exp(1000.0), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_take_every_element() {
        for n in [0usize, 1, 15, 16, 17, 100] {
            let xs: Vec<f32> = (0..n).map(|i| (i as f32) - 3.0).collect();
            assert_eq!(sum(&xs, |x| x), xs.iter().sum::<f32>());
            assert_eq!(dot(&xs, &xs), xs.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(dot3(&xs, &xs, &vec![2.0; n]), xs.iter().map(|x| 2.0 * x * x).sum::<f32>());
            assert_eq!(max(&xs), xs.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
