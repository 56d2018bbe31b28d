//! Sequences and heads of attention, and a naive f64 version of it.

use super::common::*;
use ferrotune_ptx::Arg;

/// Which heads there are and which tokens see each other.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dim: usize,
    pub(crate) window: Option<usize>,
    pub(crate) cu_q: Vec<u32>,
    pub(crate) cu_k: Vec<u32>,
}

pub(crate) const SCALE: f32 = 0.3;

impl Case {
    pub(crate) fn queries(&self) -> usize {
        self.cu_q[self.cu_q.len() - 1] as usize
    }

    pub(crate) fn keys(&self) -> usize {
        self.cu_k[self.cu_k.len() - 1] as usize
    }

    /// q, k, v and the gradient of the output.
    pub(crate) fn inputs(&self) -> [Vec<f64>; 4] {
        let (q, k) = (self.queries() * self.heads * self.dim, self.keys() * self.kv_heads * self.dim);
        [(q, 1), (k, 2), (k, 3), (q, 4)].map(|(n, seed)| values(n, seed, 0.5))
    }

    /// Calls with each query: its row, its head, the range of keys it sees.
    fn each(&self, mut f: impl FnMut(usize, usize, std::ops::Range<usize>)) {
        for (q, k) in self.cu_q.windows(2).zip(self.cu_k.windows(2)) {
            for row in q[0]..q[1] {
                let end = (k[1] + row + 1).saturating_sub(q[1]).max(k[0]) as usize;
                let start = self.window.map_or(k[0] as usize, |w| end.saturating_sub(w).max(k[0] as usize));
                (0..self.heads).for_each(|head| f(row as usize, head, start..end));
            }
        }
    }
}

#[derive(Default)]
pub(crate) struct Wanted {
    pub(crate) o: Vec<f64>,
    pub(crate) lse: Vec<f64>,
    pub(crate) dq: Vec<f64>,
    pub(crate) dk: Vec<f64>,
    pub(crate) dv: Vec<f64>,
}

/// `stored` is the type that the output is rounded to before its gradient is taken.
pub(crate) fn reference(case: &Case, [q, k, v, dout]: &[Vec<f64>; 4], stored: Type) -> Wanted {
    let (d, group, scale) = (case.dim, case.heads / case.kv_heads, f64::from(SCALE));
    let mut w = Wanted { o: vec![0.0; q.len()], dq: vec![0.0; q.len()], ..Wanted::default() };
    (w.dk, w.dv, w.lse) = (vec![0.0; k.len()], vec![0.0; k.len()], vec![0.0; case.heads * case.queries()]);
    case.each(|row, head, keys| {
        let r = (row * case.heads + head) * d;
        let at = |key: usize| (key * case.kv_heads + head / group) * d;
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let scores: Vec<f64> = keys.clone().map(|j| scale * dot(&q[r..r + d], &k[at(j)..at(j) + d])).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        let lse = if scores.is_empty() { f64::NEG_INFINITY } else { top + total.ln() };
        w.lse[head * case.queries() + row] = lse;
        let p: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
        for (j, p) in keys.clone().zip(&p) {
            (0..d).for_each(|c| w.o[r + c] += p * v[at(j) + c]);
        }
        let delta: f64 = (0..d).map(|c| stored.round(w.o[r + c]) * dout[r + c]).sum();
        for (j, p) in keys.zip(&p) {
            let ds = p * (dot(&dout[r..r + d], &v[at(j)..at(j) + d]) - delta) * scale;
            for c in 0..d {
                w.dv[at(j) + c] += p * dout[r + c];
                w.dq[r + c] += ds * k[at(j) + c];
                w.dk[at(j) + c] += ds * q[r + c];
            }
        }
    });
    w
}

/// Sequence and stretch of each block of 64 rows.
fn tiles(cu: &[u32]) -> Vec<u32> {
    let stretches = cu.windows(2).enumerate().map(|(i, c)| (i as u32, (c[1] - c[0]).div_ceil(64)));
    stretches.flat_map(|(i, n)| (0..n).rev().flat_map(move |b| [i, b])).collect()
}

pub(crate) fn spans(gpu: &mut Gpu, case: &Case, cu: &[u32]) -> (Arg, u32) {
    let tiles = tiles(cu);
    let lists = [&case.cu_q, &case.cu_k, &tiles].map(|list| match gpu.words(list) {
        Arg::U64(at) => at,
        _ => unreachable!("words have an address"),
    });
    let numbers = [case.queries(), case.heads, case.kv_heads, case.window.unwrap_or(1 << 30)].map(|n| n as u32);
    let mut bytes: Vec<u8> = lists.iter().flat_map(|at| at.to_le_bytes()).collect();
    bytes.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend(SCALE.to_le_bytes());
    bytes.extend((case.cu_q.len() as u32 - 1).to_le_bytes());
    (Arg::Bytes(bytes), tiles.len() as u32 / 2)
}

pub(crate) fn case(heads: (usize, usize, usize), window: Option<usize>, cu_q: &[u32], cu_k: &[u32]) -> Case {
    let (heads, kv_heads, dim) = heads;
    Case { heads, kv_heads, dim, window, cu_q: cu_q.to_vec(), cu_k: cu_k.to_vec() }
}
