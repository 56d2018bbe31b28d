//! Floating point in 32 and 64 bits.

use super::number::{approximate, down, f, flush, max, min};
use super::{D, Form, W, lanes};

fn d(bits: u64) -> f64 {
    f64::from_bits(bits)
}

/// A comparison as PTX names it; the ones ending in `u` also hold where one of two is NaN.
macro_rules! compare {
    ($form:ident, $read:ident, $op:expr) => {
        Some(match $op {
            "eq" => lanes!($form, |a, b| $read(a) == $read(b)),
            "ne" => lanes!($form, |a, b| $read(a) < $read(b) || $read(a) > $read(b)),
            "lt" => lanes!($form, |a, b| $read(a) < $read(b)),
            "le" => lanes!($form, |a, b| $read(a) <= $read(b)),
            "gt" => lanes!($form, |a, b| $read(a) > $read(b)),
            "ge" => lanes!($form, |a, b| $read(a) >= $read(b)),
            "equ" => lanes!($form, |a, b| !($read(a) < $read(b) || $read(a) > $read(b))),
            "neu" => lanes!($form, |a, b| $read(a) != $read(b)),
            "ltu" => lanes!($form, |a, b| !($read(a) >= $read(b))),
            "leu" => lanes!($form, |a, b| !($read(a) > $read(b))),
            "gtu" => lanes!($form, |a, b| !($read(a) <= $read(b))),
            "geu" => lanes!($form, |a, b| !($read(a) < $read(b))),
            "num" => lanes!($form, |a, b| !$read(a).is_nan() && !$read(b).is_nan()),
            "nan" => lanes!($form, |a, b| $read(a).is_nan() || $read(b).is_nan()),
            _ => return None,
        })
    };
}

pub(super) fn form(opcode: &str) -> Option<Form> {
    single(opcode).or_else(|| special(opcode)).or_else(|| double(opcode)).or_else(|| comparison(opcode))
}

fn single(opcode: &str) -> Option<Form> {
    Some(match opcode {
        "add.f32" | "add.rn.f32" => lanes!(W2, |a, b| (f(a) + f(b)).to_bits()),
        "sub.f32" | "sub.rn.f32" => lanes!(W2, |a, b| (f(a) - f(b)).to_bits()),
        "mul.f32" | "mul.rn.f32" => lanes!(W2, |a, b| (f(a) * f(b)).to_bits()),
        "fma.rn.f32" => lanes!(W3, |a, b, c| f(a).mul_add(f(b), f(c)).to_bits()),
        "fma.rm.f32" => lanes!(W3, |a, b, c| {
            // The product of two floats is exact in f64, and so is this sum where the kernels use it (a rounding trick).
            down(f(a).mul_add(f(b), f(c)), f64::from(f(a)) * f64::from(f(b)) + f64::from(f(c))).to_bits()
        }),
        "div.rn.f32" => lanes!(W2, |a, b| (f(a) / f(b)).to_bits()),
        "sqrt.rn.f32" => lanes!(W1, |a| f(a).sqrt().to_bits()),
        "rcp.rn.f32" => lanes!(W1, |a| (1.0 / f(a)).to_bits()),
        "neg.f32" => lanes!(W1, |a| a ^ 0x8000_0000),
        "abs.f32" => lanes!(W1, |a| a & 0x7fff_ffff),
        "min.f32" => lanes!(W2, |a, b| min(f(a), f(b)).to_bits()),
        "max.f32" => lanes!(W2, |a, b| max(f(a), f(b)).to_bits()),
        "copysign.f32" => lanes!(W2, |a, b| (b & 0x7fff_ffff) | (a & 0x8000_0000)),
        _ => return None,
    })
}

