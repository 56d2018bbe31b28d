//! Statements of a kernel's body to instructions.

mod control;
mod memory;
mod names;
pub(crate) mod op;

use std::collections::HashMap;

pub(crate) use names::{Names, Special, width};
use op::{Guard, Inst, Op, R};

use crate::forms::{Form, form};
use crate::source::Statement;
use crate::{Fault, Param};

/// What is wrong with a statement; the caller adds which.
type Wrong = String;

/// A body in the making.
pub(crate) struct Decoder<'a> {
    pub(crate) names: Names,
    pub(crate) code: Vec<Inst>,
    pub(crate) texts: Vec<(u32, String)>,
    params: &'a [Param],
    labels: HashMap<String, u32>,
    /// Branches whose target comes later: instruction, label.
    open: Vec<(usize, String)>,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(params: &'a [Param]) -> Self {
        let (names, code, texts) = (Names::default(), Vec::new(), Vec::new());
        Self { names, code, texts, params, labels: HashMap::new(), open: Vec::new() }
    }

    pub(crate) fn label(&mut self, statement: &Statement) -> Result<(), Fault> {
        match self.labels.insert(statement.text.clone(), self.code.len() as u32) {
            None => Ok(()),
            Some(_) => Err(wrong(statement, "a second label of this name")),
        }
    }

    /// A directive or an instruction.
    pub(crate) fn plain(&mut self, statement: &Statement) -> Result<(), Fault> {
        self.statement(&statement.text).map_err(|what| wrong(statement, &what))?;
        if self.code.len() > self.texts.len() {
            self.texts.push((statement.line, statement.text.clone()));
        }
        Ok(())
    }

    /// Ends the body: branches get their targets.
    pub(crate) fn finish(&mut self) -> Result<(), Fault> {
        for (at, label) in std::mem::take(&mut self.open) {
            let Some(&target) = self.labels.get(&label) else {
                let (line, text) = self.texts[at].clone();
                return Err(Fault::Parse { line, text, what: format!("no label {label}") });
            };
            self.code[at].op = Op::Branch { target };
        }
        Ok(())
    }

    fn statement(&mut self, text: &str) -> Result<(), Wrong> {
        if text.starts_with('.') {
            return self.directive(text);
        }
        let (guard, text) = self.guard(text)?;
        let (opcode, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let operands = operands(rest);
        let op = match self.other(opcode, &operands)? {
            Some(op) => op,
            None => self.compute(opcode, &operands)?,
        };
        self.code.push(Inst { op, guard });
        Ok(())
    }

    fn directive(&mut self, text: &str) -> Result<(), Wrong> {
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match name {
            ".reg" => self.names.declare(rest),
            ".shared" if self.code.is_empty() => self.names.shared(rest),
            // Hints for the assembler.
            ".pragma" | ".loc" | ".file" => Ok(()),
            _ => Err("unknown directive".into()),
        }
    }

    fn guard<'t>(&self, text: &'t str) -> Result<(Option<Guard>, &'t str), Wrong> {
        let Some(rest) = text.strip_prefix('@') else { return Ok((None, text)) };
        let (name, rest) = rest.split_once(char::is_whitespace).ok_or("a guard alone")?;
        let (negated, name) = name.strip_prefix('!').map_or((false, name), |name| (true, name));
        Ok((Some((self.names.predicate(name)?, negated)), rest.trim_start()))
    }

    /// Everything that isn't a function of registers.
    fn other(&mut self, opcode: &str, operands: &[&str]) -> Result<Option<Op>, Wrong> {
        match opcode.split('.').next().unwrap_or_default() {
            "ld" | "ldu" | "st" | "ldmatrix" | "cp" => self.memory(opcode, operands).map(Some),
            "bra" => {
                let [label] = *operands else { return Err("a branch has one target".into()) };
                if !matches!(opcode, "bra" | "bra.uni") {
                    return Err("unknown form".into());
                }
                self.open.push((self.code.len(), label.to_owned()));
                Ok(Some(Op::Exit))
            }
            "ret" | "exit" | "bar" | "barrier" | "shfl" | "vote" | "match" | "activemask" | "mma" => {
                self.control(opcode, operands).map(Some)
            }
            "mov" if operands.iter().any(|o| o.starts_with('{')) => self.halves(opcode, operands).map(Some),
            "setp" if operands.len() == 4 => self.joined(opcode, operands).map(Some),
            _ => Ok(None),
        }
    }

    fn compute(&mut self, opcode: &str, operands: &[&str]) -> Result<Op, Wrong> {
        use Form::*;
        let form = form(opcode).ok_or("unknown form")?;
        let kinds = match form {
            W1(_) => "ww",
            W2(_) => "www",
            W3(_) => "wwww",
            W4(_) => "wwwww",
            D1(_) => "dd",
            D2(_) => "ddd",
            D3(_) => "dddd",
            WD(_) => "wd",
            DW(_) => "dw",
            DWW(_) => "dww",
            DWWD(_) => "dwwd",
            DDW(_) => "ddw",
            PWW(_) => "pww",
            PDD(_) => "pdd",
            P1(_) => "pp",
            P2(_) => "ppp",
            WWWP(_) => "wwwp",
            DDDP(_) => "dddp",
        };
        let (to, from) = self.registers(kinds, operands)?;
        Ok(Op::Compute { form, to, from })
    }

    /// The result and up to four operands, by a letter each for the register file.
    fn registers(&mut self, kinds: &str, operands: &[&str]) -> Result<(R, [R; 4]), Wrong> {
        if kinds.len() != operands.len() {
            return Err(format!("{} operands expected", kinds.len()));
        }
        let mut from = [0; 4];
        for ((slot, kind), text) in from.iter_mut().zip(kinds[1..].bytes()).zip(&operands[1..]) {
            *slot = match kind {
                b'w' => self.names.word(text)?,
                b'd' => self.names.double(text)?,
                _ => self.names.predicate_operand(text)?,
            };
        }
        let to = match kinds.as_bytes()[0] {
            b'w' => self.names.word_register(operands[0])?,
            b'd' => self.names.double_register(operands[0])?,
            _ => self.names.predicate(operands[0])?,
        };
        Ok((to, from))
    }

    /// `setp.lt.and.s32 p, a, b, q`.
    fn joined(&mut self, opcode: &str, operands: &[&str]) -> Result<Op, Wrong> {
        let parts: Vec<&str> = opcode.split('.').collect();
        let [setp, comparison, join, kind] = parts[..] else { return Err("unknown form".into()) };
        let or = match join {
            "and" => false,
            "or" => true,
            _ => return Err("unknown form".into()),
        };
        let form = form(&format!("{setp}.{comparison}.{kind}")).ok_or("unknown form")?;
        let kinds = match form {
            Form::PWW(_) => "pwwp",
            Form::PDD(_) => "pddp",
            _ => return Err("unknown form".into()),
        };
        let (to, [a, b, with, _]) = self.registers(kinds, operands)?;
        Ok(Op::Joined { form, to, from: [a, b], with, or })
    }
}

fn wrong(statement: &Statement, what: &str) -> Fault {
    Fault::Parse { line: statement.line, text: statement.text.clone(), what: what.to_owned() }
}

/// Operands between commas, of which those in braces and brackets don't count.
fn operands(text: &str) -> Vec<&str> {
    let (mut found, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (i, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                found.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    let last = text[start..].trim();
    if !last.is_empty() || !found.is_empty() {
        found.push(last);
    }
    found
}
