//! What a step measures on its devices: the losses of its micro-batches and the squares of its gradients, of all ranks. Devices clip
//! and update by them without their hosts, which read all at once when all work of the step has been begun.

use crate::Result;
use ferrotune_dist::Mesh;
use ferrotune_tensor::{DType, Device, Kind, Tensor, ops};
use std::ops::Range;

/// Numbers of one step, in one tensor, so that they are read in one copy.
pub(crate) struct Gauge {
    /// In f64 the sum of the squares of a whole model's gradients and then that of each rank's; in f32 the losses of each rank's
    /// micro-batches.
    all: Tensor,
    micro_batches: usize,
    world: usize,
    rank: usize,
    /// Ranks that hold a whole model together, this one among them.
    model: Range<usize>,
}

impl Gauge {
    /// Zeros.
    pub(crate) fn new(device: &Device, mesh: &Mesh, micro_batches: usize) -> Self {
        let (layout, world, rank) = (mesh.layout(), mesh.world.world(), mesh.world.rank());
        let ranks = layout.shards * layout.stages;
        let begin = rank / ranks * ranks;
        let numbers = 1 + world + (world * micro_batches).div_ceil(2);
        let all = device.zeros([numbers], DType::F64, Kind::Act);
        Self { all, micro_batches, world, rank, model: begin..begin + ranks }
    }

    /// Squares of ranks.
    fn squares_of(&self, ranks: Range<usize>) -> Tensor {
        self.all.view(8 * (1 + ranks.start), [ranks.len()], DType::F64)
    }

    /// Losses of ranks.
    fn losses_of(&self, ranks: Range<usize>) -> Tensor {
        let begin = 8 * (1 + self.world) + 4 * self.micro_batches * ranks.start;
        self.all.view(begin, [ranks.len() * self.micro_batches], DType::F32)
    }

    /// Sum of this rank's squares, `[1]` in f64.
    pub(crate) fn squares(&self) -> Tensor {
        self.squares_of(self.rank..self.rank + 1)
    }

    /// The loss of a micro-batch of this rank, `[1]`.
    pub(crate) fn loss(&self, number: usize) -> Tensor {
        self.losses_of(self.rank..self.rank + 1).view(4 * number, [1], DType::F32)
    }

    /// Brings the numbers of all ranks together, and returns the factor of gradients that [`ops::clip_factor`] makes of them:
    /// the same bits on all ranks, and nobody waits for a device. A collective.
    ///
    /// # Errors
    /// If a rank is lost.
    pub(crate) fn clip(&self, mesh: &Mesh, scale: f64, most: f64) -> Result<Tensor> {
        let world = &mesh.world;
        let losses = self.losses_of(0..self.world);
        let squares = world.all_gather(&self.squares(), &self.squares_of(0..self.world));
        let own = self.losses_of(self.rank..self.rank + 1);
        let told = world.all_gather(&own, &losses);
        squares.wait()?;
        told.wait()?;
        let sum = self.all.view(0, [1], DType::F64);
        ops::add_all(&sum, &self.squares_of(self.model.clone()));
        Ok(ops::clip_factor(&sum, &losses, scale, most))
    }

    /// Sum of all losses, and of the squares; zeros where nobody executes. A GPU is waited for.
    pub(crate) fn read(&self) -> (f64, f64) {
        let (mut loss, mut squares) = (0.0, 0.0);
        self.all.with_bytes(|bytes| {
            let (first, rest) = bytes.split_at(8);
            squares = first.try_into().map_or(f64::NAN, f64::from_le_bytes);
            let losses = rest[8 * self.world..].as_chunks().0.chunks(self.micro_batches.max(1)).take(self.world);
            let of =
                |losses: &[[u8; 4]]| losses.iter().fold(0.0, |sum, loss| sum + f64::from(f32::from_le_bytes(*loss)));
            loss = losses.map(of).sum();
        });
        (loss, squares)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_dist::{Layout, Solo, threads};
    use std::rc::Rc;

    /// Losses are those of all ranks, squares those of one model; each rank has the same factor.
    #[test]
    fn all_ranks_measure_the_same() {
        for layout in [[1, 1, 1], [2, 1, 2], [1, 2, 2], [3, 1, 1]] {
            let [shards, stages, replicas] = layout;
            let layout = Layout { shards, stages, replicas };
            for micro_batches in [1, 2, 5] {
                let found = threads::run(layout.world(), |comm| {
                    let rank = comm.rank();
                    let mesh = Mesh::new(comm, layout);
                    let gauge = Gauge::new(&Device::cpu(), &mesh, micro_batches);
                    (0..micro_batches).for_each(|i| gauge.loss(i).write_f32(&[0.5 + (10 * rank + i) as f32]));
                    let place = layout.place(rank);
                    let own = 9.0 * (1 + place.shard + place.stage) as f64;
                    gauge.squares().with_bytes_mut(|bytes| bytes.copy_from_slice(&own.to_le_bytes()));
                    let clip = gauge.clip(&mesh, 0.5, 1.0).unwrap().to_f32();
                    (gauge.read(), clip)
                });
                let ranks = 0..layout.world();
                let loss: f64 = ranks.flat_map(|r| (0..micro_batches).map(move |i| 0.5 + (10 * r + i) as f64)).sum();
                let one = |i: usize| layout.place(i).shard + layout.place(i).stage + 1;
                let squares: f64 = (0..shards * stages).map(|i| 9.0 * one(i) as f64).sum();
                let clip = (1.0 / (0.5 * squares.sqrt() + 1e-6)) as f32;
                for (rank, (read, factor)) in found.into_iter().enumerate() {
                    assert_eq!((read, factor), ((loss, squares), vec![clip]), "{layout:?}, rank {rank}");
                }
            }
        }
        let alone = Mesh::replicas(Rc::new(Solo::default()));
        assert_eq!(Gauge::new(&Device::meta(), &alone, 3).read(), (0.0, 0.0));
    }
}
