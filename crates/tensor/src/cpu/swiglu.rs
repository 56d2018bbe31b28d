//! SwiGLU: `y = silu(gate) up`, and its gradient, which computes the sigmoid again.

use super::level::simd;
use super::parallel::{over_rows, part, read};
use super::{Data, DataMut, Element, Shared, alike, level, math};

/// Writes `y = gate sigmoid(gate) up`.
pub fn swiglu(gate: Data<'_>, up: Data<'_>, y: DataMut<'_>) {
    assert!(gate.len() == up.len() && up.len() == y.len(), "halves of a SwiGLU");
    let level = level();
    alike!((gate: Data, up: Data, y: DataMut) => {
        let y = Shared::new(y);
        over_rows(gate.len(), 1, |r| {
            // SAFETY: ranges of tasks are disjoint.
            forward_part(level, read(gate, &r, 1), read(up, &r, 1), unsafe { part(&y, &r, 1) });
        });
    });
}

simd! {
    fn forward_part<X: Element, U: Element, Y: Element>(gate: &[X], up: &[U], y: &mut [Y]) {
        for ((g, u), y) in gate.iter().zip(up).zip(y) {
            let g = g.get();
            *y = Y::put(g * math::sigmoid::<M>(g) * u.get());
        }
    }
}

/// Writes `dup = dy silu(gate)` and `dgate = dy up s (1 + gate (1 - s))` with `s = sigmoid(gate)`, in gate's type.
pub fn swiglu_backward(dy: Data<'_>, gate: Data<'_>, up: Data<'_>, dgate: DataMut<'_>, dup: DataMut<'_>) {
    let n = dy.len();
    assert!([gate.len(), up.len(), dgate.len(), dup.len()] == [n; 4], "halves of a SwiGLU");
    let level = level();
    alike!((dy: Data, gate: Data, up: Data, dgate: DataMut, dup: DataMut) => {
        let (dgate, dup) = (Shared::new(dgate), Shared::new(dup));
        over_rows(n, 1, |r| {
            // SAFETY: ranges of tasks are disjoint.
            let out = unsafe { (part(&dgate, &r, 1), part(&dup, &r, 1)) };
            backward_part(level, read(dy, &r, 1), (read(gate, &r, 1), read(up, &r, 1)), out);
        });
    });
}

simd! {
    fn backward_part<T: Element>(dy: &[T], from: (&[T], &[T]), to: (&mut [T], &mut [T])) {
        let inputs = dy.iter().zip(from.0).zip(from.1);
        for (((dy, g), u), (dg, du)) in inputs.zip(to.0.iter_mut().zip(to.1)) {
            let (dy, g) = (dy.get(), g.get());
            let s = math::sigmoid::<M>(g);
            *du = T::put(dy * (g * s));
            *dg = T::put(dy * u.get() * (s * (1.0 + g * (1.0 - s))));
        }
    }
}
