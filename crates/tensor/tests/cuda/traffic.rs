//! What the kernels' accesses to memory cost, counted by the interpreter at sizes as models have them, against the table in
//! `kernels/traffic.md`: a change that makes an access uncoalesced or lets banks conflict shows there, without a GPU.
//!
//! `FERROTUNE_TEST_WRITE=1 cargo test -p ferrotune-tensor --test cuda traffic` writes the table again.

use super::attention;
use super::attention_plain;
use super::common::*;
use super::spans::case;
use super::stacks::{self, Case};
use ferrotune_ptx::{Arg, Memory, Traffic};
use std::fmt::Write as _;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/traffic.md");

const BLOCK: [u32; 3] = [256, 1, 1];
/// Kernels whose products run on matrix instructions, where a conflict costs most: no pass may be one too many.
const FREE_OF_CONFLICTS: [&str; 4] = ["attention_forward", "attention_backward", "grouped_bf16", "grouped_outer_bf16"];

fn n(x: usize) -> Arg {
    Arg::U32(x as u32)
}

#[test]
fn the_table_of_traffic_is_current() {
    let mut gpu = Gpu::new(Memory::new(), 1);
    elementwise(&mut gpu);
    rows(&mut gpu);
    heads(&mut gpu);
    experts(&mut gpu);
    products(&mut gpu);
    let mut text = String::from(
        "# Memory traffic of the kernels\n\nCounted by the interpreter at sizes as models have them; `crates/tensor/tests/cuda/traffic.rs` has the launches and writes\n\
         this table. Sectors: 32 bytes of global memory, as a warp's accesses touch them, each by itself. Passes: over the 32 banks of\n\
         shared memory. Beside each, how often the least that the same bytes need: 1.00 is coalesced, or free of conflicts.\n\n\
         | kernel | sectors | of the least | passes | of the least |\n|---|---|---|---|---|\n",
    );
    for (kernel, t) in &gpu.costs {
        let share = |all: u64, least: u64| if least == 0 { 1.0 } else { all as f64 / least as f64 };
        let (sectors, passes) = (share(t.sectors, t.least_sectors), share(t.passes, t.least_passes));
        writeln!(text, "| {kernel} | {} | {sectors:.2} | {} | {passes:.2} |", t.sectors, t.passes).expect("text");
        if FREE_OF_CONFLICTS.iter().any(|start| kernel.starts_with(start)) {
            assert!(passes < 1.005, "banks conflict in {kernel}: {t:?}");
        }
    }
    if std::env::var_os("FERROTUNE_TEST_WRITE").is_some() {
        std::fs::write(TABLE, &text).expect("the table's place");
    }
    let committed = std::fs::read_to_string(TABLE).expect("the committed table");
    assert_eq!(committed, text, "FERROTUNE_TEST_WRITE=1 writes the table again");
}

fn elementwise(gpu: &mut Gpu) {
    const COUNT: usize = 16384;
    let (of, count) = (Type::Bf16, Arg::U64(COUNT as u64));
    let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(|seed| gpu.array(of, &values(COUNT, seed, 1.0)));
    let wide = gpu.array(Type::F32, &values(COUNT, 6, 1.0));
    let grid = [4, 1, 1];
    gpu.launch("add_bf16", grid, BLOCK, &[a.into(), b.into(), count.clone()]);
    gpu.launch("cast_f32_bf16", grid, BLOCK, &[a.into(), wide.into(), count.clone()]);
    gpu.launch("cast_bf16_f32", grid, BLOCK, &[wide.into(), a.into(), count.clone()]);
    gpu.launch("swiglu_bf16", grid, BLOCK, &[a.into(), b.into(), c.into(), count.clone()]);
    gpu.launch(
        "swiglu_backward_bf16",
        grid,
        BLOCK,
        &[&[a, b, c, d, e].map(Arg::from)[..], std::slice::from_ref(&count)].concat(),
    );
    let [m, v] = [(); 2].map(|()| gpu.zeros(Type::F32, COUNT));
    let factors = Arg::Bytes([1f32; 9].iter().flat_map(|f| f.to_le_bytes()).collect());
    let args = [wide.into(), NULL, wide.into(), m.into(), v.into(), count.clone(), factors, NULL];
    gpu.launch("adamw_f32", grid, BLOCK, &args);
    let parts = gpu.memory.alloc(8);
    gpu.launch("squares_f32", [1, 1, 1], BLOCK, &[Arg::U64(parts), wide.into(), count]);
}

