//! Executes one instruction of one group of lanes.

mod matrix;
mod memory;
mod sync;

use crate::decode::op::{Inst, Op};
use crate::forms::Form;
use crate::memory::Accessor;
use crate::module::Kernel;
use crate::shared::Shared;
use crate::warp::Warp;
use crate::{Cause, Memory, Traffic};

/// What a warp runs in.
pub(crate) struct Context<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) params: &'a [u8],
    pub(crate) memory: &'a mut Memory,
    pub(crate) shared: &'a mut Shared,
    pub(crate) block: Accessor,
    pub(crate) traffic: Traffic,
}

/// What becomes of the group.
#[derive(Clone, Copy)]
pub(crate) enum Next {
    /// To the next instruction.
    On,
    /// These lanes branch, the others go on.
    Jump(u32, u32),
    /// These lanes end.
    End(u32),
    /// Wait for other lanes.
    Hold,
    /// The whole warp waits at a barrier.
    Barrier(u32),
}

/// Runs `inst` for `lanes` of `warp`; `Err` has the first lane that failed.
pub(crate) fn run(cx: &mut Context<'_>, warp: &mut Warp, inst: &Inst, lanes: u32) -> Result<Next, (usize, Cause)> {
    let mask = match inst.guard {
        None => lanes,
        Some((p, negated)) => lanes & if negated { !warp.predicate(p) } else { warp.predicate(p) },
    };
    match inst.op {
        Op::Branch { target } => return Ok(Next::Jump(target, mask)),
        Op::Exit => return Ok(Next::End(mask)),
        Op::Barrier { id } => return sync::barrier(warp, lanes, mask, id),
        Op::WarpBarrier { mask: wanted } => return sync::warp_barrier(warp, lanes, mask, wanted),
        Op::Shuffle { .. } | Op::Vote { .. } | Op::Match { .. } => return sync::exchange(warp, &inst.op, lanes, mask),
        Op::LoadMatrix { .. } | Op::Mma { .. } => {
            // Aligned instructions are for the whole warp.
            if mask != warp.all {
                return sync::incomplete(warp, lanes, mask, warp.all);
            }
            matrix::run(cx, warp, &inst.op)?;
        }
        _ if mask == 0 => {}
        Op::Compute { form, to, from } => compute(warp, form, to, from, mask),
        Op::Joined { form, to, from, with, or } => {
            let compared = compare(warp, form, from);
            let with = warp.predicate(with);
            warp.set_predicate(to, if or { compared | with } else { compared & with }, mask);
        }
        Op::PackHalves { to, from: [a, b] } => {
            let (a, b) = (*warp.word(a), *warp.word(b));
            warp.set_word(to, &std::array::from_fn(|i| a[i] & 0xffff | b[i] << 16), mask);
        }
        Op::SplitHalves { to: [a, b], from } => {
            let from = *warp.word(from);
            warp.set_word(a, &from.map(|x| x & 0xffff), mask);
            warp.set_word(b, &from.map(|x| x >> 16), mask);
        }
        Op::PackWords { to, from: [a, b] } => {
            let (a, b) = (*warp.word(a), *warp.word(b));
            warp.set_double(to, &std::array::from_fn(|i| u64::from(a[i]) | u64::from(b[i]) << 32), mask);
        }
        Op::SplitWords { to: [a, b], from } => {
            let from = *warp.double(from);
            warp.set_word(a, &from.map(|x| x as u32), mask);
            warp.set_word(b, &from.map(|x| (x >> 32) as u32), mask);
        }
        Op::ActiveMask { to } => warp.set_word(to, &[mask; 32], mask),
        _ => memory::run(cx, warp, &inst.op, mask)?,
    }
    Ok(Next::On)
}

fn compute(warp: &mut Warp, form: Form, to: u16, [a, b, c, d]: [u16; 4], mask: u32) {
    let value = match form {
        Form::W1(f) => f(warp.word(a)),
        Form::W2(f) => f(warp.word(a), warp.word(b)),
        Form::W3(f) => f(warp.word(a), warp.word(b), warp.word(c)),
        Form::W4(f) => f(warp.word(a), warp.word(b), warp.word(c), warp.word(d)),
        Form::WD(f) => f(warp.double(a)),
        Form::WWWP(f) => f(warp.word(a), warp.word(b), warp.predicate(c)),
        Form::P1(f) => return warp.set_predicate(to, f(warp.predicate(a)), mask),
        Form::P2(f) => return warp.set_predicate(to, f(warp.predicate(a), warp.predicate(b)), mask),
        Form::PWW(_) | Form::PDD(_) => {
            let value = compare(warp, form, [a, b]);
            return warp.set_predicate(to, value, mask);
        }
        _ => return compute_double(warp, form, to, [a, b, c], mask),
    };
    warp.set_word(to, &value, mask);
}

fn compute_double(warp: &mut Warp, form: Form, to: u16, [a, b, c]: [u16; 3], mask: u32) {
    let value = match form {
        Form::D1(f) => f(warp.double(a)),
        Form::D2(f) => f(warp.double(a), warp.double(b)),
        Form::D3(f) => f(warp.double(a), warp.double(b), warp.double(c)),
        Form::DW(f) => f(warp.word(a)),
        Form::DWW(f) => f(warp.word(a), warp.word(b)),
        Form::DWWD(f) => f(warp.word(a), warp.word(b), warp.double(c)),
        Form::DDW(f) => f(warp.double(a), warp.word(b)),
        Form::DDDP(f) => f(warp.double(a), warp.double(b), warp.predicate(c)),
        _ => return,
    };
    warp.set_double(to, &value, mask);
}

fn compare(warp: &Warp, form: Form, [a, b]: [u16; 2]) -> u32 {
    match form {
        Form::PWW(f) => f(warp.word(a), warp.word(b)),
        Form::PDD(f) => f(warp.double(a), warp.double(b)),
        _ => 0,
    }
}
