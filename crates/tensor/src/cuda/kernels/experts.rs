//! `kernels/experts.cu`: routing, the order of rows by expert, weighted sums, gates; and the keys of sorted rows' dropout.

use super::rows::NoiseSource;
use super::{a_block_a_row, blocks, name, size};
use crate::Tensor;
use crate::cuda::gpu::{Arg, Gpu, Shape};
use crate::cuda::images::Image;
use crate::ops::Routes;

/// Most experts of a router: a bit for each of a lane's, and a counter each in a warp's shared memory.
const MOST_EXPERTS: usize = 1024;
/// Choices that a warp counts.
const STRETCH: usize = 1024;
/// Sorted rows of a tile, all of one expert's.
const TILE: usize = 128;

/// Elements of workspace of a router: a counter for each expert and stretch of choices.
pub(crate) fn route_workspace(choices: usize, experts: usize) -> usize {
    choices.div_ceil(STRETCH) * experts
}

/// Elements of the list of tiles: as many as there can be, whoever is chosen.
pub(crate) fn expert_tiles(choices: usize, experts: usize) -> usize {
    3 * (choices.div_ceil(TILE) + experts)
}

/// What the kernel `expert_offsets` writes, for up to `capacity` rows whose `offsets` are known: the expert of each tile, its
/// first row, and the end of its expert's rows.
pub(crate) fn tiles_of(capacity: usize, offsets: &[u32]) -> Vec<u32> {
    let mut tiles = vec![u32::MAX; expert_tiles(capacity, offsets.len() - 1)];
    let experts = (0..).zip(offsets.windows(2));
    let of = |(expert, at): (u32, &[u32])| {
        let (begin, end) = (at[0], at[1]);
        (begin..end).step_by(TILE).map(move |first| [expert, first, end]).collect::<Vec<_>>()
    };
    tiles.as_chunks_mut::<3>().0.iter_mut().zip(experts.flat_map(of)).for_each(|(to, tile)| *to = tile);
    tiles
}

/// A warp for each of `rows` rows, eight a block.
fn a_warp_a_row(rows: usize) -> Shape {
    Shape::new([blocks(rows.div_ceil(8)), 1, 1], [32, 8, 1])
}

impl Gpu {
    /// Softmax of the logits, weights, choices, and the order of rows; `counts` is workspace.
    pub(crate) fn route(
        &self,
        logits: &Tensor,
        [probabilities, weights]: [&Tensor; 2],
        routes: &Routes,
        counts: &Tensor,
    ) {
        let (args, choices) = (routes.args, routes.rows());
        if args.experts > MOST_EXPERTS {
            return self.lacks(format!("a router of {} experts", args.experts));
        }
        let (experts, top_k, tokens) = (size(args.experts), size(args.top_k), logits.shape().rows());
        let head = [logits.into(), probabilities.into(), weights.into(), (&routes.chosen).into()];
        let tail = [size(tokens), experts, top_k, u32::from(args.normalize).into()];
        let shape = Shape::new([blocks(tokens.div_ceil(4)), 1, 1], [32, 4, 1]);
        self.launch(Image::Experts, "route_choose", shape, &[head, tail].concat());
        let (stretches, all) = (choices.div_ceil(STRETCH), size(choices));
        let warps = a_block_a_row(stretches, 32);
        let args = [(&routes.chosen).into(), counts.into(), all, experts];
        self.launch(Image::Experts, "expert_counts", warps, &args);
        let most = size(routes.tiles.numel() / 3);
        // Blocks behind the last tile read all of theirs before they see that there is none.
        self.fill(routes.tiles.address(), 0xff, routes.tiles.bytes());
        let head = [counts.into(), (&routes.offsets).into(), (&routes.tiles).into()];
        let args = [&head[..], &[size(stretches), experts, size(TILE), most]].concat();
        self.launch(Image::Experts, "expert_offsets", Shape::new([1, 1, 1], [1024, 1, 1]), &args);
        let head = [(&routes.chosen).into(), counts.into(), (&routes.slots).into(), (&routes.sources).into()];
        self.launch(Image::Experts, "expert_slots", warps, &[&head[..], &[all, experts, top_k]].concat());
    }

