//! A block's shared memory: NaN until written, with a record of each pair of bytes' last writer and reader.
//!
//! Two threads of different warps need a block barrier between their uses of a place, two of one warp a warp barrier (or a
//! block's), if one of them writes. Threads that read together are remembered as "several".

use crate::Cause;

/// The uses of one pair of bytes. Packed so that a block's record stays small: epochs of block and warp barriers, then the
/// warp and lane, [`MANY`] for several.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Use {
    block_epoch: u32,
    warp_epoch: u32,
    warp: u8,
    lane: u8,
}

const MANY: u8 = u8::MAX;

/// A thread, and how many barriers it has passed (counted from 1; 0 means no use yet).
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) block_epoch: u32,
    pub(crate) warp_epoch: u32,
    pub(crate) warp: u8,
    pub(crate) lane: u8,
}

impl Use {
    fn by(user: User) -> Self {
        Self { block_epoch: user.block_epoch, warp_epoch: user.warp_epoch, warp: user.warp, lane: user.lane }
    }

    /// Whether nothing orders this use before what `user` does now.
    fn conflicts(self, user: User) -> bool {
        if self.block_epoch != user.block_epoch {
            return false;
        }
        self.warp != user.warp || (self.lane != user.lane && self.warp_epoch == user.warp_epoch)
    }

    /// This use and a later one that reads as well.
    fn joined(self, user: User) -> Self {
        if self.block_epoch != user.block_epoch {
            return Self::by(user);
        }
        if self.warp != user.warp {
            return Self { warp: MANY, ..Self::by(user) };
        }
        if self.warp_epoch != user.warp_epoch || self.lane == user.lane {
            return Self::by(user);
        }
        Self { lane: MANY, ..self }
    }

    fn describe(self) -> String {
        match (self.warp, self.lane) {
            (MANY, _) => "threads of several warps".to_owned(),
            (warp, MANY) => format!("several threads of warp {warp}"),
            (warp, lane) => format!("thread {}", u32::from(warp) * 32 + u32::from(lane)),
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    write: Use,
    read: Use,
    in_flight: bool,
}

/// Shared memory of one block.
#[derive(Debug)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    cells: Vec<Cell>,
}

impl Shared {
    pub(crate) fn new(bytes: usize) -> Self {
        // All ones are a NaN in every float format.
        Self { bytes: vec![0xff; bytes], cells: vec![Cell::default(); bytes.div_ceil(2)] }
    }

    fn range(&self, address: u64, bytes: usize) -> Result<usize, Cause> {
        let size = self.bytes.len();
        if address > size as u64 || bytes as u64 > size as u64 - address {
            return Err(Cause::SharedBounds { address, bytes: bytes as u64, size });
        }
        Ok(address as usize)
    }

    pub(crate) fn load(&mut self, user: User, address: u64, bytes: usize) -> Result<&[u8], Cause> {
        let at = self.range(address, bytes)?;
        for (i, cell) in self.cells[at / 2..(at + bytes).div_ceil(2)].iter_mut().enumerate() {
            let place = (at & !1) as u64 + 2 * i as u64;
            if cell.in_flight {
                return Err(Cause::InFlight { address: place });
            }
            if cell.write.conflicts(user) {
                return Err(Cause::SharedRace { address: place, other: cell.write.describe() });
            }
            cell.read = cell.read.joined(user);
        }
        Ok(&self.bytes[at..at + bytes])
    }

    pub(crate) fn store(&mut self, user: User, address: u64, value: &[u8]) -> Result<(), Cause> {
        let at = self.claim(user, address, value.len())?;
        self.bytes[at..at + value.len()].copy_from_slice(value);
        Ok(())
    }

    fn claim(&mut self, user: User, address: u64, bytes: usize) -> Result<usize, Cause> {
        let at = self.range(address, bytes)?;
        for (i, cell) in self.cells[at / 2..(at + bytes).div_ceil(2)].iter_mut().enumerate() {
            let place = (at & !1) as u64 + 2 * i as u64;
            if cell.in_flight {
                return Err(Cause::InFlight { address: place });
            }
            for other in [cell.write, cell.read] {
                if other.conflicts(user) {
                    return Err(Cause::SharedRace { address: place, other: other.describe() });
                }
            }
            cell.write = Use::by(user);
        }
        Ok(at)
    }

    /// An asynchronous copy to `address` begins: its bytes are nobody's until it lands.
    pub(crate) fn reserve(&mut self, user: User, address: u64, bytes: usize) -> Result<(), Cause> {
        let at = self.claim(user, address, bytes)?;
        self.bytes[at..at + bytes].fill(0xff);
        self.cells[at / 2..(at + bytes).div_ceil(2)].iter_mut().for_each(|c| c.in_flight = true);
        Ok(())
    }

    /// The copy lands: as if `user` had just written.
    pub(crate) fn land(&mut self, user: User, address: u64, value: &[u8]) {
        let at = address as usize;
        self.bytes[at..at + value.len()].copy_from_slice(value);
        for cell in &mut self.cells[at / 2..(at + value.len()).div_ceil(2)] {
            (cell.in_flight, cell.write) = (false, Use::by(user));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(thread: u8, block_epoch: u32, warp_epoch: u32) -> User {
        User { block_epoch, warp_epoch, warp: thread / 32, lane: thread % 32 }
    }

    #[test]
    fn uses_need_the_right_barrier_between_them() {
        let mut s = Shared::new(16);
        s.store(user(0, 1, 1), 0, &[1, 2]).unwrap();
        assert_eq!(s.load(user(0, 1, 1), 0, 2), Ok(&[1u8, 2][..]));
        assert!(matches!(s.load(user(1, 1, 1), 0, 2), Err(Cause::SharedRace { .. })), "a lane, no warp barrier");
        assert!(s.load(user(1, 1, 2), 0, 2).is_ok(), "a lane after a warp barrier");
        assert!(s.load(user(40, 1, 2), 0, 2).is_err(), "another warp, no block barrier");
        assert!(s.load(user(40, 2, 1), 0, 2).is_ok(), "another warp after a block barrier");
        assert!(s.store(user(0, 2, 3), 0, &[0, 0]).is_err(), "a write beside another's read");
        s.load(user(0, 2, 3), 0, 2).unwrap();
        assert!(s.store(user(0, 2, 3), 0, &[0, 0]).is_err(), "the other reader isn't forgotten");
        assert!(s.store(user(0, 3, 3), 0, &[0, 0]).is_ok());
        assert!(s.store(user(50, 3, 3), 2, &[0, 0]).is_ok(), "its neighbour");
        assert!(matches!(s.load(user(0, 4, 4), 15, 2), Err(Cause::SharedBounds { .. })));
    }

    #[test]
    fn an_asynchronous_copy_is_invisible_until_it_lands() {
        let mut s = Shared::new(16);
        s.reserve(user(3, 1, 1), 0, 16).unwrap();
        assert!(matches!(s.load(user(3, 1, 1), 4, 4), Err(Cause::InFlight { address: 4 })));
        s.land(user(3, 1, 1), 0, &[7; 16]);
        assert_eq!(s.load(user(3, 1, 1), 4, 2), Ok(&[7u8, 7][..]));
        assert!(s.load(user(4, 1, 1), 4, 4).is_err(), "seen by others only after a barrier");
    }
}
