//! What is wrong with a mutant: one line of PTX changed as somebody might have written the kernel wrongly.

/// A changed line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mutation {
    /// What kind of mistake.
    pub(super) kind: &'static str,
    /// Line of the file, from 0.
    pub(super) line: usize,
    /// What it becomes.
    pub(super) text: String,
}

/// All mutations of a file: of the instructions in its kernels' bodies, a line each.
pub(super) fn all(ptx: &str) -> Vec<Mutation> {
    let mut found = Vec::new();
    for (line, text) in ptx.lines().enumerate() {
        let trimmed = text.trim();
        if !trimmed.ends_with(';') || trimmed.starts_with('.') {
            continue;
        }
        let mut add = |kind, changed: Option<String>| {
            found.extend(changed.filter(|c| c != trimmed).map(|text| Mutation { kind, line, text }));
        };
        let (guard, body) = match trimmed.strip_prefix('@').and_then(|rest| rest.split_once(char::is_whitespace)) {
            Some((guard, body)) => (Some(guard), body.trim_start()),
            None => (None, trimmed),
        };
        let Some((opcode, operands)) = split(body) else {
            continue;
        };
        let put = |body: String| match guard {
            Some(guard) => format!("@{guard} {body}"),
            None => body,
        };
        let join = |opcode: &str, operands: &[String]| put(format!("{opcode} {};", operands.join(", ")));
        add(
            "guard",
            guard.map(|g| match g.strip_prefix('!') {
                Some(plain) => format!("@{plain} {body}"),
                None => format!("@!{g} {body}"),
            }),
        );
        add("comparison", other_comparison(opcode).map(|o| join(&o, &operands)));
        add("function", other_function(opcode).map(|o| join(&o, &operands)));
        add("swap", swapped(opcode, &operands).map(|o| join(opcode, &o)));
        add("immediate", nudged(opcode, &operands).map(|o| join(opcode, &o)));
        add("offset", moved(opcode, &operands).map(|o| join(opcode, &o)));
        add("lane", other_lane(opcode, &operands).map(|o| join(opcode, &o)));
        add("fragment", other_fragment(opcode, &operands).map(|(opcode, o)| join(&opcode, &o)));
        add("dropped", dropped(opcode).then(String::new));
    }
    found
}

/// Opcode and operands between commas, of which those in braces and brackets don't count.
fn split(body: &str) -> Option<(&str, Vec<String>)> {
    let body = body.strip_suffix(';')?;
    let (opcode, rest) = body.split_once(char::is_whitespace).unwrap_or((body, ""));
    let (mut operands, mut depth, mut part) = (Vec::new(), 0, String::new());
    for c in rest.trim().chars() {
        depth += i32::from(matches!(c, '{' | '[')) - i32::from(matches!(c, '}' | ']'));
        if c == ',' && depth == 0 {
            operands.push(std::mem::take(&mut part).trim().to_owned());
        } else {
            part.push(c);
        }
    }
    if !part.trim().is_empty() {
        operands.push(part.trim().to_owned());
    }
    Some((opcode, operands))
}

fn other_comparison(opcode: &str) -> Option<String> {
    let mut parts: Vec<&str> = opcode.split('.').collect();
    if parts.first() != Some(&"setp") {
        return None;
    }
    let pairs = [("lt", "le"), ("gt", "ge"), ("eq", "ne"), ("ltu", "leu"), ("gtu", "geu"), ("equ", "neu")];
    let at = parts.get_mut(1)?;
    *at = pairs.iter().find_map(|(a, b)| if at == a { Some(*b) } else { (at == b).then_some(*a) })?;
    Some(parts.join("."))
}

fn other_function(opcode: &str) -> Option<String> {
    let (name, rest) = opcode.split_once('.')?;
    let other = match name {
        "add" => "sub",
        "sub" => "add",
        "min" => "max",
        "max" => "min",
        "and" => "or",
        "or" => "and",
        _ => return None,
    };
    // Address arithmetic in 64 bits goes wrong in the same way wherever it is changed; sums of floats don't.
    (!(rest.ends_with("64") && name == "sub")).then(|| format!("{other}.{rest}"))
}

fn swapped(opcode: &str, operands: &[String]) -> Option<Vec<String>> {
    // Of equal operands, or where order says nothing, it would be no mistake.
    let unordered = ["eq", "ne", "equ", "neu"].iter().any(|test| opcode.split('.').nth(1) == Some(test));
    let (a, b) = match opcode.split('.').next()? {
        "setp" if unordered => return None,
        "sub" | "div" | "rem" | "selp" | "setp" | "shl" | "shr" => (1, 2),
        "fma" | "mad" => (1, 3),
        "cvt" if opcode.contains("x2") => (1, 2),
        _ => return None,
    };
    let mut swapped = operands.to_vec();
    let registers = swapped.len() > b && swapped[a].starts_with('%') && swapped[b].starts_with('%');
    (registers && swapped[a] != swapped[b]).then(|| {
        swapped.swap(a, b);
        swapped
    })
}

