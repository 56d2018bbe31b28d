//! Embedding: rows of a table by token id. ids `[t]`, table `[vocab, hidden]`, y `[t, hidden]` in the table's dtype (in
//! bf16 activations an f32 table under training is rounded). The gradient adds each dy row to its id's row.

use crate::cpu;
use crate::device::On;
use crate::{DType, Kind, Param, Tape, Tensor, Var};

/// Looks up `ids`.
pub fn embedding(t: &Tape<'_>, ids: &Tensor, table: &Param, activations: DType) -> Var {
    let weight = t.weight(table);
    let y = t.device().empty([ids.numel(), weight.dims()[1]], activations, Kind::Act);
    match y.runs_on() {
        None => {}
        Some(On::Cpu) => cpu::gather_rows(weight.data(), ids.u32(), y.data_mut(), weight.dims()[1]),
        Some(On::Cuda(gpu)) => gpu.gather_rows(&weight, ids, &y),
    }
    let (param, ids) = (table.clone(), ids.clone());
    t.op(y, t.trains(table), move |g, dy| {
        let dw = g.grad(&param);
        match dw.runs_on() {
            None => {}
            Some(On::Cpu) => cpu::scatter_add_rows(dy.data(), ids.u32(), dw.f32_mut(), dw.dims()[1]),
            Some(On::Cuda(gpu)) => gpu.scatter_add_rows(&dy, &ids, &dw),
        }
    })
}
