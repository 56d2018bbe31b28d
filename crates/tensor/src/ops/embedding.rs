//! Embedding: rows of a table by token id. ids `[t]`, table `[vocab, hidden]`, y `[t, hidden]` in the table's dtype (in
//! bf16 activations an f32 table under training is rounded). The gradient adds each dy row to its id's row.

use crate::cpu;
use crate::{DType, Kind, Param, Tape, Tensor, Var};

/// Looks up `ids`.
pub fn embedding(t: &Tape<'_>, ids: &Tensor, table: &Param, activations: DType) -> Var {
    let weight = t.weight(table);
    let y = t.device().empty([ids.numel(), weight.dims()[1]], activations, Kind::Act);
    if y.executes() {
        cpu::gather_rows(weight.data(), ids.u32(), y.data_mut(), weight.dims()[1]);
    }
    let (param, ids) = (table.clone(), ids.clone());
    t.op(y, t.trains(table), move |g, dy| {
        let dw = g.grad(&param);
        if dw.executes() {
            cpu::scatter_add_rows(dy.data(), ids.u32(), dw.f32_mut(), dw.dims()[1]);
        }
    })
}