fn nudged(opcode: &str, operands: &[String]) -> Option<Vec<String>> {
    let integers = ["s32", "u32", "b32", "s64", "u64", "b64"];
    let fits = ["add", "sub", "mul", "mad", "and", "or", "shl", "shr", "setp", "min", "max", "bfe"];
    if !fits.contains(&opcode.split('.').next()?) || !integers.contains(&opcode.rsplit('.').next()?) {
        return None;
    }
    let mut nudged = operands.to_vec();
    let operand = nudged.iter_mut().skip(1).find(|o| o.parse::<i64>().is_ok())?;
    *operand = (operand.parse::<i64>().ok()? + 1).to_string();
    Some(nudged)
}

/// An address one element further.
fn moved(opcode: &str, operands: &[String]) -> Option<Vec<String>> {
    let by = match opcode.split('.').next()? {
        "ld" | "st" if !opcode.contains(".param") => match opcode.rsplit('.').next()? {
            "u16" | "b16" | "s16" => 2,
            "u32" | "b32" | "s32" | "f32" => 4,
            _ => 8,
        },
        "ldmatrix" => 16,
        "cp" if opcode.contains("shared") => 16,
        _ => return None,
    };
    let by = if opcode.contains(".v4") {
        4 * by
    } else if opcode.contains(".v2") {
        2 * by
    } else {
        by
    };
    let mut moved = operands.to_vec();
    let operand = moved.iter_mut().find(|o| o.starts_with('['))?;
    let inner = operand.strip_prefix('[')?.strip_suffix(']')?;
    let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
    *operand = format!("[{base}+{}]", offset.parse::<i64>().ok()? + by);
    Some(moved)
}

fn other_lane(opcode: &str, operands: &[String]) -> Option<Vec<String>> {
    if !opcode.starts_with("shfl") {
        return None;
    }
    let mut other = operands.to_vec();
    let lane = other.get_mut(2)?;
    *lane = match lane.parse::<u32>() {
        Ok(n) => (if n > 1 { n / 2 } else { n + 1 }).to_string(),
        Err(_) => "0".to_owned(),
    };
    Some(other)
}

fn other_fragment(opcode: &str, operands: &[String]) -> Option<(String, Vec<String>)> {
    if opcode.starts_with("mma") {
        let mut other = operands.to_vec();
        let b = other.get_mut(2)?;
        let (low, high) = b.strip_prefix('{')?.strip_suffix('}')?.split_once(',')?;
        *b = format!("{{{},{}}}", high.trim(), low.trim());
        return Some((opcode.to_owned(), other));
    }
    let rest = opcode.strip_prefix("ldmatrix.sync.aligned.m8n8.x4.")?;
    let toggled = rest.strip_prefix("trans.").map_or_else(|| format!("trans.{rest}"), str::to_owned);
    Some((format!("ldmatrix.sync.aligned.m8n8.x4.{toggled}"), operands.to_vec()))
}

/// Barriers, waits, commits, copies and stores, which are missed only by what comes later.
fn dropped(opcode: &str) -> bool {
    ["bar.", "cp.async", "st."].iter().any(|start| opcode.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Vec<(&'static str, String)> {
        all(line).into_iter().map(|m| (m.kind, m.text)).collect()
    }

    #[test]
    fn each_kind_of_mistake() {
        let (comparison, swap) = ("setp.le.s32 %p1, %r1, %r2;", "setp.lt.s32 %p1, %r2, %r1;");
        assert_eq!(of("\tsetp.lt.s32 \t%p1, %r1, %r2;"), [("comparison", comparison.into()), ("swap", swap.into())]);
        assert_eq!(of("setp.eq.s32 \t%p1, %r1, %r2;"), [("comparison", "setp.ne.s32 %p1, %r1, %r2;".into())]);
        assert_eq!(of("fma.rn.f32 \t%f1, %f2, %f3, %f2;"), []);
        assert_eq!(of("@%p1 bra $L;"), [("guard", "@!%p1 bra $L;".into())]);
        assert_eq!(of("bar.sync 0;"), [("dropped", String::new())]);
        assert_eq!(of("add.s32 %r1, %r2, 7;")[1], ("immediate", "add.s32 %r1, %r2, 8;".into()));
        assert_eq!(
            of("ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];")[0].1,
            "ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1+16];"
        );
        assert_eq!(
            of("shfl.sync.bfly.b32 %r1|%p1, %r2, 16, 31, -1;")[0].1,
            "shfl.sync.bfly.b32 %r1|%p1, %r2, 8, 31, -1;"
        );
        let mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r5,%r6}, {%f1};";
        assert_eq!(of(mma), [("fragment", mma.replace("%r5,%r6", "%r6,%r5"))]);
        assert_eq!(of("mov.u32 %r1, %r2;"), []);
    }
}