fn special(opcode: &str) -> Option<Form> {
    Some(match opcode {
        "ex2.approx.f32" => lanes!(W1, |a| approximate(f64::from(f(a)).exp2())),
        "ex2.approx.ftz.f32" => {
            lanes!(W1, |a| flush(f(approximate(f64::from(flush(f(a))).exp2()))).to_bits())
        }
        "lg2.approx.f32" => lanes!(W1, |a| approximate(f64::from(f(a)).log2())),
        "lg2.approx.ftz.f32" => lanes!(W1, |a| approximate(f64::from(flush(f(a))).log2())),
        "rcp.approx.ftz.f32" => lanes!(W1, |a| flush(f(approximate(1.0 / f64::from(flush(f(a)))))).to_bits()),
        "rsqrt.approx.f32" => lanes!(W1, |a| approximate(1.0 / f64::from(f(a)).sqrt())),
        "rsqrt.approx.ftz.f32" => lanes!(W1, |a| approximate(1.0 / f64::from(flush(f(a))).sqrt())),
        "sqrt.approx.f32" => lanes!(W1, |a| approximate(f64::from(f(a)).sqrt())),
        _ => return None,
    })
}

fn double(opcode: &str) -> Option<Form> {
    Some(match opcode {
        "add.f64" | "add.rn.f64" => lanes!(D2, |a, b| (d(a) + d(b)).to_bits()),
        "sub.f64" | "sub.rn.f64" => lanes!(D2, |a, b| (d(a) - d(b)).to_bits()),
        "mul.f64" | "mul.rn.f64" => lanes!(D2, |a, b| (d(a) * d(b)).to_bits()),
        "fma.rn.f64" => lanes!(D3, |a, b, c| d(a).mul_add(d(b), d(c)).to_bits()),
        "div.rn.f64" => lanes!(D2, |a, b| (d(a) / d(b)).to_bits()),
        "sqrt.rn.f64" => lanes!(D1, |a| d(a).sqrt().to_bits()),
        "neg.f64" => lanes!(D1, |a| a ^ (1 << 63)),
        "abs.f64" => lanes!(D1, |a| a & !(1 << 63)),
        "max.f64" => lanes!(D2, |a, b| d(a).max(d(b)).to_bits()),
        "min.f64" => lanes!(D2, |a, b| d(a).min(d(b)).to_bits()),
        _ => return None,
    })
}

#[expect(clippy::neg_cmp_op_on_partial_ord, reason = "the unordered comparisons are the negations of the ordered ones")]
fn comparison(opcode: &str) -> Option<Form> {
    let rest = opcode.strip_prefix("setp.")?;
    match rest.split_once('.')? {
        (op, "f32") => compare!(PWW, f, op),
        (op, "f64") => compare!(PDD, d, op),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(opcode: &str, a: f32) -> f32 {
        match form(opcode).unwrap() {
            Form::W1(over) => f(over(&[a.to_bits(); 32])[31]),
            _ => panic!("{opcode} has one operand"),
        }
    }

    fn holds(opcode: &str, a: f32, b: f32) -> bool {
        match form(opcode).unwrap() {
            Form::PWW(over) => over(&[a.to_bits(); 32], &[b.to_bits(); 32]) == u32::MAX,
            _ => panic!("{opcode} compares"),
        }
    }

    #[test]
    fn approximations_are_exact_where_they_can_be() {
        assert_eq!((one("ex2.approx.ftz.f32", 0.0), one("ex2.approx.ftz.f32", 10.0)), (1.0, 1024.0));
        assert_eq!(one("ex2.approx.ftz.f32", f32::NEG_INFINITY), 0.0);
        assert_eq!((one("rsqrt.approx.ftz.f32", 4.0), one("lg2.approx.f32", 8.0)), (0.5, 3.0));
        assert_eq!((one("rcp.approx.ftz.f32", 0.0), one("lg2.approx.f32", 0.0)), (f32::INFINITY, f32::NEG_INFINITY));
        let off = (f64::from(one("ex2.approx.ftz.f32", 0.3)) / 0.3f64.exp2() - 1.0).abs();
        assert!(off > 0.0 && off < 2f64.powi(-22), "{off:e}");
    }

    #[test]
    fn comparisons_with_nan() {
        assert!(holds("setp.neu.f32", f32::NAN, 1.0) && !holds("setp.ne.f32", f32::NAN, 1.0));
        assert!(holds("setp.leu.f32", f32::NAN, 1.0) && !holds("setp.le.f32", f32::NAN, 1.0));
        assert!(holds("setp.equ.f32", 1.0, 1.0) && holds("setp.nan.f32", 1.0, f32::NAN));
    }
}
