//! Speed of the CPU kernels beside the peak of the processor, measured in the same run.
//!
//! `cargo bench -p ferrotune-tensor --bench kernels [filter]`. Each figure is the best of many short repetitions, so
//! that other work on the machine disturbs it little. GFLOP/s count 2 m n k, and causal attention its visible half.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use ferrotune_tensor::cpu::*;
use half::bf16;
use std::time::{Duration, Instant};

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let bench = Bench { filter };
    println!("level {:?}, {} threads", features(), rayon::current_num_threads());
    peak::report();
    products(&bench);
    attention(&bench);
    elementwise(&bench);
}

struct Bench {
    filter: String,
}

impl Bench {
    /// Prints `work / best time` in units of 1e9 a second.
    fn run(&self, name: &str, unit: &str, work: f64, mut f: impl FnMut()) {
        if !name.contains(&self.filter) {
            return;
        }
        let mut best = f64::INFINITY;
        let start = Instant::now();
        let mut rounds = 0;
        while rounds < 5 || (start.elapsed() < Duration::from_millis(250) && rounds < 2000) {
            let one = Instant::now();
            f();
            best = best.min(one.elapsed().as_secs_f64());
            rounds += 1;
        }
        println!("{name:44} {:9.1} {unit:8} {:10.1} us", work / best * 1e-9, best * 1e6);
    }
}

fn floats(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
}

fn halves(n: usize) -> Vec<bf16> {
    floats(n).into_iter().map(bf16::from_f32).collect()
}

/// `x W^T`, `dy W` and `dy^T x` in f32 and bf16, then the thin shapes of LoRA and decoding.
fn products(bench: &Bench) {
    let shapes = [
        (512, 576, 576),
        (512, 192, 576),
        (512, 1536, 576),
        (512, 576, 1536),
        (65, 576, 576),
        (65, 1536, 576),
        (256, 1024, 1024),
        (1024, 1024, 1024),
        (2, 576, 576),
        (1, 1536, 576),
        (1, 49152, 576),
    ];
    for (m, n, k) in shapes {
        let (x, w) = (floats(m * k), floats(n * k));
        let (xh, wh) = (halves(m * k), halves(n * k));
        let mut c = vec![0.0; m * n];
        let mut ch = vec![bf16::ZERO; m * n];
        for orientation in ["nt", "nn", "tn"] {
            let (ta, tb) = (orientation.starts_with('t'), orientation.ends_with('t'));
            let (lda, ldb) = (if ta { m } else { k }, if tb { k } else { n });
            let args = |a, b| Gemm {
                m,
                n,
                product: Product {
                    alpha: 1.0,
                    a: Mat { data: a, ld: lda, trans: ta },
                    b: Mat { data: b, ld: ldb, trans: tb },
                    k,
                },
                second: None,
                beta: 0.0,
                bias: None,
            };
            let work = 2.0 * (m * n * k) as f64;
            let f = args(Data::F32(&x), Data::F32(&w));
            bench.run(&format!("gemm f32 {orientation} {m}x{n}x{k}"), "GFLOP/s", work, || {
                gemm(&f, DataMut::F32(&mut c), n)
            });
            let h = args(Data::Bf16(&xh), Data::Bf16(&wh));
            bench.run(&format!("gemm bf16 {orientation} {m}x{n}x{k}"), "GFLOP/s", work, || {
                gemm(&h, DataMut::Bf16(&mut ch), n)
            });
        }
    }
    lora(bench);
}