fn rows(gpu: &mut Gpu) {
    const ROWS: usize = 4;
    const WIDTH: usize = 2048;
    let of = Type::Bf16;
    let [x, y, dy, dx] = [1, 2, 3, 4].map(|seed| gpu.array(of, &values(ROWS * WIDTH, seed, 1.0)));
    let (w, rstd) = (gpu.array(of, &values(WIDTH, 5, 1.0)), gpu.empty(Type::F32, ROWS));
    let (grid, sizes) = ([ROWS as u32, 1, 1], [n(ROWS), n(WIDTH)]);
    let args = [&[x.into(), w.into(), Arg::F32(1e-6), y.into(), rstd.into()][..], &sizes].concat();
    gpu.launch("rmsnorm_bf16_bf16", grid, BLOCK, &args);
    let args = [&[x, w, rstd, dy, dx].map(Arg::from)[..], &sizes].concat();
    gpu.launch("rmsnorm_backward_bf16_bf16", grid, BLOCK, &args);
    let parts = gpu.empty(Type::F32, WIDTH);
    let args = [&[parts, x, dy, rstd].map(Arg::from)[..], &sizes, &[n(ROWS)]].concat();
    gpu.launch("rmsnorm_weight_parts_bf16", [WIDTH as u32 / 256, 1, 1], BLOCK, &args);
    let index = gpu.words(&[2, 0, 3, 1]);
    gpu.launch("gather_rows_bf16_bf16", grid, BLOCK, &[y.into(), x.into(), index.clone(), n(WIDTH)]);
    gpu.launch("scatter_rows_bf16_bf16", grid, BLOCK, &[y.into(), x.into(), index, n(WIDTH)]);
    let logits = gpu.array(Type::F32, &values(ROWS * WIDTH, 7, 4.0));
    let (labels, losses) = (gpu.words(&[1, 2, 3, 4]), gpu.empty(Type::F32, 2 * ROWS));
    let args = [logits.into(), y.into(), labels, losses.into(), n(WIDTH), Arg::F32(1.0), Arg::F32(0.0)];
    gpu.launch("cross_entropy_bf16", grid, BLOCK, &args);
    let (states, out) = (gpu.words(&[1; 2 * ROWS]), gpu.words(&[0; ROWS]));
    let args = [logits.into(), states, out, n(WIDTH), Arg::F32(1.0), n(20), Arg::F64(0.9), Arg::F32(0.0)];
    gpu.launch("sample", grid, [1024, 1, 1], &args);
}

fn heads(gpu: &mut Gpu) {
    const ROWS: usize = 8;
    const HEADS: usize = 4;
    const DIM: usize = 128;
    let of = Type::Bf16;
    let [x, y, dy, dx] = [1, 2, 3, 4].map(|seed| gpu.array(of, &values(ROWS * HEADS * DIM, seed, 1.0)));
    let [cos, sin] = [5, 6].map(|seed| gpu.array(Type::F32, &values(ROWS * DIM / 2, seed, 1.0)));
    let (w, rstd) = (gpu.array(of, &values(DIM, 7, 1.0)), gpu.empty(Type::F32, ROWS * HEADS));
    let (grid, block) = ([4, 1, 1], [32, 8, 1]);
    let sizes = [ROWS, HEADS, DIM].map(n);
    gpu.launch("rope_bf16", grid, block, &[&[x, cos, sin].map(Arg::from)[..], &sizes, &[Arg::F32(1.0)]].concat());
    let head = [x.into(), w.into(), Arg::F32(1e-6), cos.into(), sin.into(), y.into(), rstd.into()];
    gpu.launch("norm_rope_bf16_bf16", grid, block, &[&head[..], &sizes].concat());
    let head = [&[x, w, rstd, cos, sin, dy, dx].map(Arg::from)[..], &[NULL]].concat();
    gpu.launch("norm_rope_backward_bf16_bf16", grid, block, &[&head[..], &sizes, &[n(8)]].concat());
    for dim in [64, 96, 128, 256] {
        attention::compute(gpu, of, &case((2, 1, dim), None, &[0, 128], &[0, 128]));
    }
    attention_plain::compute(gpu, Type::F32, &case((2, 1, 128), None, &[0, 64], &[0, 64]));
}

