//! Launches: blocks in an order drawn from the seed, their warps by turns of random length.

use crate::exec::{Context, Next, run};
use crate::memory::Accessor;
use crate::module::{Kernel, Module};
use crate::shared::Shared;
use crate::warp::{Group, Warp};
use crate::{Cause, Fault, Memory, Place, Traffic};

/// Sizes of a grid or a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dim(pub [u32; 3]);

impl Dim {
    /// Product of the sizes.
    pub fn count(self) -> u64 {
        self.0.iter().map(|&n| u64::from(n)).product()
    }
}

impl From<u32> for Dim {
    fn from(x: u32) -> Self {
        Self([x, 1, 1])
    }
}

impl From<[u32; 3]> for Dim {
    fn from(sizes: [u32; 3]) -> Self {
        Self(sizes)
    }
}

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Arg {
    /// 32 bits.
    U32(u32),
    /// 32 bits.
    I32(i32),
    /// 32 bits.
    F32(f32),
    /// 64 bits; pointers are these.
    U64(u64),
    /// 64 bits.
    F64(f64),
    /// Structures by value.
    Bytes(Vec<u8>),
}

impl Arg {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::U32(v) => v.to_le_bytes().to_vec(),
            Self::I32(v) => v.to_le_bytes().to_vec(),
            Self::F32(v) => v.to_le_bytes().to_vec(),
            Self::U64(v) => v.to_le_bytes().to_vec(),
            Self::F64(v) => v.to_le_bytes().to_vec(),
            Self::Bytes(v) => v.clone(),
        }
    }
}

/// What is launched.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Name of the kernel.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: Dim,
    /// Threads of a block.
    pub block: Dim,
    /// Shared memory of a block beyond the kernel's own variables.
    pub shared_bytes: usize,
    /// A value for each parameter.
    pub args: &'a [Arg],
}

/// How a launch is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Of the order of blocks and warps.
    pub seed: u64,
    /// Instructions of warps after which a kernel counts as endless.
    pub limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, limit: 1 << 28 }
    }
}

/// What a launch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Instructions, a warp at a time.
    pub instructions: u64,
    /// Barriers that a block passed.
    pub barriers: u64,
    /// What accesses to memory cost.
    pub traffic: Traffic,
}

/// Most shared memory of a block on any GPU of today: 227 KiB.
const MOST_SHARED: usize = 227 << 10;

/// A small generator for the order of things: xorshift.
struct Order(u64);

impl Order {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 16) % n.max(1) as u64) as usize
    }
}

impl Module {
    /// Runs a kernel.
    ///
    /// # Errors
    /// If the launch doesn't suit the kernel, or a thread does something undefined.
    pub fn launch(&self, call: &Call<'_>, memory: &mut Memory, options: &Options) -> Result<Stats, Fault> {
        let Call { kernel, grid, block, shared_bytes, args } = *call;
        let wrong = |what: String| Fault::Launch { kernel: kernel.to_owned(), what };
        let found = self.kernel(kernel).ok_or_else(|| wrong("no such kernel".into()))?;
        let params = parameters(found, args).map_err(wrong)?;
        let shared = found.names.dynamic_start().saturating_add(shared_bytes);
        let most = u64::from(found.max_threads.unwrap_or(1024)).min(1024);
        if block.count() == 0 || block.count() > most || block.0[2] > 64 {
            return Err(wrong(format!("{:?} threads, at most {most}", block.0)));
        }
        if grid.0[0] > i32::MAX as u32 || grid.0[1..].iter().any(|n| *n > 0xffff) || grid.count() == 0 {
            return Err(wrong(format!("a grid of {:?} blocks", grid.0)));
        }
        if grid.count() > u64::from(u32::MAX) || shared > MOST_SHARED {
            return Err(wrong(format!("{} blocks of {shared} bytes of shared memory", grid.count())));
        }
        memory.begin(grid.count() as u32);
        let mut launch = Launch {
            kernel: found,
            params: &params,
            grid,
            block,
            shared,
            limit: options.limit,
            stats: Stats::default(),
        };
        let mut order = Order::new(options.seed);
        let mut blocks: Vec<u32> = (0..grid.count() as u32).collect();
        for i in (1..blocks.len()).rev() {
            blocks.swap(i, order.below(i + 1));
        }
        for index in blocks {
            launch.block(index, memory, &mut order)?;
        }
        Ok(launch.stats)
    }
}

fn parameters(kernel: &Kernel, args: &[Arg]) -> Result<Vec<u8>, String> {
    if args.len() != kernel.params.len() {
        return Err(format!("{} arguments, {} expected", args.len(), kernel.params.len()));
    }
    let mut bytes = vec![0; kernel.param_bytes];
    for (i, (param, arg)) in kernel.params.iter().zip(args).enumerate() {
        let value = arg.bytes();
        if value.len() != param.size {
            return Err(format!("argument {i} has {} bytes, {} expected", value.len(), param.size));
        }
        bytes[param.offset..param.offset + param.size].copy_from_slice(&value);
    }
    Ok(bytes)
}

