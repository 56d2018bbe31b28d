//! Integers, bits and predicates.

use super::Form::{self, *};
use super::{D, W, lanes};

fn s(x: u32) -> i32 {
    x as i32
}

fn sd(x: u64) -> i64 {
    x as i64
}

/// Shifts by the width or more are PTX's, not the processor's.
fn shl(a: u32, n: u32) -> u32 {
    a.checked_shl(n).unwrap_or(0)
}

fn shr(a: u32, n: u32) -> u32 {
    a.checked_shr(n).unwrap_or(0)
}

fn sar(a: u32, n: u32) -> u32 {
    (s(a) >> n.min(31)) as u32
}

fn sar64(a: u64, n: u32) -> u64 {
    (sd(a) >> n.min(63)) as u64
}

fn bfe(a: u32, from: u32, len: u32) -> u32 {
    let (from, len) = (from & 0xff, len & 0xff);
    shr(a, from) & shl(1, len).wrapping_sub(1)
}

/// Bits of `a` put into `b`.
fn bfi(a: u32, b: u32, from: u32, len: u32) -> u32 {
    let mask = shl(shl(1, len & 0xff).wrapping_sub(1), from & 0xff);
    shl(a, from & 0xff) & mask | b & !mask
}

/// Byte `i` of the selector picks one of eight bytes.
fn prmt(a: u32, b: u32, pick: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let one = |i: u32| {
        let choice = pick >> (4 * i);
        let byte = bytes[(choice & 7) as usize];
        if choice & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 }
    };
    u32::from_le_bytes([one(0), one(1), one(2), one(3)])
}

fn div(a: u32, b: u32) -> u32 {
    a.checked_div(b).unwrap_or(u32::MAX)
}

fn rem(a: u32, b: u32) -> u32 {
    a.checked_rem(b).unwrap_or(a)
}

pub(super) fn form(opcode: &str) -> Option<Form> {
    narrow(opcode).or_else(|| bits(opcode)).or_else(|| wide(opcode)).or_else(|| compare(opcode))
}

