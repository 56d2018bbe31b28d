//! Names of a kernel's body: registers, immediates (each gets a register), special registers, shared variables.

use std::collections::HashMap;

use super::Wrong;
use super::op::R;

/// Registers that the hardware fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Thread(usize),
    Threads(usize),
    Block(usize),
    Blocks(usize),
    Lane,
}

impl Special {
    fn named(name: &str) -> Option<Self> {
        if name == "%laneid" {
            return Some(Self::Lane);
        }
        let (what, axis) = name.split_once('.')?;
        let axis = ["x", "y", "z"].iter().position(|a| *a == axis)?;
        Some(match what {
            "%tid" => Self::Thread(axis),
            "%ntid" => Self::Threads(axis),
            "%ctaid" => Self::Block(axis),
            "%nctaid" => Self::Blocks(axis),
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Copy)]
enum Register {
    Predicate(R),
    Word(R),
    Double(R),
}

/// Everything with a name, and how many registers there are of each kind.
#[derive(Debug, Default)]
pub(crate) struct Names {
    registers: HashMap<String, Register>,
    pub(crate) predicates: usize,
    pub(crate) words: usize,
    pub(crate) doubles: usize,
    /// Immediates and the registers that hold them.
    pub(crate) predicate_values: HashMap<bool, R>,
    pub(crate) word_values: HashMap<u32, R>,
    pub(crate) double_values: HashMap<u64, R>,
    pub(crate) specials: HashMap<Special, R>,
    symbols: HashMap<String, u64>,
    /// Bytes of shared variables.
    pub(crate) shared_bytes: usize,
    /// The module's array of unknown size, which begins after them.
    pub(crate) dynamic_shared: Option<String>,
}

fn next(count: &mut usize) -> Result<R, Wrong> {
    let register = R::try_from(*count).map_err(|_| "too many registers")?;
    *count += 1;
    Ok(register)
}

impl Names {
    /// `.reg .b32 %r<10>` or `.reg .pred p, q`; without its `.reg`.
    pub(super) fn declare(&mut self, rest: &str) -> Result<(), Wrong> {
        let (kind, names) = rest.trim().split_once(char::is_whitespace).ok_or("a register has a type and a name")?;
        for name in names.split(',') {
            match name.trim().strip_suffix('>').and_then(|n| n.split_once('<')) {
                Some((prefix, count)) => {
                    let count: u32 = count.parse().map_err(|_| "not a number of registers")?;
                    for i in 0..count.min(u32::from(R::MAX)) {
                        self.add(kind, format!("{prefix}{i}"))?;
                    }
                }
                None => self.add(kind, name.trim().to_owned())?,
            }
        }
        Ok(())
    }

    fn add(&mut self, kind: &str, name: String) -> Result<(), Wrong> {
        let register = match kind {
            ".pred" => Register::Predicate(next(&mut self.predicates)?),
            ".b16" | ".u16" | ".s16" | ".f16" | ".b32" | ".u32" | ".s32" | ".f32" => {
                Register::Word(next(&mut self.words)?)
            }
            ".b64" | ".u64" | ".s64" | ".f64" => Register::Double(next(&mut self.doubles)?),
            _ => return Err("unknown type of register".into()),
        };
        self.registers.insert(name, register);
        Ok(())
    }

    /// `.align 16 .b8 name[1024]`, without its `.shared`.
    pub(super) fn shared(&mut self, rest: &str) -> Result<(), Wrong> {
        let words: Vec<&str> = rest.split_whitespace().collect();
        let (align, kind, name) = match words[..] {
            [".align", align, kind, name] => (align.parse().map_err(|_| "not an alignment")?, kind, name),
            [kind, name] => (1, kind, name),
            _ => return Err("unknown form of a shared variable".into()),
        };
        let bytes = width(kind).ok_or("unknown type of a shared variable")?;
        let (name, count) = match name.strip_suffix(']').and_then(|n| n.split_once('[')) {
            Some((name, count)) => (name, count.parse::<usize>().map_err(|_| "not a size")?),
            None => (name, 1),
        };
        let at = self.shared_bytes.next_multiple_of(usize::max(align, bytes));
        let size = bytes.checked_mul(count).filter(|s| *s <= 1 << 20).ok_or("more shared memory than there is")?;
        self.shared_bytes = at + size;
        self.symbols.insert(name.to_owned(), at as u64);
        Ok(())
    }

    pub(super) fn predicate(&self, name: &str) -> Result<R, Wrong> {
        match self.registers.get(name) {
            Some(Register::Predicate(r)) => Ok(*r),
            _ => Err(format!("{name} is no predicate")),
        }
    }

    /// A predicate, or 0 or another number for false and true.
    pub(super) fn predicate_operand(&mut self, text: &str) -> Result<R, Wrong> {
        let Some(value) = immediate(text) else { return self.predicate(text) };
        if let Some(r) = self.predicate_values.get(&(value != 0)) {
            return Ok(*r);
        }
        let r = next(&mut self.predicates)?;
        self.predicate_values.insert(value != 0, r);
        Ok(r)
    }

    pub(super) fn word_register(&self, name: &str) -> Result<R, Wrong> {
        match self.registers.get(name) {
            Some(Register::Word(r)) => Ok(*r),
            _ => Err(format!("{name} is no register of 16 or 32 bits")),
        }
    }

    pub(super) fn double_register(&self, name: &str) -> Result<R, Wrong> {
        match self.registers.get(name) {
            Some(Register::Double(r)) => Ok(*r),
            _ => Err(format!("{name} is no register of 64 bits")),
        }
    }

    pub(super) fn is_double(&self, name: &str) -> bool {
        matches!(self.registers.get(name), Some(Register::Double(_)))
    }

    /// A register, an immediate, a special register or the address of a variable, in 32 bits.
    pub(super) fn word(&mut self, text: &str) -> Result<R, Wrong> {
        if let Some(special) = Special::named(text) {
            if let Some(r) = self.specials.get(&special) {
                return Ok(*r);
            }
            let r = next(&mut self.words)?;
            self.specials.insert(special, r);
            return Ok(r);
        }
        if text.starts_with('%') {
            return self.word_register(text);
        }
        let value = match self.symbol(text) {
            Some(address) => address as u32,
            None => immediate(text).filter(|v| fits_word(*v)).ok_or_else(|| format!("{text} is no operand"))? as u32,
        };
        if let Some(r) = self.word_values.get(&value) {
            return Ok(*r);
        }
        let r = next(&mut self.words)?;
        self.word_values.insert(value, r);
        Ok(r)
    }

    /// The same in 64 bits.
    pub(super) fn double(&mut self, text: &str) -> Result<R, Wrong> {
        if text.starts_with('%') {
            return self.double_register(text);
        }
        let value = self.symbol(text).or_else(|| immediate(text)).ok_or_else(|| format!("{text} is no operand"))?;
        if let Some(r) = self.double_values.get(&value) {
            return Ok(*r);
        }
        let r = next(&mut self.doubles)?;
        self.double_values.insert(value, r);
        Ok(r)
    }

    /// Where a shared variable begins.
    pub(super) fn symbol(&self, name: &str) -> Option<u64> {
        if self.dynamic_shared.as_deref() == Some(name) {
            return Some(self.dynamic_start() as u64);
        }
        self.symbols.get(name).copied()
    }

    pub(crate) fn dynamic_start(&self) -> usize {
        self.shared_bytes.next_multiple_of(16)
    }
}

/// Bytes of a type.
pub(crate) fn width(kind: &str) -> Option<usize> {
    Some(match kind {
        ".b8" | ".u8" | ".s8" => 1,
        ".b16" | ".u16" | ".s16" | ".f16" => 2,
        ".b32" | ".u32" | ".s32" | ".f32" => 4,
        ".b64" | ".u64" | ".s64" | ".f64" => 8,
        _ => return None,
    })
}

/// Integers in tens and sixteens, and floats by their bits: `0f3F800000`, `0d...`.
fn immediate(text: &str) -> Option<u64> {
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    match text.get(..2) {
        Some("0f" | "0F" | "0d" | "0D" | "0x" | "0X") => hex(&text[2..]),
        _ => text.parse::<i64>().map(|v| v as u64).ok().or_else(|| text.parse().ok()),
    }
}

/// Whether an integer is one of 32 bits, signed or not.
fn fits_word(value: u64) -> bool {
    u32::try_from(value).is_ok() || i32::try_from(value as i64).is_ok()
}
