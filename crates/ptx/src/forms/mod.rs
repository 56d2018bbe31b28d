//! Instructions that compute: each form, as PTX writes it, and a function over the 32 lanes of a warp.
//!
//! Flat tables. A form that isn't here isn't understood, so each line is one that some kernel uses or a test checks.
//! Registers of 16 and 32 bits are [`W`]s (the upper half of a 16-bit one is zero), of 64 bits [`D`]s; predicates are masks.

mod convert;
mod float;
mod integer;
mod number;

pub(crate) use number::{bf16_to_f32, f16_to_f32, truncate};

/// A register of 16 or 32 bits in every lane.
pub(crate) type W = [u32; 32];
/// A register of 64 bits in every lane.
pub(crate) type D = [u64; 32];

/// A function by the kinds of its result and operands.
#[expect(clippy::upper_case_acronyms, reason = "a letter a register, not a word")]
#[derive(Clone, Copy)]
pub(crate) enum Form {
    W1(fn(&W) -> W),
    W2(fn(&W, &W) -> W),
    W3(fn(&W, &W, &W) -> W),
    W4(fn(&W, &W, &W, &W) -> W),
    D1(fn(&D) -> D),
    D2(fn(&D, &D) -> D),
    D3(fn(&D, &D, &D) -> D),
    /// A narrower result.
    WD(fn(&D) -> W),
    /// A wider result.
    DW(fn(&W) -> D),
    DWW(fn(&W, &W) -> D),
    DWWD(fn(&W, &W, &D) -> D),
    /// Shifts of 64 bits.
    DDW(fn(&D, &W) -> D),
    /// Comparisons.
    PWW(fn(&W, &W) -> u32),
    PDD(fn(&D, &D) -> u32),
    /// Predicates.
    P1(fn(u32) -> u32),
    P2(fn(u32, u32) -> u32),
    /// Selections by a predicate.
    WWWP(fn(&W, &W, u32) -> W),
    DDDP(fn(&D, &D, u32) -> D),
}

/// The form of an opcode with its suffixes.
pub(crate) fn form(opcode: &str) -> Option<Form> {
    integer::form(opcode).or_else(|| float::form(opcode)).or_else(|| convert::form(opcode))
}

/// Wraps expressions of one lane into a [`Form`].
macro_rules! lanes {
    (W1, |$a:ident| $e:expr) => { lanes!(@ W1, W, a: &W => |$a| $e) };
    (W2, |$a:ident, $b:ident| $e:expr) => { lanes!(@ W2, W, a: &W, b: &W => |$a, $b| $e) };
    (W3, |$a:ident, $b:ident, $c:ident| $e:expr) => { lanes!(@ W3, W, a: &W, b: &W, c: &W => |$a, $b, $c| $e) };
    (W4, |$a:ident, $b:ident, $c:ident, $d:ident| $e:expr) => {
        lanes!(@ W4, W, a: &W, b: &W, c: &W, d: &W => |$a, $b, $c, $d| $e)
    };
    (D1, |$a:ident| $e:expr) => { lanes!(@ D1, D, a: &D => |$a| $e) };
    (D2, |$a:ident, $b:ident| $e:expr) => { lanes!(@ D2, D, a: &D, b: &D => |$a, $b| $e) };
    (D3, |$a:ident, $b:ident, $c:ident| $e:expr) => { lanes!(@ D3, D, a: &D, b: &D, c: &D => |$a, $b, $c| $e) };
    (WD, |$a:ident| $e:expr) => { lanes!(@ WD, W, a: &D => |$a| $e) };
    (DW, |$a:ident| $e:expr) => { lanes!(@ DW, D, a: &W => |$a| $e) };
    (DWW, |$a:ident, $b:ident| $e:expr) => { lanes!(@ DWW, D, a: &W, b: &W => |$a, $b| $e) };
    (DWWD, |$a:ident, $b:ident, $c:ident| $e:expr) => {
        lanes!(@ DWWD, D, a: &W, b: &W, c: &D => |$a, $b, $c| $e)
    };
    (DDW, |$a:ident, $b:ident| $e:expr) => { lanes!(@ DDW, D, a: &D, b: &W => |$a, $b| $e) };
    (PWW, |$a:ident, $b:ident| $e:expr) => { lanes!(@mask PWW, a: &W, b: &W => |$a, $b| $e) };
    (PDD, |$a:ident, $b:ident| $e:expr) => { lanes!(@mask PDD, a: &D, b: &D => |$a, $b| $e) };
    (@ $form:ident, $out:ty, $($arg:ident: $ty:ty),* => |$($name:ident),*| $e:expr) => {{
        fn over($($name: $ty),*) -> $out {
            std::array::from_fn(|lane| {
                $(let $name = $name[lane];)*
                $e
            })
        }
        $crate::forms::Form::$form(over)
    }};
    (@mask $form:ident, $($arg:ident: $ty:ty),* => |$($name:ident),*| $e:expr) => {{
        fn over($($name: $ty),*) -> u32 {
            (0..32).fold(0, |mask, lane| {
                $(let $name = $name[lane];)*
                mask | u32::from($e) << lane
            })
        }
        $crate::forms::Form::$form(over)
    }};
}
pub(crate) use lanes;
