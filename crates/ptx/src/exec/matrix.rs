//! `ldmatrix` and `mma.m16n8k16`, whose fragments lie as the PTX manual's figures have them.

use super::Context;
use crate::Cause;
use crate::decode::op::Op;
use crate::forms::{bf16_to_f32, f16_to_f32, truncate};
use crate::warp::Warp;

pub(super) fn run(cx: &mut Context<'_>, warp: &mut Warp, op: &Op) -> Result<(), (usize, Cause)> {
    match *op {
        Op::LoadMatrix { to, count, transposed, at } => {
            for (matrix, to) in to.into_iter().enumerate().take(count.into()) {
                let rows = rows(cx, warp, at, matrix)?;
                let value = std::array::from_fn(|lane| {
                    let (row, pair) = (lane / 4, lane % 4 * 2);
                    let [low, high] = if transposed {
                        [rows[pair][row], rows[pair + 1][row]]
                    } else {
                        [rows[row][pair], rows[row][pair + 1]]
                    };
                    u32::from(low) | u32::from(high) << 16
                });
                warp.set_word(to, &value, u32::MAX);
            }
        }
        Op::Mma { to, a, b, c, bf16 } => {
            let widen = if bf16 { bf16_to_f32 } else { f16_to_f32 };
            let a = left(a.map(|r| *warp.word(r)), widen);
            let b = right(b.map(|r| *warp.word(r)), widen);
            let sums = c.map(|r| warp.word(r).map(f32::from_bits));
            for (i, to) in to.into_iter().enumerate() {
                let value = std::array::from_fn(|lane| {
                    let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
                    let products = a[row].iter().zip(&b[column]).map(|(x, y)| x * y).sum::<f64>();
                    truncate(f64::from(sums[i][lane]) + products).to_bits()
                });
                warp.set_word(to, &value, u32::MAX);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Eight rows of eight elements, whose addresses eight lanes give.
fn rows(
    cx: &mut Context<'_>,
    warp: &Warp,
    at: crate::decode::op::Address,
    matrix: usize,
) -> Result<[[u16; 8]; 8], (usize, Cause)> {
    let mut rows = [[0; 8]; 8];
    cx.traffic.shared(&std::array::from_fn::<_, 8, _>(|i| warp.address(at, matrix * 8 + i)), 16);
    for (i, row) in rows.iter_mut().enumerate() {
        let lane = matrix * 8 + i;
        let address = warp.address(at, lane);
        if !address.is_multiple_of(16) {
            return Err((lane, Cause::Misaligned { address, bytes: 16 }));
        }
        let bytes = cx.shared.load(warp.user(lane), address, 16).map_err(|cause| (lane, cause))?;
        for (value, pair) in row.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *value = u16::from_le_bytes(*pair);
        }
    }
    Ok(rows)
}

fn halves(word: u32, widen: fn(u32) -> f32) -> [f64; 2] {
    [f64::from(widen(word & 0xffff)), f64::from(widen(word >> 16))]
}

/// The 16 x 16 operand by rows.
fn left(registers: [[u32; 32]; 4], widen: fn(u32) -> f32) -> [[f64; 16]; 16] {
    let mut matrix = [[0.0; 16]; 16];
    for (i, register) in registers.iter().enumerate() {
        for (lane, &word) in register.iter().enumerate() {
            let (row, column) = (lane / 4 + i % 2 * 8, lane % 4 * 2 + i / 2 * 8);
            matrix[row][column..column + 2].copy_from_slice(&halves(word, widen));
        }
    }
    matrix
}

/// The 16 x 8 operand by columns.
fn right(registers: [[u32; 32]; 2], widen: fn(u32) -> f32) -> [[f64; 16]; 8] {
    let mut matrix = [[0.0; 16]; 8];
    for (i, register) in registers.iter().enumerate() {
        for (lane, &word) in register.iter().enumerate() {
            let row = lane % 4 * 2 + i * 8;
            matrix[lane / 4][row..row + 2].copy_from_slice(&halves(word, widen));
        }
    }
    matrix
}