/// The products of one adapted linear layer, 512 tokens, 576 x 1536, rank 8.
fn lora(bench: &Bench) {
    let (t, out, inp, r) = (512, 1536, 576, 8);
    let (x, dy, w) = (floats(t * inp), floats(t * out), floats(out * inp));
    let (xh, dyh, wh) = (halves(t * inp), halves(t * out), halves(out * inp));
    let (a, b, u) = (floats(r * inp), floats(out * r), floats(t * r));
    let mut y = vec![0.0; t * out];
    let mut yh = vec![bf16::ZERO; t * out];
    let mut small = vec![0.0; t * r.max(8)];
    let mut grad = vec![0.0; out * r];
    for half in [false, true] {
        let tag = if half { "bf16" } else { "f32" };
        let pick = |f, h| if half { Data::Bf16(h) } else { Data::F32(f) };
        let (x, dy, w) = (pick(&x[..], &xh[..]), pick(&dy, &dyh), pick(&w, &wh));
        let (a, b, u) = (Data::F32(&a), Data::F32(&b), Data::F32(&u));
        let one = |m, n, alpha, a, b, k| Gemm {
            m,
            n,
            product: Product { alpha, a, b, k },
            second: None,
            beta: 0.0,
            bias: None,
        };
        let work = |n: usize| 2.0 * (t * n * r) as f64;
        let g = one(t, r, 1.0, Mat::new(x, inp), Mat::transposed(a, inp), inp);
        bench.run(&format!("lora {tag} u = x A'"), "GFLOP/s", work(inp), || gemm(&g, DataMut::F32(&mut small), r));
        let g = one(t, r, 1.0, Mat::new(dy, out), Mat::new(b, r), out);
        bench.run(&format!("lora {tag} du = dy B"), "GFLOP/s", work(out), || gemm(&g, DataMut::F32(&mut small), r));
        let g = one(out, r, 1.0, Mat::transposed(dy, out), Mat::new(u, r), t);
        bench.run(&format!("lora {tag} dB = dy' u"), "GFLOP/s", work(out), || gemm(&g, DataMut::F32(&mut grad), r));
        let g = one(r, inp, 1.0, Mat::transposed(u, r), Mat::new(x, inp), t);
        bench.run(&format!("lora {tag} dA = du' x"), "GFLOP/s", work(inp), || gemm(&g, DataMut::F32(&mut grad), inp));
        let low = Product { alpha: 2.0, a: Mat::new(u, r), b: Mat::transposed(b, r), k: r };
        let mut g = one(t, out, 1.0, Mat::new(x, inp), Mat::transposed(w, inp), inp);
        g.second = Some(low);
        let all = 2.0 * (t * out * (inp + r)) as f64;
        bench.run(&format!("lora {tag} y = x W' + u B'"), "GFLOP/s", all, || {
            let c = if half { DataMut::Bf16(&mut yh) } else { DataMut::F32(&mut y) };
            gemm(&g, c, out);
        });
    }
}

/// SmolLM2-135M's heads; one sequence of 512 and of 2048 tokens, and eight of 65.
fn attention(bench: &Bench) {
    let (heads, kv_heads, head_dim) = (9, 3, 64);
    for (count, length) in [(1, 512), (8, 65), (1, 2048)] {
        let cu: Vec<u32> = (0..=count).map(|i| i * length).collect();
        let tokens = (count * length) as usize;
        let shape = AttentionShape { heads, kv_heads, head_dim, window: None, scale: 0.125, cu_q: &cu, cu_k: &cu };
        let (nq, nk) = (tokens * heads * head_dim, tokens * kv_heads * head_dim);
        let work = f64::from(count * length * (length + 1)) * (2 * heads * head_dim) as f64;
        let mut lse = vec![0.0; heads * tokens];
        let mut workspace = vec![0.0; attention_backward_workspace(&shape)];
        let x = floats(nq);
        let (mut o, mut dq, mut dk, mut dv) = (x.clone(), x.clone(), floats(nk), floats(nk));
        let args = Attention { shape, q: Data::F32(&x), k: Data::F32(&x[..nk]), v: Data::F32(&x[nk..2 * nk]) };
        let name = format!("{count}x{length}");
        bench.run(&format!("attention f32 forward {name}"), "GFLOP/s", work, || {
            attention_forward(&args, DataMut::F32(&mut o), &mut lse)
        });
        let grad = AttentionGrad { o: Data::F32(&o), lse: &lse, dout: Data::F32(&x) };
        bench.run(&format!("attention f32 backward {name}"), "GFLOP/s", 2.5 * work, || {
            let to = (DataMut::F32(&mut dq), DataMut::F32(&mut dk), DataMut::F32(&mut dv));
            attention_backward(&args, &grad, to, &mut workspace);
        });
        let x = halves(nq);
        let (mut o, mut dq, mut dk, mut dv) = (x.clone(), x.clone(), halves(nk), halves(nk));
        let args = Attention { shape, q: Data::Bf16(&x), k: Data::Bf16(&x[..nk]), v: Data::Bf16(&x[nk..2 * nk]) };
        bench.run(&format!("attention bf16 forward {name}"), "GFLOP/s", work, || {
            attention_forward(&args, DataMut::Bf16(&mut o), &mut lse)
        });
        let grad = AttentionGrad { o: Data::Bf16(&o), lse: &lse, dout: Data::Bf16(&x) };
        bench.run(&format!("attention bf16 backward {name}"), "GFLOP/s", 2.5 * work, || {
            let to = (DataMut::Bf16(&mut dq), DataMut::Bf16(&mut dk), DataMut::Bf16(&mut dv));
            attention_backward(&args, &grad, to, &mut workspace);
        });
    }
}

