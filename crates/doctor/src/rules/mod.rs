//! What of the facts is wrong, and what cures it. Nothing here looks at the machine.

mod health;
mod libraries;
mod links;
mod machine;
#[cfg(test)]
mod tests;
mod tried;

use crate::facts::Facts;
use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// A run fails, or gives wrong values.
    Problem,
    /// It is slower than it need be, or may fail.
    Advice,
    /// Good to know.
    Note,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub weight: Weight,
    /// Its name, which stays the same.
    pub name: &'static str,
    /// What it is.
    pub what: String,
    /// What to do.
    pub cure: String,
}

impl Finding {
    fn new(weight: Weight, name: &'static str, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { weight, name, what: what.into(), cure: cure.into() }
    }
}

/// All that is wrong, the worst first.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    libraries::judge(facts, &mut found);
    health::judge(facts, &mut found);
    tried::judge(facts, &mut found);
    links::judge(facts, &mut found);
    machine::judge(facts, &mut found);
    found.sort_by_key(|finding| finding.weight);
    found
}

/// Whether nothing is a problem.
pub fn is_sound(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.weight != Weight::Problem)
}

/// Names, as `0, 1 and 2`.
fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