    /// Adds choices and probabilities to a census.
    pub(crate) fn census(&self, probabilities: &Tensor, routes: &Routes, census: &Tensor) {
        let (tokens, experts) = (probabilities.shape().rows(), routes.args.experts);
        let args = [probabilities.into(), (&routes.offsets).into(), census.into(), size(tokens), size(experts)];
        let shape = Shape::new([blocks(experts.div_ceil(32)), 1, 1], [32, 8, 1]);
        self.launch(Image::Experts, "expert_census", shape, &args);
    }

    /// The gradient of the logits.
    pub(crate) fn route_backward(
        &self,
        probabilities: &Tensor,
        routes: &Routes,
        (dweights, prices): (&Tensor, Option<&Tensor>),
        dlogits: &Tensor,
    ) {
        let (args, tokens) = (routes.args, probabilities.shape().rows());
        let head = [probabilities.into(), (&routes.chosen).into(), dweights.into(), prices.into(), dlogits.into()];
        let tail = [size(tokens), size(args.experts), size(args.top_k), u32::from(args.normalize).into()];
        let shape = Shape::new([blocks(tokens.div_ceil(4)), 1, 1], [32, 4, 1]);
        self.launch(Image::Experts, "route_backward", shape, &[&head[..], &tail].concat());
    }

    /// The sum of each token's rows; without weights each counts once.
    pub(crate) fn combine(&self, rows: &Tensor, routes: &Routes, weights: Option<&Tensor>, y: &Tensor) {
        let (tokens, width) = (y.shape().rows(), y.shape().last());
        let args = [rows.into(), (&routes.slots).into(), weights.into(), y.into()];
        let args = [&args[..], &[size(width), size(routes.args.top_k)]].concat();
        self.launch(Image::Experts, &format!("combine_{}", name(y)), a_block_a_row(tokens, 256), &args);
    }

    /// The gradients of rows and weights.
    pub(crate) fn combine_backward(
        &self,
        [dy, rows, weights]: [&Tensor; 3],
        routes: &Routes,
        [drows, dweights]: [&Tensor; 2],
    ) {
        let (choices, width) = (routes.rows(), dy.shape().last());
        let head = [dy.into(), rows.into(), (&routes.slots).into(), weights.into(), drows.into(), dweights.into()];
        let args = [&head[..], &[size(choices), size(width), size(routes.args.top_k)]].concat();
        self.launch(Image::Experts, &format!("combine_backward_{}", name(dy)), a_warp_a_row(choices), &args);
    }

    /// The keys of the sorted rows' random numbers.
    pub(crate) fn expert_noise(&self, noise: &NoiseSource<'_>, routes: &Routes, [samples, positions]: [&Tensor; 2]) {
        let choices = routes.rows();
        let lists = [&routes.slots, &routes.chosen, noise.samples, noise.positions, samples, positions];
        let numbers = [choices, routes.args.top_k, routes.args.experts].map(size);
        let shape = Shape::new([blocks(choices.div_ceil(256)), 1, 1], [256, 1, 1]);
        self.launch(Image::Experts, "expert_noise", shape, &[&lists.map(Arg::from)[..], &numbers].concat());
    }

    /// `out = y + sigmoid(gate) z`.
    pub(crate) fn add_gated(&self, [y, z, gate]: [&Tensor; 3], out: &Tensor) {
        let (rows, width) = (y.shape().rows(), y.shape().last());
        let args = [y.into(), z.into(), gate.into(), out.into(), size(rows), size(width)];
        self.launch(Image::Experts, &format!("add_gated_{}", name(out)), a_warp_a_row(rows), &args);
    }

    /// The gradients of z and the gate.
    pub(crate) fn add_gated_backward(&self, [d, z, gate]: [&Tensor; 3], [dz, dgate]: [&Tensor; 2]) {
        let (rows, width) = (d.shape().rows(), d.shape().last());
        let args = [d.into(), z.into(), gate.into(), dz.into(), dgate.into(), size(rows), size(width)];
        self.launch(Image::Experts, &format!("add_gated_backward_{}", name(d)), a_warp_a_row(rows), &args);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_of_one_expert_each() {
        let tiles = tiles_of(400, &[0, 0, 129, 130]);
        assert_eq!(tiles.len(), expert_tiles(400, 3));
        assert_eq!(tiles[..9], [1, 0, 129, 1, 128, 129, 2, 129, 130]);
        assert!(tiles[9..].iter().all(|&rest| rest == u32::MAX));
    }
}