fn narrow(opcode: &str) -> Option<Form> {
    Some(match opcode {
        "add.s32" | "add.u32" => lanes!(W2, |a, b| a.wrapping_add(b)),
        "sub.s32" | "sub.u32" => lanes!(W2, |a, b| a.wrapping_sub(b)),
        "add.s16" | "add.u16" => lanes!(W2, |a, b| a.wrapping_add(b) & 0xffff),
        "mul.lo.s32" | "mul.lo.u32" => lanes!(W2, |a, b| a.wrapping_mul(b)),
        "mul.hi.u32" => lanes!(W2, |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        "mul.hi.s32" => lanes!(W2, |a, b| ((i64::from(s(a)) * i64::from(s(b))) >> 32) as u32),
        "mad.lo.s32" | "mad.lo.u32" => lanes!(W3, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        "div.u32" => lanes!(W2, |a, b| div(a, b)),
        "rem.u32" => lanes!(W2, |a, b| rem(a, b)),
        "div.s32" => lanes!(W2, |a, b| if b == 0 { u32::MAX } else { s(a).wrapping_div(s(b)) as u32 }),
        "rem.s32" => lanes!(W2, |a, b| if b == 0 { a } else { s(a).wrapping_rem(s(b)) as u32 }),
        "min.s32" => lanes!(W2, |a, b| s(a).min(s(b)) as u32),
        "max.s32" => lanes!(W2, |a, b| s(a).max(s(b)) as u32),
        "min.u32" => lanes!(W2, |a, b| a.min(b)),
        "max.u32" => lanes!(W2, |a, b| a.max(b)),
        "neg.s32" => lanes!(W1, |a| a.wrapping_neg()),
        "abs.s32" => lanes!(W1, |a| s(a).unsigned_abs()),
        "mul.wide.u32" => lanes!(DWW, |a, b| u64::from(a) * u64::from(b)),
        "mul.wide.s32" => lanes!(DWW, |a, b| (i64::from(s(a)) * i64::from(s(b))) as u64),
        "mad.wide.u32" => lanes!(DWWD, |a, b, c| (u64::from(a) * u64::from(b)).wrapping_add(c)),
        "mad.wide.s32" => lanes!(DWWD, |a, b, c| ((i64::from(s(a)) * i64::from(s(b))) as u64).wrapping_add(c)),
        _ => return None,
    })
}

fn bits(opcode: &str) -> Option<Form> {
    Some(match opcode {
        "mov.b32" | "mov.u32" | "mov.s32" | "mov.f32" | "mov.b16" | "mov.u16" => lanes!(W1, |a| a),
        "and.b32" | "and.b16" => lanes!(W2, |a, b| a & b),
        "or.b32" | "or.b16" => lanes!(W2, |a, b| a | b),
        "xor.b32" | "xor.b16" => lanes!(W2, |a, b| a ^ b),
        "not.b32" => lanes!(W1, |a| !a),
        "not.b16" => lanes!(W1, |a| !a & 0xffff),
        "shl.b32" => lanes!(W2, |a, b| shl(a, b)),
        "shl.b16" => lanes!(W2, |a, b| shl(a, b) & 0xffff),
        "shr.u32" | "shr.b32" | "shr.u16" => lanes!(W2, |a, b| shr(a, b)),
        "shr.s32" => lanes!(W2, |a, b| sar(a, b)),
        "shf.l.wrap.b32" => lanes!(W3, |a, b, c| (((u64::from(b) << 32 | u64::from(a)) << (c & 31)) >> 32) as u32),
        "shf.r.wrap.b32" => lanes!(W3, |a, b, c| ((u64::from(b) << 32 | u64::from(a)) >> (c & 31)) as u32),
        "bfe.u32" => lanes!(W3, |a, b, c| bfe(a, b, c)),
        "bfi.b32" => lanes!(W4, |a, b, c, d| bfi(a, b, c, d)),
        "prmt.b32" => lanes!(W3, |a, b, c| prmt(a, b, c)),
        "popc.b32" => lanes!(W1, |a| a.count_ones()),
        // How far to the left the highest bit may be shifted.
        "bfind.shiftamt.u32" => lanes!(W1, |a| if a == 0 { u32::MAX } else { a.leading_zeros() }),
        "clz.b32" => lanes!(W1, |a| a.leading_zeros()),
        "brev.b32" => lanes!(W1, |a| a.reverse_bits()),
        "selp.b32" | "selp.u32" | "selp.s32" | "selp.f32" | "selp.b16" | "selp.u16" => {
            WWWP(|a, b, p| std::array::from_fn(|i| if p >> i & 1 == 1 { a[i] } else { b[i] }))
        }
        "selp.b64" | "selp.u64" | "selp.s64" | "selp.f64" => {
            DDDP(|a, b, p| std::array::from_fn(|i| if p >> i & 1 == 1 { a[i] } else { b[i] }))
        }
        "mov.pred" => P1(|a| a),
        "not.pred" => P1(|a| !a),
        "and.pred" => P2(|a, b| a & b),
        "or.pred" => P2(|a, b| a | b),
        "xor.pred" => P2(|a, b| a ^ b),
        _ => return None,
    })
}

fn wide(opcode: &str) -> Option<Form> {
    Some(match opcode {
        "mov.b64" | "mov.u64" | "mov.s64" | "mov.f64" => lanes!(D1, |a| a),
        "add.s64" | "add.u64" => lanes!(D2, |a, b| a.wrapping_add(b)),
        "sub.s64" | "sub.u64" => lanes!(D2, |a, b| a.wrapping_sub(b)),
        "mul.lo.s64" | "mul.lo.u64" => lanes!(D2, |a, b| a.wrapping_mul(b)),
        "mad.lo.s64" | "mad.lo.u64" => lanes!(D3, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        "div.u64" => lanes!(D2, |a, b| a.checked_div(b).unwrap_or(u64::MAX)),
        "div.s64" => lanes!(D2, |a, b| if b == 0 { u64::MAX } else { sd(a).wrapping_div(sd(b)) as u64 }),
        "rem.u64" => lanes!(D2, |a, b| a.checked_rem(b).unwrap_or(a)),
        "rem.s64" => lanes!(D2, |a, b| if b == 0 { a } else { sd(a).wrapping_rem(sd(b)) as u64 }),
        "min.s64" => lanes!(D2, |a, b| sd(a).min(sd(b)) as u64),
        "max.s64" => lanes!(D2, |a, b| sd(a).max(sd(b)) as u64),
        "min.u64" => lanes!(D2, |a, b| a.min(b)),
        "max.u64" => lanes!(D2, |a, b| a.max(b)),
        "neg.s64" => lanes!(D1, |a| a.wrapping_neg()),
        "not.b64" => lanes!(D1, |a| !a),
        "and.b64" => lanes!(D2, |a, b| a & b),
        "or.b64" => lanes!(D2, |a, b| a | b),
        "xor.b64" => lanes!(D2, |a, b| a ^ b),
        "shl.b64" => lanes!(DDW, |a, b| a.checked_shl(b).unwrap_or(0)),
        "shr.u64" | "shr.b64" => lanes!(DDW, |a, b| a.checked_shr(b).unwrap_or(0)),
        "shr.s64" => lanes!(DDW, |a, b| sar64(a, b)),
        _ => return None,
    })
}

fn compare(opcode: &str) -> Option<Form> {
    Some(match opcode {
        "setp.eq.s32" | "setp.eq.u32" | "setp.eq.b32" | "setp.eq.s16" | "setp.eq.u16" | "setp.eq.b16" => {
            lanes!(PWW, |a, b| a == b)
        }
        "setp.ne.s32" | "setp.ne.u32" | "setp.ne.b32" | "setp.ne.s16" | "setp.ne.u16" | "setp.ne.b16" => {
            lanes!(PWW, |a, b| a != b)
        }
        "setp.lt.s32" => lanes!(PWW, |a, b| s(a) < s(b)),
        "setp.le.s32" => lanes!(PWW, |a, b| s(a) <= s(b)),
        "setp.gt.s32" => lanes!(PWW, |a, b| s(a) > s(b)),
        "setp.ge.s32" => lanes!(PWW, |a, b| s(a) >= s(b)),
        "setp.lt.u32" | "setp.lt.u16" => lanes!(PWW, |a, b| a < b),
        "setp.le.u32" | "setp.le.u16" => lanes!(PWW, |a, b| a <= b),
        "setp.gt.u32" | "setp.gt.u16" => lanes!(PWW, |a, b| a > b),
        "setp.ge.u32" | "setp.ge.u16" => lanes!(PWW, |a, b| a >= b),
        "setp.eq.s64" | "setp.eq.u64" | "setp.eq.b64" => lanes!(PDD, |a, b| a == b),
        "setp.ne.s64" | "setp.ne.u64" | "setp.ne.b64" => lanes!(PDD, |a, b| a != b),
        "setp.lt.s64" => lanes!(PDD, |a, b| sd(a) < sd(b)),
        "setp.le.s64" => lanes!(PDD, |a, b| sd(a) <= sd(b)),
        "setp.gt.s64" => lanes!(PDD, |a, b| sd(a) > sd(b)),
        "setp.ge.s64" => lanes!(PDD, |a, b| sd(a) >= sd(b)),
        "setp.lt.u64" => lanes!(PDD, |a, b| a < b),
        "setp.le.u64" => lanes!(PDD, |a, b| a <= b),
        "setp.gt.u64" => lanes!(PDD, |a, b| a > b),
        "setp.ge.u64" => lanes!(PDD, |a, b| a >= b),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_corners() {
        assert_eq!((shl(1, 32), shr(u32::MAX, 40), sar(0x8000_0000, 99)), (0, 0, u32::MAX));
        assert_eq!(prmt(0x3322_1100, 0x7766_5544, 0x5410), 0x5544_1100);
        assert_eq!(prmt(0x0000_0080, 0, 0x0008), 0x8080_80ff);
        assert_eq!((bfe(0xabcd_1234, 4, 8), bfi(0x12, 0xffff_ffff, 4, 8)), (0x23, 0xffff_f12f));
        assert_eq!((bfi(7, 0, 3, 29), bfi(7, 5, 0, 0)), (56, 5));
    }
}
