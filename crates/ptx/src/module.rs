//! A module: its kernels, with what a launch must know of them.

use crate::Fault;
use crate::decode::op::Inst;
use crate::decode::{Decoder, Names};
use crate::source::{Kind, Statement, statements};

/// A parameter of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// As in the PTX.
    pub name: String,
    /// Bytes.
    pub size: usize,
    /// Its place among all parameters' bytes.
    pub offset: usize,
}

/// A kernel, ready to run.
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: usize,
    pub(crate) code: Vec<Inst>,
    /// Line and text of each instruction.
    pub(crate) texts: Vec<(u32, String)>,
    pub(crate) names: Names,
    /// Most threads of a block, if the kernel was compiled for so many.
    pub(crate) max_threads: Option<u32>,
}

impl Kernel {
    /// As the PTX names it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters, in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Most threads of a block, where `__launch_bounds__` says so.
    pub fn max_threads(&self) -> Option<u32> {
        self.max_threads
    }

    /// Bytes of shared memory that every block has, without what a launch adds.
    pub fn shared_bytes(&self) -> usize {
        self.names.shared_bytes
    }

    /// Lines of the PTX that hold its instructions, with their texts.
    pub fn instructions(&self) -> impl Iterator<Item = (u32, &str)> {
        self.texts.iter().map(|(line, text)| (*line, text.as_str()))
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} instructions)", self.name, self.code.len())
    }
}

/// PTX, parsed.
#[derive(Debug)]
pub struct Module {
    kernels: Vec<Kernel>,
}

impl Module {
    /// Parses a module.
    ///
    /// # Errors
    /// If a statement isn't understood, with its line.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let all = statements(text)?;
        let (mut kernels, mut at, mut shared) = (Vec::new(), 0, Shared::default());
        while let Some(statement) = all.get(at) {
            at += 1;
            match statement.kind {
                Kind::Entry => {
                    let end = body_end(&all, at).ok_or_else(|| wrong(statement, "a body without end"))?;
                    kernels.push(kernel(statement, &all[at..end], &shared)?);
                    at = end;
                }
                Kind::Plain => shared.directive(statement)?,
                _ => return Err(wrong(statement, "unknown statement outside a kernel")),
            }
        }
        Ok(Self { kernels })
    }

    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }

    /// All kernels, in order.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }
}

fn wrong(statement: &Statement, what: &str) -> Fault {
    Fault::Parse { line: statement.line, text: statement.text.clone(), what: what.to_owned() }
}

/// Shared memory that a module declares outside its kernels.
#[derive(Default)]
struct Shared {
    /// The array whose size the launch gives.
    dynamic: Option<String>,
    /// Variables, which only the kernels have that mention them.
    variables: Vec<(String, Statement)>,
}

impl Shared {
    fn directive(&mut self, statement: &Statement) -> Result<(), Fault> {
        let text = &statement.text;
        let name = text.split_whitespace().last().unwrap_or_default();
        if text.starts_with(".extern .shared") {
            let name = name.strip_suffix("[]").ok_or_else(|| wrong(statement, "an external array has no size"))?;
            self.dynamic = Some(name.to_owned());
        } else if text.starts_with(".shared") {
            let name = name.split('[').next().unwrap_or_default();
            self.variables.push((name.to_owned(), statement.clone()));
        } else if ![".version", ".target", ".address_size"].iter().any(|d| text.starts_with(d)) {
            return Err(wrong(statement, "unknown directive"));
        }
        Ok(())
    }
}

/// The statement after the brace that closes the body which opens at `at`.
fn body_end(all: &[Statement], at: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (i, statement) in all.iter().enumerate().skip(at) {
        match statement.kind {
            Kind::Open => depth += 1,
            Kind::Close => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(i + 1);
                }
            }
            _ => {}
        }
    }
    None
}

fn kernel(header: &Statement, body: &[Statement], shared: &Shared) -> Result<Kernel, Fault> {
    let (name, params, tail) = parts(&header.text).ok_or_else(|| wrong(header, "unknown form of a kernel"))?;
    let mut found = Vec::new();
    let mut offset = 0usize;
    for param in params.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (align, size, name) = parameter(param).ok_or_else(|| wrong(header, &format!("parameter `{param}`")))?;
        offset = offset.next_multiple_of(align);
        found.push(Param { name: name.to_owned(), size, offset });
        offset += size;
    }
    let mut decoder = Decoder::new(&found);
    decoder.names.dynamic_shared.clone_from(&shared.dynamic);
    for (name, declaration) in &shared.variables {
        if body.iter().any(|statement| statement.text.contains(name.as_str())) {
            decoder.plain(declaration)?;
        }
    }
    for statement in body {
        match statement.kind {
            Kind::Open | Kind::Close => {}
            Kind::Label => decoder.label(statement)?,
            Kind::Plain => decoder.plain(statement)?,
            Kind::Entry => return Err(wrong(statement, "a kernel inside another")),
        }
    }
    decoder.finish()?;
    let Decoder { names, code, texts, .. } = decoder;
    let max_threads = bounds(tail).map_err(|what| wrong(header, what))?;
    let (name, param_bytes) = (name.to_owned(), offset);
    Ok(Kernel { name, params: found, param_bytes, code, texts, names, max_threads })
}

/// Name, parameters, and what follows them.
fn parts(header: &str) -> Option<(&str, &str, &str)> {
    let (_, rest) = header.split_once(".entry")?;
    let Some((name, rest)) = rest.split_once('(') else { return Some((rest.trim(), "", "")) };
    let (params, tail) = rest.rsplit_once(')')?;
    Some((name.trim(), params, tail.trim()))
}

/// Alignment, size and name.
fn parameter(text: &str) -> Option<(usize, usize, &str)> {
    use crate::decode::width;
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        [".param", kind, name] => width(kind).map(|w| (w, w, name)),
        [".param", ".align", align, ".b8", name] => {
            let (name, size) = name.strip_suffix(']')?.split_once('[')?;
            Some((align.parse().ok().filter(|a: &usize| a.is_power_of_two())?, size.parse().ok()?, name))
        }
        _ => None,
    }
}

/// Threads of `.maxntid`; other hints concern the assembler only.
fn bounds(tail: &str) -> Result<Option<u32>, &'static str> {
    let Some((_, rest)) = tail.split_once(".maxntid") else { return Ok(None) };
    let numbers = rest.split('.').next().unwrap_or_default();
    let product = numbers.split(',').map(|n| n.trim().parse::<u32>().ok()).try_fold(1u32, |p, n| p.checked_mul(n?));
    product.map(Some).ok_or("unknown bounds of a launch")
}
