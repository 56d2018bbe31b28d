//! Instructions that several lanes must reach together.

use super::Next;
use crate::Cause;
use crate::decode::op::{Op, R, Shuffle, Vote};
use crate::warp::{Warp, lanes};

type Outcome = Result<Next, (usize, Cause)>;

/// Not all wanted lanes are here: they may still come, unless a guard switched some off or they have ended.
pub(super) fn incomplete(warp: &Warp, here: u32, mask: u32, wanted: u32) -> Outcome {
    let lane = here.trailing_zeros() as usize;
    if mask != here || wanted & !warp.alive() != 0 {
        return Err((lane, Cause::Diverged { active: mask, wanted }));
    }
    Ok(Next::Hold)
}

pub(super) fn barrier(warp: &Warp, here: u32, mask: u32, id: u32) -> Outcome {
    if mask != warp.all {
        return incomplete(warp, here, mask, warp.all);
    }
    Ok(Next::Barrier(id))
}

/// The mask that every lane here names, if all of it is here.
fn together(warp: &Warp, here: u32, mask: u32, wanted: R) -> Result<Option<u32>, (usize, Cause)> {
    let first = here.trailing_zeros() as usize;
    let wanted = warp.word(wanted);
    // Lanes the block doesn't have count as there: a full mask is what everybody writes.
    let named = wanted[first] & warp.all;
    for lane in lanes(mask) {
        if wanted[lane] & warp.all != named || named >> lane & 1 == 0 {
            return Err((lane, Cause::Diverged { active: mask, wanted: wanted[lane] }));
        }
    }
    if mask != here || named != mask {
        return incomplete(warp, here, mask, named).map(|_| None);
    }
    Ok(Some(named))
}

pub(super) fn warp_barrier(warp: &mut Warp, here: u32, mask: u32, wanted: R) -> Outcome {
    if together(warp, here, mask, wanted)?.is_none() {
        return Ok(Next::Hold);
    }
    warp.warp_epoch += 1;
    Ok(Next::On)
}

pub(super) fn exchange(warp: &mut Warp, op: &Op, here: u32, mask: u32) -> Outcome {
    let (Op::Shuffle { mask: wanted, .. } | Op::Vote { mask: wanted, .. } | Op::Match { mask: wanted, .. }) = *op
    else {
        return Ok(Next::On);
    };
    let Some(members) = together(warp, here, mask, wanted)? else { return Ok(Next::Hold) };
    match *op {
        Op::Shuffle { mode, to, valid, from, lane, clamp, .. } => {
            shuffle(warp, (mode, members), (to, valid), [from, lane, clamp])
        }
        Op::Vote { mode, to, from, .. } => vote(warp, mode, to, from, members),
        Op::Match { to, from, .. } => matching(warp, to, from, members),
        _ => Ok(Next::On),
    }
}

fn shuffle(warp: &mut Warp, (mode, members): (Shuffle, u32), (to, valid): (R, Option<R>), from: [R; 3]) -> Outcome {
    let [value, pick, clamp] = from.map(|r| *warp.word(r));
    let (mut result, mut within) = (value, 0u32);
    for lane in lanes(members) {
        let (b, c) = (pick[lane] & 31, clamp[lane]);
        let (limit, segment) = (c & 31, c >> 8 & 31);
        let own = lane as u32;
        let last = own & segment | limit & !segment;
        let (source, fits) = match mode {
            Shuffle::Index => {
                let source = own & segment | b & !segment;
                (source, source <= last)
            }
            Shuffle::Butterfly => (own ^ b, own ^ b <= last),
            Shuffle::Down => (own + b, own + b <= last),
            Shuffle::Up => (own.wrapping_sub(b), own as i32 - b as i32 >= last as i32),
        };
        let source = if fits { source } else { own } & 31;
        if members >> source & 1 == 0 {
            return Err((lane, Cause::Diverged { active: members, wanted: 1 << source }));
        }
        result[lane] = value[source as usize];
        within |= u32::from(fits) << lane;
    }
    warp.set_word(to, &result, members);
    if let Some(valid) = valid {
        warp.set_predicate(valid, within, members);
    }
    Ok(Next::On)
}

fn matching(warp: &mut Warp, to: R, from: R, members: u32) -> Outcome {
    let value = *warp.word(from);
    let alike = |lane: usize| lanes(members).filter(|other| value[*other] == value[lane]).map(|other| 1 << other).sum();
    warp.set_word(to, &std::array::from_fn(alike), members);
    Ok(Next::On)
}

fn vote(warp: &mut Warp, mode: Vote, to: R, from: R, members: u32) -> Outcome {
    let yes = warp.predicate(from) & members;
    match mode {
        Vote::All => warp.set_predicate(to, if yes == members { u32::MAX } else { 0 }, members),
        Vote::Any => warp.set_predicate(to, if yes != 0 { u32::MAX } else { 0 }, members),
        Vote::Ballot => warp.set_word(to, &[yes; 32], members),
    }
    Ok(Next::On)
}
