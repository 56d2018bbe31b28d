//! Loads, stores, `ldmatrix` and `cp.async`.

use super::names::width;
use super::op::{Address, Item, Op, R, Space};
use super::{Decoder, Wrong};

const UNKNOWN: &str = "unknown form";

impl Decoder<'_> {
    pub(super) fn memory(&mut self, opcode: &str, operands: &[&str]) -> Result<Op, Wrong> {
        match (opcode.split('.').next(), operands) {
            (Some("ld"), [to, at]) => {
                let (space, kind, count) = access(opcode)?;
                let names = registers(to);
                if names.len() != count {
                    return Err(format!("{count} registers expected"));
                }
                let (item, to) = self.items(kind, &names, true)?;
                Ok(Op::Load { space, item, to, at: self.address(at, space)? })
            }
            (Some("st"), [at, from]) => {
                let (space, kind, count) = access(opcode)?;
                let names = registers(from);
                if names.len() != count || space == Space::Param {
                    return Err(UNKNOWN.into());
                }
                let (item, from) = self.items(kind, &names, false)?;
                Ok(Op::Store { space, item, from, at: self.address(at, space)? })
            }
            (Some("ldmatrix"), [to, at]) => self.load_matrix(opcode, to, at),
            (Some("cp"), _) => self.asynchronous(opcode, operands),
            _ => Err(UNKNOWN.into()),
        }
    }

    fn items(&mut self, kind: &str, names: &[&str], target: bool) -> Result<(Item, [R; 4]), Wrong> {
        let bytes = width(&format!(".{kind}")).ok_or(UNKNOWN)?;
        let wide = bytes == 8 || names.iter().any(|n| self.names.is_double(n));
        let mut to = [0; 4];
        for (slot, name) in to.iter_mut().zip(names) {
            *slot = match (wide, target) {
                (true, true) => self.names.double_register(name)?,
                (true, false) => self.names.double(name)?,
                (false, true) => self.names.word_register(name)?,
                (false, false) => self.names.word(name)?,
            };
        }
        Ok((Item { bytes: bytes as u8, signed: kind.starts_with('s'), wide, count: names.len() as u8 }, to))
    }

    /// `[base+offset]`; of parameters the place in their bytes.
    fn address(&mut self, text: &str, space: Space) -> Result<Address, Wrong> {
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).ok_or("an address has brackets")?;
        let (base, offset) = match inner.split_once('+') {
            Some((base, offset)) => (base.trim(), offset.trim().parse::<i64>().map_err(|_| "not an offset")?),
            None => (inner.trim(), 0),
        };
        if space == Space::Param {
            let param = self.params.iter().find(|p| p.name == base).ok_or("no such parameter")?;
            let offset = param.offset as i64 + offset;
            return Ok(Address { base: self.names.word("0")?, wide: false, offset });
        }
        if self.names.symbol(base).is_some() || (base.starts_with('%') && !self.names.is_double(base)) {
            return Ok(Address { base: self.names.word(base)?, wide: false, offset });
        }
        Ok(Address { base: self.names.double(base)?, wide: true, offset })
    }

    fn load_matrix(&mut self, opcode: &str, to: &str, at: &str) -> Result<Op, Wrong> {
        let rest = opcode.strip_prefix("ldmatrix.sync.aligned.m8n8.").ok_or(UNKNOWN)?;
        let (transposed, count) = match rest {
            "x1.shared.b16" => (false, 1),
            "x2.shared.b16" => (false, 2),
            "x4.shared.b16" => (false, 4),
            "x1.trans.shared.b16" => (true, 1),
            "x2.trans.shared.b16" => (true, 2),
            "x4.trans.shared.b16" => (true, 4),
            _ => return Err(UNKNOWN.into()),
        };
        let to = self.words(to, count)?;
        Ok(Op::LoadMatrix { to, count: count as u8, transposed, at: self.address(at, Space::Shared)? })
    }

    /// `{%r1, %r2}`, all of them results.
    pub(super) fn words(&mut self, list: &str, count: usize) -> Result<[R; 4], Wrong> {
        let names = registers(list);
        if names.len() != count {
            return Err(format!("{count} registers expected"));
        }
        let mut to = [0; 4];
        for (slot, name) in to.iter_mut().zip(names) {
            *slot = self.names.word_register(name)?;
        }
        Ok(to)
    }

    fn asynchronous(&mut self, opcode: &str, operands: &[&str]) -> Result<Op, Wrong> {
        match (opcode, operands) {
            ("cp.async.commit_group", []) => Ok(Op::AsyncCommit),
            ("cp.async.wait_group", [left]) => {
                Ok(Op::AsyncWait { left: left.parse().map_err(|_| "not a number of groups")? })
            }
            ("cp.async.ca.shared.global" | "cp.async.cg.shared.global", [to, from, bytes, given @ ..]) => {
                let bytes = bytes.parse().ok().filter(|b| matches!(b, 4 | 8 | 16)).ok_or("4, 8 or 16 bytes")?;
                let given = match given {
                    [] => None,
                    [given] => Some(self.names.word(given)?),
                    _ => return Err(UNKNOWN.into()),
                };
                let to = self.address(to, Space::Shared)?;
                Ok(Op::AsyncCopy { to, from: self.address(from, Space::Global)?, bytes, given })
            }
            _ => Err(UNKNOWN.into()),
        }
    }
}

/// Space, type and number of elements of a load or store. An address without a space would need one that holds all.
fn access(opcode: &str) -> Result<(Space, &str, usize), Wrong> {
    let mut parts = opcode.split('.').skip(1).peekable();
    if parts.peek() == Some(&"volatile") {
        parts.next();
    }
    let space = match parts.next() {
        Some("global") => Space::Global,
        Some("shared") => Space::Shared,
        Some("param") => Space::Param,
        Some("local") => return Err("local memory: registers don't suffice, or an array is indexed".into()),
        _ => return Err("no space of memory is named".into()),
    };
    if parts.peek() == Some(&"nc") && space == Space::Global {
        parts.next();
    }
    let count = match parts.peek() {
        Some(&"v2") => 2,
        Some(&"v4") => 4,
        _ => 1,
    };
    if count > 1 {
        parts.next();
    }
    match (parts.next(), parts.next()) {
        (Some(kind), None) => Ok((space, kind, count)),
        _ => Err(UNKNOWN.into()),
    }
}

/// `{a, b}` or one name.
pub(super) fn registers(list: &str) -> Vec<&str> {
    let inner = list.trim().trim_start_matches('{').trim_end_matches('}');
    inner.split(',').map(str::trim).collect()
}
