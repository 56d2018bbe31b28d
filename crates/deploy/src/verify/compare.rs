//! Log-probabilities side by side.

/// Standard error up to which a share says something.
const VISIBLE: f64 = 0.05;
/// How far from 1 a share may be that rounding and curvature explain.
const OFF: f64 = 0.2;

/// How far a server's log-probabilities and the trainer's agree.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// Tokens compared.
    pub tokens: usize,
    /// Mean absolute difference to the trained model.
    pub mean: f64,
    /// Largest one.
    pub max: f64,
    /// Mean absolute difference to the base.
    pub mean_to_base: Option<f64>,
    /// Mean absolute difference of trained model and base: how much there is to see.
    pub signal: Option<f64>,
    /// How much of the way from the base to the trained model the server went, by least squares; 1 is right.
    pub share: Option<f64>,
    /// Standard error of `share`, from what lies beside the way.
    pub share_error: Option<f64>,
}

impl Agreement {
    /// Whether no more differs than rounding explains, and the adapter acts as a whole.
    pub fn is_right(&self, tolerance: f64) -> bool {
        let whole = match (self.share, self.share_error) {
            (Some(share), Some(error)) => error > VISIBLE || (share - 1.0).abs() < OFF,
            _ => true,
        };
        self.mean <= tolerance && whole
    }
}

/// Compares rows of log-probabilities; `base` is the model without its adapter.
pub fn agreement(served: &[Vec<f32>], tuned: &[&[f32]], base: Option<&[&[f32]]>) -> Agreement {
    let flat =
        |rows: &[&[f32]]| -> Vec<f64> { rows.iter().flat_map(|row| row.iter().map(|&v| f64::from(v))).collect() };
    let served = flat(&served.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let tuned = flat(tuned);
    let base = base.map(flat);
    let (mean, max) = distance(&served, &tuned);
    let share = base.as_ref().and_then(|base| share(base, &tuned, &served));
    Agreement {
        tokens: served.len(),
        mean,
        max,
        mean_to_base: base.as_ref().map(|base| distance(&served, base).0),
        signal: base.as_ref().map(|base| distance(&tuned, base).0),
        share: share.map(|(share, _)| share),
        share_error: share.map(|(_, error)| error),
    }
}

/// How much of the way from `base` to `tuned` leads nearest to `served`, and the standard error of that.
fn share(base: &[f64], tuned: &[f64], served: &[f64]) -> Option<(f64, f64)> {
    let ways: Vec<(f64, f64)> = base.iter().zip(tuned).zip(served).map(|((b, t), s)| (t - b, s - b)).collect();
    let length: f64 = ways.iter().map(|(way, _)| way * way).sum();
    let share = ways.iter().map(|(way, went)| way * went).sum::<f64>() / length;
    let beside: f64 = ways.iter().map(|(way, went)| (went - share * way).powi(2)).sum();
    (length > 0.0).then(|| (share, (beside / ways.len() as f64 / length).sqrt()))
}

/// Mean and largest absolute difference; a number that isn't finite counts as infinitely far.
fn distance(a: &[f64], b: &[f64]) -> (f64, f64) {
    let differences = a.iter().zip(b).map(|(a, b)| if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() });
    let (sum, max) = differences.fold((0.0, 0.0f64), |(sum, max), d| (sum + d, max.max(d)));
    let count = a.len().max(1) as f64;
    if a.len() == b.len() { (sum / count, max) } else { (f64::INFINITY, f64::INFINITY) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_tells_base_half_and_whole_apart() {
        let (base, tuned) = ([-3.0f32, -2.0, -1.0], [-1.0f32, -1.5, -0.5]);
        let at = |share: f32| base.iter().zip(tuned).map(|(b, t)| b + share * (t - b)).collect::<Vec<f32>>();
        for share in [0.0, 0.5, 1.0, 2.0] {
            let found = agreement(&[at(share)], &[&tuned], Some(&[&base]));
            assert!((found.share.unwrap() - f64::from(share)).abs() < 1e-6);
            assert_eq!(found.is_right(0.05), share == 1.0);
        }
    }

    #[test]
    fn an_effect_below_the_tolerance_is_still_seen_whole_or_half() {
        let base: Vec<f32> = (0..64).map(|i| -1.0 - i as f32 / 64.0).collect();
        let tuned: Vec<f32> = base.iter().map(|b| b + 0.04).collect();
        // As coarse numbers would have it: up and down by a twentieth of the effect.
        let noise = |i: usize| if i.is_multiple_of(2) { 0.002 } else { -0.002 };
        let at =
            |share: f32| vec![base.iter().enumerate().map(|(i, b)| b + 0.04 * share + noise(i)).collect::<Vec<f32>>()];
        assert!(agreement(&at(1.0), &[&tuned], Some(&[&base])).is_right(0.05));
        assert!(!agreement(&at(0.5), &[&tuned], Some(&[&base])).is_right(0.05));
    }

    #[test]
    fn what_is_not_a_number_or_missing_never_agrees() {
        let tuned = [-1.0f32, -2.0];
        assert!(!agreement(&[vec![f32::NAN, -2.0]], &[&tuned], None).is_right(1.0));
        assert!(!agreement(&[vec![-1.0]], &[&tuned], None).is_right(1.0));
        assert!(agreement(&[vec![-1.0, -2.0]], &[&tuned], None).is_right(1e-9));
    }
}
