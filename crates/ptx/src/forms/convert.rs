//! Conversions between formats and widths.

use super::Form::{self, *};
use super::number::{bf16_to_f32, f, f16_to_f32, to_bf16, to_f16};
use super::{D, W, lanes};

fn d(bits: u64) -> f64 {
    f64::from_bits(bits)
}

/// Nearest integer, ties to even, NaN as zero; Rust's casts saturate as PTX's do.
fn nearest(x: f32) -> f32 {
    x.round_ties_even()
}

pub(super) fn form(opcode: &str) -> Option<Form> {
    floats(opcode).or_else(|| mixed(opcode)).or_else(|| integers(opcode))
}

fn floats(opcode: &str) -> Option<Form> {
    Some(match opcode {
        "cvt.rn.bf16.f32" => lanes!(W1, |a| to_bf16(f(a))),
        "cvt.rn.f16.f32" => lanes!(W1, |a| to_f16(f(a))),
        "cvt.f32.f16" => lanes!(W1, |a| f16_to_f32(a).to_bits()),
        "cvt.f32.bf16" => lanes!(W1, |a| bf16_to_f32(a).to_bits()),
        // The first operand goes into the upper half.
        "cvt.rn.bf16x2.f32" => lanes!(W2, |a, b| to_bf16(f(a)) << 16 | to_bf16(f(b))),
        "cvt.rn.f16x2.f32" => lanes!(W2, |a, b| to_f16(f(a)) << 16 | to_f16(f(b))),
        "cvt.f64.f32" => lanes!(DW, |a| f64::from(f(a)).to_bits()),
        "cvt.rn.f32.f64" => lanes!(WD, |a| (d(a) as f32).to_bits()),
        "cvt.rni.f32.f32" => lanes!(W1, |a| nearest(f(a)).to_bits()),
        "cvt.rmi.f32.f32" => lanes!(W1, |a| f(a).floor().to_bits()),
        "cvt.rpi.f32.f32" => lanes!(W1, |a| f(a).ceil().to_bits()),
        "cvt.rzi.f32.f32" => lanes!(W1, |a| f(a).trunc().to_bits()),
        "cvt.sat.f32.f32" => lanes!(W1, |a| if f(a).is_nan() { 0 } else { f(a).clamp(0.0, 1.0).to_bits() }),
        "cvt.rpi.f64.f64" => lanes!(D1, |a| d(a).ceil().to_bits()),
        "cvt.rni.f64.f64" => lanes!(D1, |a| d(a).round_ties_even().to_bits()),
        _ => return None,
    })
}

fn mixed(opcode: &str) -> Option<Form> {
    Some(match opcode {
        "cvt.rn.f32.s32" => lanes!(W1, |a| (a as i32 as f32).to_bits()),
        "cvt.rn.f32.u32" => lanes!(W1, |a| (a as f32).to_bits()),
        "cvt.rn.f32.s64" => lanes!(WD, |a| (a as i64 as f32).to_bits()),
        "cvt.rn.f32.u64" => lanes!(WD, |a| (a as f32).to_bits()),
        "cvt.rn.f64.s32" => lanes!(DW, |a| f64::from(a as i32).to_bits()),
        "cvt.rn.f64.u32" => lanes!(DW, |a| f64::from(a).to_bits()),
        "cvt.rn.f64.s64" => lanes!(D1, |a| (a as i64 as f64).to_bits()),
        "cvt.rn.f64.u64" => lanes!(D1, |a| (a as f64).to_bits()),
        "cvt.rni.s32.f32" => lanes!(W1, |a| nearest(f(a)) as i32 as u32),
        "cvt.rzi.s32.f32" => lanes!(W1, |a| f(a) as i32 as u32),
        "cvt.rzi.u32.f32" => lanes!(W1, |a| f(a) as u32),
        "cvt.rzi.u64.f32" => lanes!(DW, |a| f(a) as u64),
        "cvt.rzi.u64.f64" => lanes!(D1, |a| d(a) as u64),
        "cvt.rni.s32.f64" => lanes!(WD, |a| d(a).round_ties_even() as i32 as u32),
        _ => return None,
    })
}

fn integers(opcode: &str) -> Option<Form> {
    Some(match opcode {
        "cvt.u32.u16" | "cvt.u16.u32" | "cvt.s32.u16" => lanes!(W1, |a| a & 0xffff),
        "cvt.s32.s16" | "cvt.u32.s16" => lanes!(W1, |a| a as i16 as i32 as u32),
        "cvt.u32.u64" | "cvt.s32.s64" | "cvt.u32.s64" => lanes!(WD, |a| a as u32),
        "cvt.u16.u64" => lanes!(WD, |a| a as u32 & 0xffff),
        "cvt.u64.u32" | "cvt.s64.u32" => lanes!(DW, |a| u64::from(a)),
        "cvt.s64.s32" | "cvt.u64.s32" => lanes!(DW, |a| i64::from(a as i32) as u64),
        "cvt.u64.u16" => lanes!(DW, |a| u64::from(a & 0xffff)),
        // Shared memory begins at the address 0 of its own space, and nothing here uses generic addresses of it.
        "cvta.to.global.u64" | "cvta.to.shared.u64" | "cvta.global.u64" | "cvta.shared.u64" => D1(|a| *a),
        _ => return None,
    })
}
