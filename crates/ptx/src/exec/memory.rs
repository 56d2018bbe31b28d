//! Loads, stores and asynchronous copies.

use super::Context;
use crate::Cause;
use crate::decode::op::{Address, Item, Op, Space};
use crate::warp::{Copy, Warp, lanes};

pub(super) fn run(cx: &mut Context<'_>, warp: &mut Warp, op: &Op, mask: u32) -> Result<(), (usize, Cause)> {
    match *op {
        Op::Load { space, item, to, at } => {
            count(cx, warp, space, (at, item), mask);
            for lane in lanes(mask) {
                let address = warp.address(at, lane);
                let values = load(cx, warp, space, item, (address, lane)).map_err(|cause| (lane, cause))?;
                for (r, value) in to.into_iter().zip(values).take(item.count.into()) {
                    if item.wide {
                        warp.doubles[usize::from(r)][lane] = value;
                    } else {
                        warp.words[usize::from(r)][lane] = value as u32;
                    }
                }
            }
        }
        Op::Store { space, item, from, at } => {
            count(cx, warp, space, (at, item), mask);
            for lane in lanes(mask) {
                let address = warp.address(at, lane);
                let value = |r: u16| if item.wide { warp.double(r)[lane] } else { u64::from(warp.word(r)[lane]) };
                let values = from.map(value);
                store(cx, warp, space, item, (address, lane), values).map_err(|cause| (lane, cause))?;
            }
        }
        Op::AsyncCopy { to, from, bytes, given } => {
            let reads = |lane: &usize| given.is_none_or(|r| warp.word(r)[*lane] > 0);
            cx.traffic.global(&mut lanes(mask).filter(reads).map(|l| warp.address(from, l)).collect(), bytes.into());
            cx.traffic.shared(&lanes(mask).map(|lane| warp.address(to, lane)).collect::<Vec<_>>(), bytes.into());
            for lane in lanes(mask) {
                let given = given.map_or(bytes.into(), |r| warp.word(r)[lane] as usize);
                let (to, from) = (warp.address(to, lane), warp.address(from, lane));
                begin_copy(cx, warp, lane, (to, from), (bytes.into(), given)).map_err(|cause| (lane, cause))?;
            }
        }
        Op::AsyncCommit => {
            let (gone, kept): (Vec<_>, Vec<_>) =
                std::mem::take(&mut warp.copies).into_iter().partition(|c| mask >> c.lane & 1 == 1);
            warp.copies = kept;
            warp.committed.push((mask, gone));
        }
        Op::AsyncWait { left } => wait(cx, warp, mask, left as usize),
        _ => {}
    }
    Ok(())
}

/// Counts what an access costs.
fn count(cx: &mut Context<'_>, warp: &Warp, space: Space, (at, item): (Address, Item), mask: u32) {
    let mut addresses: Vec<u64> = lanes(mask).map(|lane| warp.address(at, lane)).collect();
    let bytes = u64::from(item.bytes) * u64::from(item.count);
    match space {
        Space::Global => cx.traffic.global(&mut addresses, bytes),
        Space::Shared => cx.traffic.shared(&addresses, bytes),
        Space::Param => {}
    }
}

fn load(
    cx: &mut Context<'_>,
    warp: &Warp,
    space: Space,
    item: Item,
    (address, lane): (u64, usize),
) -> Result<[u64; 4], Cause> {
    let size = usize::from(item.bytes);
    let total = size * usize::from(item.count);
    aligned(address, total)?;
    let bytes: &[u8] = match space {
        Space::Global => cx.memory.load_bytes(cx.block, address, total)?,
        Space::Shared => cx.shared.load(warp.user(lane), address, total)?,
        Space::Param => {
            let at = parameter(address, total, cx.params)?;
            &cx.params[at..at + total]
        }
    };
    let mut values = [0; 4];
    for (value, part) in values.iter_mut().zip(bytes.chunks_exact(size)) {
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(part);
        let plain = u64::from_le_bytes(wide);
        let unused = 64 - 8 * size as u32;
        *value = if item.signed { ((plain << unused) as i64 >> unused) as u64 } else { plain };
    }
    Ok(values)
}

/// Parameters have addresses from 0 on.
fn parameter(address: u64, bytes: usize, params: &[u8]) -> Result<usize, Cause> {
    match usize::try_from(address).ok().filter(|at| *at <= params.len() && bytes <= params.len() - at) {
        Some(at) => Ok(at),
        None => Err(Cause::OutOfBounds { address, bytes: bytes as u64, near: " (parameters)".into() }),
    }
}

fn store(
    cx: &mut Context<'_>,
    warp: &Warp,
    space: Space,
    item: Item,
    (address, lane): (u64, usize),
    values: [u64; 4],
) -> Result<(), Cause> {
    let size = usize::from(item.bytes);
    let count = usize::from(item.count);
    aligned(address, size * count)?;
    for (i, value) in values.into_iter().enumerate().take(count) {
        let at = address + (i * size) as u64;
        match space {
            Space::Global => cx.memory.store(cx.block, at, size, value)?,
            _ => cx.shared.store(warp.user(lane), at, &value.to_le_bytes()[..size])?,
        }
    }
    Ok(())
}

fn aligned(address: u64, bytes: usize) -> Result<(), Cause> {
    if address.is_multiple_of(bytes as u64) { Ok(()) } else { Err(Cause::Misaligned { address, bytes: bytes as u64 }) }
}

fn begin_copy(
    cx: &mut Context<'_>,
    warp: &mut Warp,
    lane: usize,
    (to, from): (u64, u64),
    (bytes, given): (usize, usize),
) -> Result<(), Cause> {
    aligned(to, bytes)?;
    aligned(from, bytes)?;
    let mut value = vec![0; bytes];
    let given = given.min(bytes);
    if given > 0 {
        value[..given].copy_from_slice(cx.memory.load_bytes(cx.block, from, given)?);
    }
    cx.shared.reserve(warp.user(lane), to, bytes)?;
    warp.copies.push(Copy { lane: lane as u8, to, bytes: value });
    Ok(())
}

/// Copies of all but the last `left` groups of each lane land.
fn wait(cx: &mut Context<'_>, warp: &mut Warp, mask: u32, left: usize) {
    for lane in lanes(mask) {
        let own: Vec<usize> = (0..warp.committed.len()).filter(|g| warp.committed[*g].0 >> lane & 1 == 1).collect();
        for &group in &own[..own.len().saturating_sub(left)] {
            let user = warp.user(lane);
            let (members, copies) = &mut warp.committed[group];
            *members &= !(1 << lane);
            for copy in copies.iter().filter(|c| usize::from(c.lane) == lane) {
                cx.shared.land(user, copy.to, &copy.bytes);
            }
        }
    }
    warp.committed.retain(|(members, _)| *members != 0);
}
