//! What Python and numpy mean by white space and by a mean: both decide digits of what is reported.

/// Whether Python's `str.split`, `str.strip` and `\s` take a character for white space. These are Rust's, and the four
/// separators of files, groups, records and units.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The mean as numpy adds it up, pairwise; NaN of nothing.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    sum(values) / values.len() as f64
}

/// numpy's pairwise sum (`pairwise_sum` in `loops_utils.h.src`): eight running sums in blocks of up to 128, halves above.
fn sum(values: &[f64]) -> f64 {
    const BLOCK: usize = 128;
    if values.len() < 8 {
        return values.iter().fold(0.0, |sum, value| sum + value);
    }
    if values.len() > BLOCK {
        let half = values.len() / 2;
        let (left, right) = values.split_at(half - half % 8);
        return sum(left) + sum(right);
    }
    let (eights, rest) = values.as_chunks::<8>();
    let mut lanes = eights[0];
    for eight in &eights[1..] {
        lanes.iter_mut().zip(eight).for_each(|(lane, value)| *lane += value);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    rest.iter().fold(((a + b) + (c + d)) + ((e + f) + (g + h)), |sum, value| sum + value)
}