/// 512 tokens of SmolLM2-135M, f32; bytes are those that must be read and written.
fn elementwise(bench: &Bench) {
    let (t, h, f, vocab) = (512, 576, 1536, 49152);
    let w = floats(h);
    let (x, mut y, mut z) = (floats(t * f), floats(t * f), floats(t * f));
    let mut rstd = vec![0.0; t];
    let bytes = |n: usize| 4.0 * n as f64;
    bench.run("rmsnorm", "GB/s", bytes(2 * t * h), || {
        rmsnorm(Data::F32(&x[..t * h]), Data::F32(&w), 1e-5, DataMut::F32(&mut y[..t * h]), &mut rstd);
    });
    let grad = RmsNormGrad { x: Data::F32(&x[..t * h]), w: Data::F32(&w), rstd: &rstd, dy: Data::F32(&x[..t * h]) };
    bench.run("rmsnorm backward", "GB/s", bytes(3 * t * h), || {
        rmsnorm_backward(&grad, DataMut::F32(&mut y[..t * h]), None, &mut []);
    });
    let (cos, sin) = (floats(t * 32), floats(t * 32));
    bench.run("rope", "GB/s", bytes(2 * t * h), || rope(DataMut::F32(&mut y[..t * h]), &cos, &sin, 64, false));
    bench.run("swiglu", "GB/s", bytes(3 * t * f), || swiglu(Data::F32(&x), Data::F32(&x), DataMut::F32(&mut y)));
    bench.run("swiglu backward", "GB/s", bytes(5 * t * f), || {
        let to = (DataMut::F32(&mut y), DataMut::F32(&mut z));
        swiglu_backward(Data::F32(&x), Data::F32(&x), Data::F32(&x), to.0, to.1);
    });
    bench.run("add_assign", "GB/s", bytes(3 * t * f), || add_assign(DataMut::F32(&mut y), Data::F32(&x)));
    let mut half = halves(t * f);
    bench.run("cast to bf16", "GB/s", bytes(t * f) * 1.5, || cast(DataMut::Bf16(&mut half), Data::F32(&x)));
    bench.run("sum_of_squares", "GB/s", bytes(t * f), || {
        std::hint::black_box(sum_of_squares(Data::F32(&x)));
    });
    let index: Vec<u32> = (0..t as u32).collect();
    let key = NoiseKey { seed: 1, step: 2, site: 3, samples: &index, positions: &index };
    bench.run("dropout", "GB/s", bytes(2 * t * h), || {
        dropout(Data::F32(&x[..t * h]), DataMut::F32(&mut y[..t * h]), h, 0.1, &key);
    });
    let mut logits = floats(64 * vocab);
    let (labels, mut losses) = (vec![5; 64], vec![0.0; 128]);
    let options = CrossEntropy { vocab, smoothing: 0.0, scale: 1.0, gradient: true };
    bench.run("cross_entropy", "GB/s", bytes(2 * 64 * vocab), || {
        cross_entropy(&options, &mut logits, &labels, &mut losses)
    });
    let step = AdamW { rate: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 3, grad_scale: 1.0 };
    let (mut m, mut v) = (floats(t * f), vec![1.0; t * f]);
    bench.run("adamw", "GB/s", bytes(7 * t * f), || {
        adamw(&step, DataMut::F32(&mut y), &x, AdamWState { m: &mut m, v: &mut v, master: None });
    });
}

/// Register-only loops: what the processor could do at best.
mod peak {
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn report() {
        use ferrotune_tensor::cpu::{Level, features};
        use std::time::Instant;
        let threads = rayon::current_num_threads();
        let best = |flops: f64, f: &(dyn Fn() + Sync)| {
            let times = (0..20).map(|_| {
                let start = Instant::now();
                rayon::broadcast(|_| f());
                start.elapsed().as_secs_f64()
            });
            flops * threads as f64 / times.fold(f64::INFINITY, f64::min) * 1e-9
        };
        let work = (LOOPS * CHAINS * 16 * 2) as f64;
        if features() >= Level::Avx512 {
            // SAFETY: the level was found available.
            println!("peak f32  {:9.1} GFLOP/s", best(work, &|| unsafe { fma() }));
        }
        if features() >= Level::Avx512Bf16 {
            // SAFETY: the level was found available.
            println!("peak bf16 {:9.1} GFLOP/s", best(2.0 * work, &|| unsafe { dot() }));
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn report() {}

    #[cfg(target_arch = "x86_64")]
    const CHAINS: usize = 24;
    #[cfg(target_arch = "x86_64")]
    const LOOPS: usize = 200_000;

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn fma() {
        use std::arch::x86_64::*;
        let mut acc = [_mm512_setzero_ps(); CHAINS];
        let x = std::hint::black_box(_mm512_set1_ps(0.5));
        for _ in 0..LOOPS {
            for a in &mut acc {
                *a = _mm512_fmadd_ps(x, x, *a);
            }
        }
        std::hint::black_box(acc);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dot() {
        use std::arch::x86_64::*;
        let mut acc = [_mm512_setzero_ps(); CHAINS];
        let half = std::hint::black_box(_mm512_set1_ps(0.5));
        // SAFETY: both are 64 bytes of any bits.
        let x = unsafe { std::mem::transmute::<__m512, __m512bh>(half) };
        for _ in 0..LOOPS {
            for a in &mut acc {
                *a = _mm512_dpbf16_ps(*a, x, x);
            }
        }
        std::hint::black_box(acc);
    }
}
