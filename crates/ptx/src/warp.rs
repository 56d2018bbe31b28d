//! A warp: registers, and which of its lanes are where.
//!
//! Lanes that stand at one instruction run together; after a branch that splits them, the group that is furthest behind
//! runs first and meets the others where they wait. An instruction for all lanes of a mask holds a group until the rest
//! of the mask has come; if nobody can move any more, that is a fault and not a hang.

use crate::decode::Special;
use crate::decode::op::{Address, R};
use crate::forms::{D, W};
use crate::launch::Dim;
use crate::module::Kernel;
use crate::shared::User;

/// Lanes at one instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    pub(crate) at: u32,
    pub(crate) lanes: u32,
    /// Held at `at` until others come.
    pub(crate) held: bool,
}

/// A copy that has begun: where to, and what.
pub(crate) struct Copy {
    pub(crate) lane: u8,
    pub(crate) to: u64,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct Warp {
    pub(crate) number: u8,
    pub(crate) words: Vec<W>,
    pub(crate) doubles: Vec<D>,
    pub(crate) predicates: Vec<u32>,
    pub(crate) groups: Vec<Group>,
    /// Lanes of which the block has threads.
    pub(crate) all: u32,
    /// Of a block barrier it waits at.
    pub(crate) barrier: Option<(u32, u32)>,
    pub(crate) block_epoch: u32,
    pub(crate) warp_epoch: u32,
    /// Copies since the last commit, and groups of copies under way by lane.
    pub(crate) copies: Vec<Copy>,
    pub(crate) committed: Vec<(u32, Vec<Copy>)>,
}

impl Warp {
    /// The warp of threads `32 number ..`, before its first instruction. Registers hold NaNs, but for constants.
    pub(crate) fn new(kernel: &Kernel, number: u8, block: [u32; 3], (grid, threads): (Dim, Dim)) -> Self {
        let names = &kernel.names;
        // An operand that isn't there names register 0, so there is always one.
        let mut words = vec![[u32::MAX; 32]; names.words.max(1)];
        let mut doubles = vec![[u64::MAX; 32]; names.doubles.max(1)];
        for (value, r) in &names.word_values {
            words[usize::from(*r)] = [*value; 32];
        }
        for (value, r) in &names.double_values {
            doubles[usize::from(*r)] = [*value; 32];
        }
        for (special, r) in &names.specials {
            words[usize::from(*r)] = std::array::from_fn(|lane| {
                let thread = u32::from(number) * 32 + lane as u32;
                match *special {
                    Special::Lane => lane as u32,
                    Special::Block(axis) => block[axis],
                    Special::Blocks(axis) => grid.0[axis],
                    Special::Threads(axis) => threads.0[axis],
                    Special::Thread(0) => thread % threads.0[0],
                    Special::Thread(1) => thread / threads.0[0] % threads.0[1],
                    Special::Thread(_) => thread / threads.0[0] / threads.0[1],
                }
            });
        }
        let here = threads.count().saturating_sub(u64::from(number) * 32).min(32) as u32;
        let all = u32::MAX >> (32 - here);
        let mut predicates = vec![0; names.predicates];
        for (value, r) in &names.predicate_values {
            predicates[usize::from(*r)] = if *value { u32::MAX } else { 0 };
        }
        let groups = vec![Group { at: 0, lanes: all, held: false }];
        let (copies, committed) = (Vec::new(), Vec::new());
        Self {
            number,
            words,
            doubles,
            predicates,
            groups,
            all,
            barrier: None,
            block_epoch: 1,
            warp_epoch: 1,
            copies,
            committed,
        }
    }

    /// Lanes that have not ended.
    pub(crate) fn alive(&self) -> u32 {
        self.groups.iter().fold(0, |lanes, g| lanes | g.lanes)
    }

    /// The group to run, its index: of those not held the one furthest behind. Groups that stand together are joined.
    pub(crate) fn choose(&mut self) -> Option<usize> {
        if let [only] = self.groups[..] {
            return (!only.held).then_some(0);
        }
        self.groups.sort_unstable_by_key(|g| g.at);
        self.groups.dedup_by(|later, kept| {
            let same = later.at == kept.at;
            if same {
                kept.lanes |= later.lanes;
                kept.held = kept.held && later.held;
            }
            same
        });
        self.groups.iter().position(|g| !g.held)
    }

    pub(crate) fn word(&self, r: R) -> &W {
        &self.words[usize::from(r)]
    }

    pub(crate) fn double(&self, r: R) -> &D {
        &self.doubles[usize::from(r)]
    }

    pub(crate) fn predicate(&self, r: R) -> u32 {
        self.predicates[usize::from(r)]
    }

    /// Writes the lanes of `mask`.
    pub(crate) fn set_word(&mut self, r: R, value: &W, mask: u32) {
        let to = &mut self.words[usize::from(r)];
        if mask == u32::MAX {
            *to = *value;
        } else {
            (0..32).filter(|lane| mask >> lane & 1 == 1).for_each(|lane| to[lane] = value[lane]);
        }
    }

    /// Writes the lanes of `mask`.
    pub(crate) fn set_double(&mut self, r: R, value: &D, mask: u32) {
        let to = &mut self.doubles[usize::from(r)];
        if mask == u32::MAX {
            *to = *value;
        } else {
            (0..32).filter(|lane| mask >> lane & 1 == 1).for_each(|lane| to[lane] = value[lane]);
        }
    }

    /// Writes the lanes of `mask`.
    pub(crate) fn set_predicate(&mut self, r: R, value: u32, mask: u32) {
        let to = &mut self.predicates[usize::from(r)];
        *to = *to & !mask | value & mask;
    }

    pub(crate) fn address(&self, at: Address, lane: usize) -> u64 {
        let base = if at.wide { self.double(at.base)[lane] } else { u64::from(self.word(at.base)[lane]) };
        base.wrapping_add_signed(at.offset)
    }

    pub(crate) fn user(&self, lane: usize) -> User {
        let (block_epoch, warp_epoch) = (self.block_epoch, self.warp_epoch);
        User { block_epoch, warp_epoch, warp: self.number, lane: lane as u8 }
    }
}

/// Lanes of a mask, from the first.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 == 1)
}
