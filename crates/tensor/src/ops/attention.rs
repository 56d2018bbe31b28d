//! Causal attention over sequences laid end to end, `softmax(scale q k' + mask) v` a head, in blocks: never an n x n
//! matrix. FlashAttention-2, Dao 2023, <https://arxiv.org/abs/2307.08691>.
//!
//! q `[t, heads * head_dim]`, k and v `[t, kv_heads * head_dim]`, each kv head serving heads / kv_heads query heads. Saves q,
//! k, v, the output and the log-sum-exp a row and head.

use crate::cuda::kernels::{AttentionCall, attention_tables};
use crate::device::On;
use crate::{DType, Device, Kind, Profile, Tape, Tensor, Var};
use crate::{cpu, cuda};
use std::cell::OnceCell;
use std::rc::Rc;

/// Heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Only the last so many keys are seen.
    pub window: Option<usize>,
}

impl Heads {
    /// `1 / sqrt(head_dim)`.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Which tokens see each other: query rows `q[i]..q[i + 1]` see keys `k[i]..k[i + 1]`, aligned at their ends.
#[derive(Debug, Clone)]
pub struct Spans {
    /// Borders of the sequences in the queries.
    pub q: Vec<u32>,
    /// Borders of the sequences in the keys.
    pub k: Vec<u32>,
    /// The same where a GPU reads it.
    tables: OnceCell<SpanTables>,
}

/// A sequence that goes on in a room of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continued {
    /// Where its first key lies.
    pub first: u32,
    /// Its keys, the new ones among them.
    pub total: u32,
    /// Its queries: its last tokens.
    pub new: u32,
}

/// Borders of the sequences, and for each block of a GPU's grid its sequence and stretch of 64 rows.
#[derive(Debug, Clone)]
pub(crate) struct SpanTables {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) q_tiles: Tensor,
    pub(crate) k_tiles: Tensor,
}

impl Spans {
    /// Sequences that see themselves; `bounds` begins with 0 (or is empty: no token at all).
    pub fn causal(mut bounds: Vec<u32>) -> Self {
        if bounds.is_empty() {
            bounds.push(0);
        }
        Self { q: bounds.clone(), k: bounds, tables: OnceCell::new() }
    }

    /// Sequences whose keys lie in a room of their own each, in the order of their places there; what lies between them, up
    /// to the room's `rows`, is seen by nobody.
    pub fn continuing(sequences: &[Continued], rows: u32) -> Self {
        let (mut q, mut k) = (vec![0], vec![0]);
        let (mut queries, mut end) = (0, 0);
        // A gap is a sequence without queries.
        let gap = |q: &mut Vec<u32>, k: &mut Vec<u32>, (queries, from, to): (u32, u32, u32)| {
            if from < to {
                q.push(queries);
                k.push(to);
            }
        };
        for &Continued { first, total, new } in sequences {
            gap(&mut q, &mut k, (queries, end, first));
            (queries, end) = (queries + new, first + total);
            q.push(queries);
            k.push(end);
        }
        gap(&mut q, &mut k, (queries, end, rows));
        Self { q, k, tables: OnceCell::new() }
    }

    /// The tables on a GPU, uploaded at a batch's first attention; `None` where the kernels take the lists as they are.
    fn tables(&self, device: &Device) -> Option<&SpanTables> {
        let upload = |list: &[u32]| Tensor::from_u32(device, list, Kind::Input);
        let make = || {
            let (q, q_tiles) = (upload(&self.q), upload(&attention_tables(&self.q)));
            if self.q == self.k {
                return SpanTables { k: q.clone(), k_tiles: q_tiles.clone(), q, q_tiles };
            }
            SpanTables { q, q_tiles, k: upload(&self.k), k_tiles: upload(&attention_tables(&self.k)) }
        };
        (device.profile() == Profile::Cuda).then(|| self.tables.get_or_init(make))
    }

    /// Pairs of query and key that see each other.
    fn pairs(&self, window: Option<usize>) -> f64 {
        let lens = self.q.windows(2).zip(self.k.windows(2));
        let pairs = lens.map(|(q, k)| {
            let (new, total) = (f64::from(q[1] - q[0]), f64::from(k[1] - k[0]));
            let window = window.map_or(total, |w| (w as f64).min(total));
            // Query i (from the end) sees total - i keys, at most the window.
            let full = (total - new + 1.0).min(window);
            let growing = (window - full).max(0.0).min(new - 1.0).max(0.0);
            growing * (full + (full + growing - 1.0)) / 2.0 + (new - growing) * (full + growing).min(window)
        });
        pairs.sum()
    }
}