fn experts(gpu: &mut Gpu) {
    const TOKENS: usize = 8;
    const WIDTH: usize = 2048;
    let (top_k, of) = (4, Type::Bf16);
    let choices = TOKENS * top_k;
    let [rows, drows] = [1, 2].map(|seed| gpu.array(of, &values(choices * WIDTH, seed, 1.0)));
    let [y, dy] = [3, 4].map(|seed| gpu.array(of, &values(TOKENS * WIDTH, seed, 1.0)));
    let [weights, dweights] = [5, 6].map(|seed| gpu.array(Type::F32, &values(choices, seed, 1.0)));
    let slots = gpu.words(&(0..choices as u32).map(|i| i * 7 % choices as u32).collect::<Vec<_>>());
    let args = [rows.into(), slots.clone(), weights.into(), y.into(), n(WIDTH), n(top_k)];
    gpu.launch("combine_bf16", [TOKENS as u32, 1, 1], BLOCK, &args);
    let head = [dy.into(), rows.into(), slots, weights.into(), drows.into(), dweights.into()];
    let args = [&head[..], &[choices, WIDTH, top_k].map(n)].concat();
    gpu.launch("combine_backward_bf16", [choices as u32 / 8, 1, 1], [32, 8, 1], &args);
}

fn products(gpu: &mut Gpu) {
    let of = Type::Bf16;
    let case = Case { counts: &[128, 128], n: 128, k: 128, rank: 32, trans: true, beta: 0.0 };
    let inputs = case.inputs();
    let tiles = gpu.words(&case.tiles()[..6]);
    for (to, columns, trans) in [(of, 128, "_trans"), (of, 128, ""), (Type::F32, 32, "_trans"), (Type::F32, 32, "")] {
        let [a, b, a2, b2] = [0, 1, 2, 3].map(|i| gpu.array(of, &inputs[i]));
        let c = gpu.array(to, &inputs[4]);
        let terms = [stacks::term((a, b), case.k, 1.0), stacks::term((a2, b2), case.rank, 1.0)];
        let args = [&terms[..], &[c.into(), n(case.n), Arg::F32(0.0), tiles.clone()]].concat();
        let shape = ([(case.n / columns) as u32, 2, 1], BLOCK, 192 * (128 + columns));
        gpu.launch_shared(&format!("grouped_bf16_{}_{columns}{trans}", to.name()), shape, &args);
    }
    let offsets = gpu.words(&case.offsets());
    for (rows, columns) in [(128, 128), (128, 32), (32, 128)] {
        let (a, b) = (gpu.array(of, &values(256 * rows, 1, 0.5)), gpu.array(of, &values(256 * columns, 2, 0.5)));
        let c = gpu.zeros(Type::F32, 2 * rows * columns);
        let args = [a.into(), b.into(), c.into(), n(rows), n(columns), Arg::F32(1.0), offsets.clone()];
        let shape = ([1, 1, 2], BLOCK, 192 * (rows + columns));
        gpu.launch_shared(&format!("grouped_outer_bf16_{rows}_{columns}"), shape, &args);
    }
    for trans in [0, 1] {
        let [a, b, c] = [0, 1, 4].map(|i| gpu.array(Type::F32, &inputs[i]));
        let terms = [stacks::term((a, b), case.k, 1.0), stacks::term((a, b), 0, 1.0)];
        let args = [&terms[..], &[c.into(), n(case.n), Arg::F32(0.0), n(trans), tiles.clone()]].concat();
        gpu.launch("grouped_plain_f32_f32_f32", [2, 2, 1], BLOCK, &args);
    }
}

#[test]
fn costs_are_told_apart() {
    let cost = |shift: usize| {
        let mut gpu = Gpu::new(Memory::new(), 1);
        let [a, b] = [1, 2].map(|seed| gpu.shifted(Type::F32, shift, &values(1024, seed, 1.0)));
        gpu.launch("add_f32", [1, 1, 1], BLOCK, &[a.into(), b.into(), Arg::U64(1024)]);
        gpu.costs["add_f32"]
    };
    let (straight, shifted): (Traffic, Traffic) = (cost(0), cost(1));
    assert_eq!(straight.sectors, straight.least_sectors);
    assert!(shifted.sectors > shifted.least_sectors, "{shifted:?}");
}
