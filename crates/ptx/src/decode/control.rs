//! Ends, barriers, shuffles, votes, `mma`, and moves between a register and its halves.

use super::memory::registers;
use super::op::{Op, R, Shuffle, Vote};
use super::{Decoder, Wrong};

const UNKNOWN: &str = "unknown form";

impl Decoder<'_> {
    pub(super) fn control(&mut self, opcode: &str, operands: &[&str]) -> Result<Op, Wrong> {
        match (opcode, operands) {
            ("ret" | "exit", []) => Ok(Op::Exit),
            ("bar.sync" | "barrier.sync.aligned", [id]) => {
                Ok(Op::Barrier { id: id.parse().ok().filter(|id| *id < 16).ok_or("not a barrier")? })
            }
            ("bar.warp.sync", [mask]) => Ok(Op::WarpBarrier { mask: self.names.word(mask)? }),
            ("activemask.b32", [to]) => Ok(Op::ActiveMask { to: self.names.word_register(to)? }),
            ("shfl.sync.idx.b32", _) => self.shuffle(Shuffle::Index, operands),
            ("shfl.sync.bfly.b32", _) => self.shuffle(Shuffle::Butterfly, operands),
            ("shfl.sync.up.b32", _) => self.shuffle(Shuffle::Up, operands),
            ("shfl.sync.down.b32", _) => self.shuffle(Shuffle::Down, operands),
            ("vote.sync.all.pred", _) => self.vote(Vote::All, operands),
            ("vote.sync.any.pred", _) => self.vote(Vote::Any, operands),
            ("vote.sync.ballot.b32", _) => self.vote(Vote::Ballot, operands),
            ("match.any.sync.b32", [to, from, mask]) => Ok(Op::Match {
                to: self.names.word_register(to)?,
                from: self.names.word(from)?,
                mask: self.names.word(mask)?,
            }),
            ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", _) => self.mma(operands, true),
            ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", _) => self.mma(operands, false),
            _ => Err(UNKNOWN.into()),
        }
    }

    fn shuffle(&mut self, mode: Shuffle, operands: &[&str]) -> Result<Op, Wrong> {
        let [to, from, lane, clamp, mask] = *operands else { return Err("five operands expected".into()) };
        let (to, valid) = match to.split_once('|') {
            Some((to, valid)) => (to, Some(self.names.predicate(valid)?)),
            None => (to, None),
        };
        Ok(Op::Shuffle {
            mode,
            to: self.names.word_register(to)?,
            valid,
            from: self.names.word(from)?,
            lane: self.names.word(lane)?,
            clamp: self.names.word(clamp)?,
            mask: self.names.word(mask)?,
        })
    }

    fn vote(&mut self, mode: Vote, operands: &[&str]) -> Result<Op, Wrong> {
        let [to, from, mask] = *operands else { return Err("three operands expected".into()) };
        let to = match mode {
            Vote::Ballot => self.names.word_register(to)?,
            Vote::All | Vote::Any => self.names.predicate(to)?,
        };
        Ok(Op::Vote { mode, to, from: self.names.predicate(from)?, mask: self.names.word(mask)? })
    }

    fn mma(&mut self, operands: &[&str], bf16: bool) -> Result<Op, Wrong> {
        let [to, a, b, c] = *operands else { return Err("four operands expected".into()) };
        let (to, a, b2) = (self.words(to, 4)?, self.words(a, 4)?, self.words(b, 2)?);
        let mut sums = [0; 4];
        let names = registers(c);
        if names.len() != 4 {
            return Err("4 registers expected".into());
        }
        for (slot, name) in sums.iter_mut().zip(names) {
            *slot = self.names.word(name)?;
        }
        Ok(Op::Mma { to, a, b: [b2[0], b2[1]], c: sums, bf16 })
    }

    /// `mov.b32 {a, b}, c` and its like.
    pub(super) fn halves(&mut self, opcode: &str, operands: &[&str]) -> Result<Op, Wrong> {
        let [to, from] = *operands else { return Err("two operands expected".into()) };
        let pair = |names: &mut Self, list: &str, target: bool| -> Result<[R; 2], Wrong> {
            let [a, b] = registers(list)[..] else { return Err("two registers expected".to_owned()) };
            let mut one = |name| if target { names.names.word_register(name) } else { names.names.word(name) };
            Ok([one(a)?, one(b)?])
        };
        match (opcode, to.starts_with('{')) {
            ("mov.b32", true) => Ok(Op::SplitHalves { to: pair(self, to, true)?, from: self.names.word(from)? }),
            ("mov.b64", true) => Ok(Op::SplitWords { to: pair(self, to, true)?, from: self.names.double(from)? }),
            ("mov.b32", false) => {
                Ok(Op::PackHalves { to: self.names.word_register(to)?, from: pair(self, from, false)? })
            }
            ("mov.b64", false) => {
                Ok(Op::PackWords { to: self.names.double_register(to)?, from: pair(self, from, false)? })
            }
            _ => Err(UNKNOWN.into()),
        }
    }
}
