//! Instructions as they are executed: registers by number, immediates in registers of their own.

use crate::forms::Form;

/// Number of a register in its file.
pub(crate) type R = u16;

/// A predicate, and whether it is negated.
pub(crate) type Guard = (R, bool);

/// One instruction.
#[derive(Clone, Copy)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    /// Executed by lanes whose predicate is true (or false, if negated).
    pub(crate) guard: Option<Guard>,
}

/// An address: a register of 32 or 64 bits and a constant.
#[derive(Clone, Copy)]
pub(crate) struct Address {
    pub(crate) base: R,
    pub(crate) wide: bool,
    pub(crate) offset: i64,
}

/// Element of a load or store.
#[derive(Clone, Copy)]
pub(crate) struct Item {
    pub(crate) bytes: u8,
    pub(crate) signed: bool,
    /// The registers are of 64 bits.
    pub(crate) wide: bool,
    pub(crate) count: u8,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Space {
    Global,
    Shared,
    Param,
}

#[derive(Clone, Copy)]
pub(crate) enum Shuffle {
    Index,
    Butterfly,
    Up,
    Down,
}

#[derive(Clone, Copy)]
pub(crate) enum Vote {
    All,
    Any,
    Ballot,
}

#[derive(Clone, Copy)]
pub(crate) enum Op {
    Compute {
        form: Form,
        to: R,
        from: [R; 4],
    },
    /// A comparison joined with a predicate.
    Joined {
        form: Form,
        to: R,
        from: [R; 2],
        with: R,
        or: bool,
    },
    Load {
        space: Space,
        item: Item,
        to: [R; 4],
        at: Address,
    },
    Store {
        space: Space,
        item: Item,
        from: [R; 4],
        at: Address,
    },
    PackHalves {
        to: R,
        from: [R; 2],
    },
    SplitHalves {
        to: [R; 2],
        from: R,
    },
    PackWords {
        to: R,
        from: [R; 2],
    },
    SplitWords {
        to: [R; 2],
        from: R,
    },
    Branch {
        target: u32,
    },
    Exit,
    Barrier {
        id: u32,
    },
    WarpBarrier {
        mask: R,
    },
    Shuffle {
        mode: Shuffle,
        to: R,
        valid: Option<R>,
        from: R,
        lane: R,
        clamp: R,
        mask: R,
    },
    Vote {
        mode: Vote,
        to: R,
        from: R,
        mask: R,
    },
    /// Which lanes have the same word.
    Match {
        to: R,
        from: R,
        mask: R,
    },
    ActiveMask {
        to: R,
    },
    /// `ldmatrix` of one, two or four matrices.
    LoadMatrix {
        to: [R; 4],
        count: u8,
        transposed: bool,
        at: Address,
    },
    /// `mma.m16n8k16`, of bf16 or f16.
    Mma {
        to: [R; 4],
        a: [R; 4],
        b: [R; 2],
        c: [R; 4],
        bf16: bool,
    },
    /// `cp.async`; bytes beyond `given` are zeros.
    AsyncCopy {
        to: Address,
        from: Address,
        bytes: u8,
        given: Option<R>,
    },
    AsyncCommit,
    /// Waits until at most so many groups are under way.
    AsyncWait {
        left: u32,
    },
}
