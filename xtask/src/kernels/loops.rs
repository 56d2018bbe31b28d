//! What the machine code of the matrix kernels can reach at most: the instructions of their inner loops as nvdisasm shows them,
//! beside the cycles that their matrix instructions take. What waits for memory or for one another isn't in it, so a GPU can
//! only be slower.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::{CUBINS, folder, hex};
use crate::output;

/// Cycles of one of an SM's four parts for a `mma.m16n8k16` of 16-bit numbers with f32 sums, by target: dense rates of A100, A10, L20
/// and H200 over their SMs and clocks. On Hopper `mma.sync` is said to reach 62 % of what its newer instructions do (Luo et
/// al. 2024, "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking"); not measured here.
const CYCLES: [(&str, f64); 4] = [("sm_80", 8.0), ("sm_86", 16.0), ("sm_89", 32.0), ("sm_90", 6.5)];
/// Warps that share an SM's port to shared memory while each has a part of its own.
const PARTS: f64 = 4.0;
/// Sources with matrix instructions.
const SOURCES: [&str; 2] = ["attention", "grouped"];
/// The backward pass of attention has five products; two kernels, each free of atomics, execute seven.
const BACKWARD: (&str, f64) = ("attention_backward", 5.0 / 7.0);

const HEAD: &str = "# Inner loops of the matrix kernels\n\nWritten by `cargo xtask kernels --loops NVDISASM` from the committed machine code. Of a turn of the loop, a warp at a time:\n\
    instructions / of those matrix products / passes over shared memory. Behind them the most that can be reached of the card's rate\n\
    for `mma.sync`: what takes longest of issuing (one a cycle and part of the SM), the port to shared memory (one pass a cycle for all\n\
    four parts) and the products. The backward kernels of attention compute seven products where five are needed; that is in the figure.\n\
    Waiting isn't: a GPU can only be slower.\n\n";

/// Of one turn of a loop.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Turn {
    instructions: usize,
    products: usize,
    passes: usize,
}

impl Turn {
    fn share(&self, kernel: &str, cycles: f64) -> f64 {
        let products = self.products as f64 * cycles;
        let most = products.max(self.instructions as f64).max(self.passes as f64 * PARTS);
        let needed = if kernel.starts_with(BACKWARD.0) { BACKWARD.1 } else { 1.0 };
        needed * products / most
    }
}

/// Targets and committed machine code of the sources.
fn packed() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let of = |source| CUBINS.map(|target| (target, folder().join(format!("cubin/{source}.{target}.z"))));
    let read = |(target, path): (_, std::path::PathBuf)| {
        Ok((target, std::fs::read(&path).with_context(|| path.display().to_string())?))
    };
    SOURCES.into_iter().flat_map(of).map(read).collect()
}

/// The line that says of which machine code the table is.
fn digest(packed: &[(&str, Vec<u8>)]) -> String {
    let mut digest = Sha256::new();
    packed.iter().for_each(|(_, bytes)| digest.update(bytes));
    format!("Of machine code with sha256 {}.", hex(&digest.finalize()))
}

/// Writes `kernels/loops.md`.
pub(super) fn task(nvdisasm: &str) -> Result<()> {
    let mut rows: BTreeMap<String, BTreeMap<&str, Turn>> = BTreeMap::new();
    let packed = packed()?;
    for (target, bytes) in &packed {
        let (mut cubin, file) = (Vec::new(), tempfile::NamedTempFile::new()?);
        flate2::read::ZlibDecoder::new(&bytes[..]).read_to_end(&mut cubin)?;
        std::fs::write(file.path(), cubin)?;
        let text = String::from_utf8(output(Command::new(nvdisasm).args(["-g", "-c"]).arg(file.path()))?)?;
        for (kernel, turn) in turns(&text) {
            rows.entry(kernel).or_default().insert(*target, turn);
        }
    }
    ensure!(!rows.is_empty(), "{nvdisasm} showed no loop with matrix instructions");
    let mut text = format!(
        "{HEAD}{}\n\n| kernel |{} |\n|---|{}\n",
        digest(&packed),
        CUBINS.map(|t| format!(" {t}")).join(" |"),
        "---|".repeat(CUBINS.len())
    );
    for (kernel, by_target) in rows {
        write!(text, "| {kernel} |")?;
        for (target, cycles) in CYCLES {
            match by_target.get(target) {
                Some(turn) => {
                    let Turn { instructions, products, passes } = turn;
                    write!(text, " {instructions} / {products} / {passes}: {:.2} |", turn.share(&kernel, cycles))?;
                }
                None => text += " - |",
            }
        }
        text.push('\n');
    }
    std::fs::write(folder().join("loops.md"), text).context("kernels/loops.md")
}

/// One line of machine code.
enum Line<'a> {
    Label(&'a str),
    Instruction { name: &'a str, operands: &'a str },
}

