//! AdamW over flat ranges, in torch's order of operations.

use super::level::simd;
use super::parallel::{over_rows, part, read};
use super::{DataMut, Element, Shared, by_type, level};

/// One AdamW step's numbers, Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps taken, this one included.
    pub step: u64,
    /// Factor of the gradients: clipping.
    pub grad_scale: f32,
}

/// The moments, and the f32 weights where the weights themselves are bf16.
#[derive(Debug)]
pub struct AdamWState<'a> {
    /// First moment.
    pub m: &'a mut [f32],
    /// Second moment.
    pub v: &'a mut [f32],
    /// The weights in f32; bf16 weights are rounded from them.
    pub master: Option<&'a mut [f32]>,
}

/// Updates `weight` from `grad`; without a master copy bf16 weights are read, updated in f32 and rounded.
pub fn adamw(step: &AdamW, weight: DataMut<'_>, grad: &[f32], state: AdamWState<'_>) {
    let n = grad.len();
    let AdamWState { m, v, master } = state;
    assert!(weight.len() == n && m.len() == n && v.len() == n, "ranges of one length");
    assert!(master.as_ref().is_none_or(|p| p.len() == n), "ranges of one length");
    let (level, factors) = (level(), Factors::new(step));
    let (m, v, master) = (Shared::new(m), Shared::new(v), master.map(Shared::new));
    by_type!(weight: DataMut => {
        let weight = Shared::new(weight);
        over_rows(n, 1, |r| {
            // SAFETY: ranges of tasks are disjoint.
            let (p, m, v) = unsafe { (part(&weight, &r, 1), part(&m, &r, 1), part(&v, &r, 1)) };
            // SAFETY: as above.
            match master.as_ref().map(|master| unsafe { part(master, &r, 1) }) {
                None => update_part(level, p, read(grad, &r, 1), (m, v), &factors),
                Some(master) => {
                    update_part(level, master, read(grad, &r, 1), (m, v), &factors);
                    round_part(level, master, p);
                }
            }
        });
    });
}

impl AdamW {
    /// The scalars of a step, in the order in which a GPU's kernel has them.
    pub(crate) fn factors(&self) -> [f32; 9] {
        let f = Factors::new(self);
        [f.grad, f.keep, f.beta1, f.rest1, f.beta2, f.rest2, f.root, f.eps, f.rate]
    }
}

/// The scalars of a step, computed in f64 as torch does, used in f32.
struct Factors {
    grad: f32,
    keep: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    root: f32,
    eps: f32,
    rate: f32,
}

impl Factors {
    fn new(s: &AdamW) -> Self {
        let taken = s.step as f64;
        Self {
            grad: s.grad_scale,
            keep: (1.0 - s.rate * s.weight_decay) as f32,
            beta1: s.beta1 as f32,
            rest1: (1.0 - s.beta1) as f32,
            beta2: s.beta2 as f32,
            rest2: (1.0 - s.beta2) as f32,
            root: (1.0 - s.beta2.powf(taken)).sqrt() as f32,
            eps: s.eps as f32,
            rate: (s.rate / (1.0 - s.beta1.powf(taken))) as f32,
        }
    }
}

simd! {
    fn update_part<P: Element>(p: &mut [P], g: &[f32], moments: (&mut [f32], &mut [f32]), f: &Factors) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(moments.0).zip(moments.1) {
            let g = g * f.grad;
            let kept = p.get() * f.keep;
            *m = f.beta1 * *m + f.rest1 * g;
            *v = f.beta2 * *v + f.rest2 * g * g;
            let denominator = v.sqrt() / f.root + f.eps;
            *p = P::put(kept - f.rate * (*m / denominator));
        }
    }
}

simd! {
    fn round_part<P: Element>(master: &[f32], p: &mut [P]) {
        for (from, p) in master.iter().zip(p) {
            *p = P::put(*from);
        }
    }
}
