//! Element by element: sums of residual streams and gradients, copies, casts.

use crate::cpu;
use crate::{Kind, Tape, Tensor, Var};

/// `x + y` for two values of one shape and dtype. `y` is taken by value and written over where nobody else holds it.
pub fn add(t: &Tape<'_>, x: &Var, y: Var) -> Var {
    assert_eq!(x.value.shape(), y.value.shape(), "terms of a sum");
    let (x_id, y_id) = (x.id(), y.id());
    let needs = x.needs_grad() || y.needs_grad();
    let sum = if y.value.is_unique() {
        add_assign(&y.value, &x.value);
        y.value
    } else {
        sum_of(&x.value, &y.value)
    };
    t.op(sum, needs, move |g, dy| {
        if let Some(id) = x_id {
            g.put(id, dy.clone());
        }
        if let Some(id) = y_id {
            g.put(id, dy);
        }
    })
}

/// A new tensor `x + y`.
pub(crate) fn sum_of(x: &Tensor, y: &Tensor) -> Tensor {
    let sum = x.empty_like(Kind::ActGrad);
    copy(&sum, x);
    add_assign(&sum, y);
    sum
}

/// `x += y`.
pub(crate) fn add_assign(x: &Tensor, y: &Tensor) {
    assert_eq!(x.numel(), y.numel(), "terms of a sum");
    if x.executes() {
        cpu::add_assign(x.data_mut(), y.data());
    }
}

/// `x += y`.
///
/// # Panics
/// If they differ in size.
pub fn add_into(x: &Tensor, y: &Tensor) {
    add_assign(x, y);
}

/// Copies bytes between tensors of one dtype and size.
///
/// # Panics
/// If they differ in dtype or size.
pub fn copy(to: &Tensor, from: &Tensor) {
    assert_eq!((to.dtype(), to.numel()), (from.dtype(), from.numel()), "copy");
    if from.executes() {
        to.with_bytes_mut(|dst| from.with_bytes(|src| dst.copy_from_slice(src)));
    }
}

/// Copies values between tensors of any floating dtypes, rounding to nearest even.
///
/// # Panics
/// If they differ in size.
pub fn cast(to: &Tensor, from: &Tensor) {
    assert_eq!(to.numel(), from.numel(), "cast");
    if to.executes() {
        cpu::cast(to.data_mut(), from.data());
    }
}

/// `sums[c] += sum over rows of x[row, c]`, f32.
pub(crate) fn add_column_sums(sums: &Tensor, x: &Tensor) {
    assert_eq!(sums.numel(), x.shape().last(), "column sums");
    if sums.executes() {
        cpu::add_column_sums(x.data(), sums.f32_mut());
    }
}