/// Attends.
pub fn attention(t: &Tape<'_>, q: &Var, k: &Var, v: &Var, spans: &Rc<Spans>, heads: Heads) -> Var {
    let (rows, width) = (q.value.dims()[0], heads.heads * heads.head_dim);
    assert_eq!(q.value.dims(), [rows, width], "queries");
    assert_eq!(k.value.dims(), v.value.dims(), "keys and values");
    assert_eq!(k.value.dims()[1], heads.kv_heads * heads.head_dim, "keys");
    let device = t.device();
    let o = q.value.empty_like(Kind::Act);
    let lse = device.empty([heads.heads, rows], DType::F32, Kind::Act);
    let flops = 4.0 * spans.pairs(heads.window) * width as f64;
    device.count_flops(flops);
    let needs = q.needs_grad() || k.needs_grad() || v.needs_grad();
    let (splits, parts) = splits(device, spans, heads, needs);
    let tables = spans.tables(device);
    match (o.runs_on(), tables) {
        (Some(On::Cpu), _) => {
            let shape = shape(spans, heads);
            let args = cpu::Attention { shape, q: q.value.data(), k: k.value.data(), v: v.value.data() };
            cpu::attention_forward(&args, o.data_mut(), lse.f32_mut());
        }
        (Some(On::Cuda(gpu)), Some(tables)) => {
            let call = AttentionCall { heads, spans, tables };
            gpu.attention_forward(&call, [&q.value, &k.value, &v.value], [&o, &lse], (splits, parts.as_ref()));
        }
        _ => {}
    }
    let (qv, kv, vv) = (q.value.clone(), k.value.clone(), v.value.clone());
    let (q_id, k_id, v_id) = (q.id(), k.id(), v.id());
    let (out, spans) = (o.clone(), spans.clone());
    t.op(o, needs, move |g, dout| {
        let (dq, dk, dv) = (qv.empty_like(Kind::ActGrad), kv.empty_like(Kind::ActGrad), vv.empty_like(Kind::ActGrad));
        let shape = shape(&spans, heads);
        let floats = match g.device().profile() {
            Profile::Cpu => cpu::attention_backward_workspace(&shape),
            Profile::Cuda => cuda::kernels::attention_backward_workspace(&shape),
        };
        let work = g.device().empty([floats], DType::F32, Kind::Work);
        g.device().count_flops(2.5 * flops);
        let tables = spans.tables(g.device());
        match (dq.runs_on(), tables) {
            (Some(On::Cpu), _) => {
                let args = cpu::Attention { shape, q: qv.data(), k: kv.data(), v: vv.data() };
                let given = cpu::AttentionGrad { o: out.data(), lse: lse.f32(), dout: dout.data() };
                cpu::attention_backward(&args, &given, (dq.data_mut(), dk.data_mut(), dv.data_mut()), work.f32_mut());
            }
            (Some(On::Cuda(gpu)), Some(tables)) => {
                let call = AttentionCall { heads, spans: &spans, tables };
                gpu.attention_backward(&call, [&qv, &kv, &vv, &out, &lse, &dout], [&dq, &dk, &dv], &work);
            }
            _ => {}
        }
        for (id, gradient) in [(q_id, dq), (k_id, dk), (v_id, dv)] {
            if let Some(id) = id {
                g.put(id, gradient);
            }
        }
    })
}

/// Into how many stretches a GPU splits the keys, and its workspace for that.
fn splits(device: &Device, spans: &Spans, heads: Heads, needs: bool) -> (usize, Option<Tensor>) {
    if device.profile() == Profile::Cpu || needs {
        return (1, None);
    }
    let (splits, floats) = cuda::kernels::attention_splits(spans, heads);
    (splits, (splits > 1).then(|| device.empty([floats], DType::F32, Kind::Work)))
}

fn shape(spans: &Spans, heads: Heads) -> cpu::AttentionShape<'_> {
    let Heads { heads: of_q, kv_heads, head_dim, window } = heads;
    let (scale, cu_q, cu_k) = (heads.scale(), &spans.q[..], &spans.k[..]);
    cpu::AttentionShape { heads: of_q, kv_heads, head_dim, window, scale, cu_q, cu_k }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_sequences_has_no_queries() {
        let at = |first, total, new| Continued { first, total, new };
        let spans = Spans::continuing(&[at(0, 5, 2)], 5);
        assert_eq!((spans.q, spans.k), (vec![0, 2], vec![0, 5]));
        let spans = Spans::continuing(&[at(8, 3, 1), at(16, 8, 4), at(24, 1, 1)], 32);
        assert_eq!((&spans.q[..], &spans.k[..]), (&[0, 0, 1, 1, 5, 6, 6][..], &[0, 8, 11, 16, 24, 25, 32][..]));
        // 3 keys; 5 + 6 + 7 + 8; 1.
        assert_eq!((spans.pairs(None), spans.pairs(Some(4))), (3.0 + 26.0 + 1.0, 3.0 + 16.0 + 1.0));
    }
}