fn line(text: &str) -> Option<Line<'_>> {
    if let Some(label) = text.strip_suffix(':') {
        return label.starts_with(".L_").then_some(Line::Label(label));
    }
    let (_, code) = text.trim().strip_prefix("/*")?.split_once("*/")?;
    let code = code.trim();
    let code = if code.starts_with('@') { code.split_once(' ')?.1.trim() } else { code };
    let (name, operands) = code.split_once([' ', ';']).unwrap_or((code, ""));
    name.starts_with(|c: char| c.is_ascii_uppercase()).then_some(Line::Instruction { name, operands })
}

/// The inner loop of each kernel that has one with matrix instructions; of several the one with most of them.
fn turns(text: &str) -> BTreeMap<String, Turn> {
    let mut found = BTreeMap::new();
    for section in text.split("\n.text.").skip(1) {
        let Some((kernel, body)) = section.split_once(":\n") else { continue };
        let lines: Vec<Line<'_>> =
            body.lines().take_while(|text| !text.starts_with(".section")).filter_map(line).collect();
        if let Some(turn) = inner(&lines) {
            found.insert(kernel.to_owned(), turn);
        }
    }
    found
}

fn inner(lines: &[Line<'_>]) -> Option<Turn> {
    let begin = |operands: &str| {
        let at = operands.find(".L_")?;
        let name = operands[at..].split([')', ' ', ';']).next()?;
        lines.iter().position(|line| matches!(line, Line::Label(label) if *label == name))
    };
    let loops: Vec<(usize, usize)> = lines
        .iter()
        .enumerate()
        .filter_map(|(end, line)| match line {
            Line::Instruction { name, operands } if name.starts_with("BRA") => Some((begin(operands)?, end)),
            _ => None,
        })
        .filter(|(begin, end)| begin < end && count(&lines[*begin..=*end]).products > 0)
        .collect();
    let holds =
        |outer: &(usize, usize), inner: &(usize, usize)| outer != inner && outer.0 <= inner.0 && inner.1 <= outer.1;
    let innermost = loops.iter().filter(|outer| !loops.iter().any(|inner| holds(outer, inner)));
    innermost.map(|(begin, end)| count(&lines[*begin..=*end])).max_by_key(|turn| turn.products)
}

fn count(lines: &[Line<'_>]) -> Turn {
    let mut turn = Turn::default();
    for line in lines {
        let Line::Instruction { name, .. } = line else { continue };
        turn.instructions += 1;
        turn.products += usize::from(name.starts_with("HMMA.16816"));
        turn.passes += passes(name);
    }
    turn
}

/// Passes of a warp over the 128 bytes that shared memory gives in a cycle, where no banks conflict (`traffic.md` says where).
fn passes(name: &str) -> usize {
    let wide = |name: &str| match name {
        _ if name.ends_with(".128") => 4,
        _ if name.ends_with(".64") => 2,
        _ => 1,
    };
    match name.split('.').next() {
        Some("LDSM") if name.ends_with(".4") => 4,
        Some("LDSM") if name.ends_with(".2") => 2,
        Some("LDSM") => 1,
        Some("LDS" | "STS" | "LDGSTS") => wide(name),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "\t.section\t.text.attention_backward_x,\"ax\"\n.text.attention_backward_x:\n\
        \x20       /*0000*/                   HMMA.16816.F32 R184, R100, R168, RZ ;\n.L_x_1:\n\
        \x20       /*0010*/                   LDSM.16.M88.4 R8, [R2] ;\n.L_x_2:\n\
        \x20       /*0020*/                   LDSM.16.MT88.4 R4, [R2] ;\n\
        \x20       /*0030*/              @!P0 LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;\n\
        \x20       /*0040*/                   HMMA.16816.F32.BF16 R184, R100, R168, R184 ;\n\
        \x20       /*0050*/                   LDS.64 R4, [R2] ;\n\
        \x20       /*0060*/               @P0 BRA `(.L_x_2) ;\n\
        \x20       /*0070*/               @P1 BRA `(.L_x_1) ;\n\
        \x20       /*0080*/               @P1 BRA `(.L_x_3) ;\n.L_x_3:\n\
        \x20       /*0090*/                   EXIT ;\n\
        .section .nv.info\n\t.section\t.text.add,\"ax\"\n.text.add:\n        /*0000*/                   EXIT ;\n";

    #[test]
    fn the_table_is_of_the_committed_machine_code() {
        let table = std::fs::read_to_string(folder().join("loops.md")).unwrap();
        assert!(table.contains(&digest(&packed().unwrap())), "`cargo xtask kernels --loops NVDISASM` writes it again");
    }

    #[test]
    fn the_innermost_loop_is_counted() {
        let found = turns(CODE);
        assert_eq!(found.len(), 1, "a kernel without products has no row");
        let turn = found["attention_backward_x"];
        assert_eq!(turn, Turn { instructions: 5, products: 1, passes: 10 });
        // 40 cycles of the port; a product of 32 cycles takes less, one of 64 more.
        assert!((turn.share("attention_forward", 32.0) - 0.8).abs() < 1e-12);
        assert!((turn.share("attention_forward", 64.0) - 1.0).abs() < 1e-12);
        assert!((turn.share("attention_backward_x", 32.0) - 0.8 * 5.0 / 7.0).abs() < 1e-12);
    }
}