struct Launch<'a> {
    kernel: &'a Kernel,
    params: &'a [u8],
    grid: Dim,
    block: Dim,
    shared: usize,
    limit: u64,
    stats: Stats,
}

/// Most instructions of a warp's turn.
const TURN: usize = 40;

impl Launch<'_> {
    fn block(&mut self, index: u32, memory: &mut Memory, order: &mut Order) -> Result<(), Fault> {
        let [x, y, _] = self.grid.0;
        let at = [index % x, index / x % y, index / x / y];
        let count = self.block.count().div_ceil(32) as u8;
        let mut warps: Vec<Warp> = (0..count).map(|w| Warp::new(self.kernel, w, at, (self.grid, self.block))).collect();
        let mut shared = Shared::new(self.shared);
        loop {
            let ready: Vec<usize> =
                (0..warps.len()).filter(|w| warps[*w].barrier.is_none() && !warps[*w].groups.is_empty()).collect();
            if ready.is_empty() {
                if warps.iter().all(|w| w.groups.is_empty()) {
                    return Ok(());
                }
                self.release(&mut warps, at)?;
                continue;
            }
            let warp = &mut warps[ready[order.below(ready.len())]];
            let mut cx = Context {
                kernel: self.kernel,
                params: self.params,
                memory,
                shared: &mut shared,
                block: Accessor(index),
                traffic: Traffic::default(),
            };
            for _ in 0..=order.below(TURN) {
                if !self.step(&mut cx, warp, at)? {
                    break;
                }
            }
            self.stats.traffic += cx.traffic;
        }
    }

    /// One instruction; false where the warp can't go on for now.
    fn step(&mut self, cx: &mut Context<'_>, warp: &mut Warp, block: [u32; 3]) -> Result<bool, Fault> {
        let Some(chosen) = warp.choose() else {
            let Some(held) = warp.groups.first().copied() else { return Ok(false) };
            let cause = Cause::Diverged { active: held.lanes, wanted: warp.alive() };
            return Err(self.fault(held.at, (block, warp, held.lanes.trailing_zeros() as usize), cause));
        };
        let Group { at, lanes, .. } = warp.groups[chosen];
        let lane = lanes.trailing_zeros() as usize;
        self.stats.instructions += 1;
        if self.stats.instructions > self.limit {
            return Err(self.fault(at, (block, warp, lane), Cause::TooLong(self.limit)));
        }
        // A body always ends with `ret`; one that doesn't ends as well.
        let Some(inst) = cx.kernel.code.get(at as usize) else {
            warp.groups.remove(chosen);
            return Ok(!warp.groups.is_empty());
        };
        let next = run(cx, warp, inst, lanes).map_err(|(lane, cause)| self.fault(at, (block, warp, lane), cause))?;
        Ok(follow(warp, chosen, next))
    }

    /// All warps wait: they pass the barrier together, or never.
    fn release(&mut self, warps: &mut [Warp], block: [u32; 3]) -> Result<(), Fault> {
        let waits: Vec<_> = warps.iter().map(|w| w.barrier).collect();
        let Some((first, (at, _))) = waits.iter().enumerate().find_map(|(i, w)| Some((i, (*w)?))) else {
            return Ok(());
        };
        if let Some((other, wait)) = waits.iter().enumerate().find(|(_, w)| **w != waits[first]) {
            let others = match wait {
                None => format!("warp {other} has ended"),
                Some((at, _)) => format!("warp {other} waits at PTX line {}", self.kernel.texts[*at as usize].0),
            };
            return Err(self.fault(at, (block, &warps[first], 0), Cause::Barrier { others }));
        }
        self.stats.barriers += 1;
        for warp in warps {
            warp.barrier = None;
            warp.block_epoch += 1;
            warp.warp_epoch += 1;
        }
        Ok(())
    }

    fn fault(&self, at: u32, (block, warp, lane): ([u32; 3], &Warp, usize), cause: Cause) -> Fault {
        let (line, text) = self.kernel.texts.get(at as usize).cloned().unwrap_or_default();
        let thread = u32::from(warp.number) * 32 + lane as u32;
        let place = Place { kernel: self.kernel.name.clone(), line, text, block, thread };
        Fault::Run { place: Box::new(place), cause }
    }
}

/// Moves the group on; false where the warp can't go on for now.
fn follow(warp: &mut Warp, chosen: usize, next: Next) -> bool {
    let group = &mut warp.groups[chosen];
    let here = group.at;
    group.at += 1;
    match next {
        Next::On => {}
        Next::Jump(target, lanes) if lanes == group.lanes => group.at = target,
        Next::Jump(target, lanes) => {
            group.lanes &= !lanes;
            if lanes != 0 {
                warp.groups.push(Group { at: target, lanes, held: false });
            }
        }
        Next::End(lanes) => {
            group.lanes &= !lanes;
            if group.lanes == 0 {
                warp.groups.remove(chosen);
            }
        }
        Next::Hold => (group.at, group.held) = (here, true),
        Next::Barrier(id) => {
            warp.barrier = Some((here, id));
            return false;
        }
    }
    !warp.groups.is_empty()
}
