//! What a step measures on its device: the losses of its micro-batches and the squares of its gradients. One rank's device clips
//! and updates by them without the host, which reads both at once when all work of the step has been begun.

use ferrotune_tensor::{DType, Device, Kind, Tensor};

/// Numbers of one step, in one tensor, so that they are read in one copy.
pub(crate) struct Gauge {
    /// The sum of squares, then the losses, two a number.
    all: Tensor,
    micro_batches: usize,
}

impl Gauge {
    /// Zeros.
    pub(crate) fn new(device: &Device, micro_batches: usize) -> Self {
        let all = device.zeros([1 + micro_batches.div_ceil(2)], DType::F64, Kind::Act);
        Self { all, micro_batches }
    }

    /// Sum of the gradients' squares, `[1]` in f64.
    pub(crate) fn squares(&self) -> Tensor {
        self.all.view(0, [1], DType::F64)
    }

    /// The losses, a micro-batch each, in f32.
    pub(crate) fn losses(&self) -> Tensor {
        self.all.view(8, [self.micro_batches], DType::F32)
    }

    /// The loss of a micro-batch, `[1]`.
    pub(crate) fn loss(&self, number: usize) -> Tensor {
        self.losses().view(4 * number, [1], DType::F32)
    }

    /// Sum of the losses, and of the squares; zeros where nobody executes. A GPU is waited for.
    pub(crate) fn read(&self) -> (f64, f64) {
        let (mut loss, mut squares) = (0.0, 0.0);
        self.all.with_bytes(|bytes| {
            let (first, rest) = bytes.split_at(8);
            squares = first.try_into().map_or(f64::NAN, f64::from_le_bytes);
            let losses = rest.as_chunks().0.iter().take(self.micro_batches);
            loss = losses.fold(0.0, |sum, loss| sum + f64::from(f32::from_le_bytes(*loss)));
        });
        (loss, squares)
    }

    /// Puts the squares of all ranks in the place of this one's.
    pub(crate) fn put_squares(&self, squares: f64) {
        self.squares().with_bytes_mut(|bytes| bytes.copy_from_slice(&squares.to_le_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_and_squares_are_read_apart() {
        for micro_batches in [0, 1, 2, 5] {
            let gauge = Gauge::new(&Device::cpu(), micro_batches);
            for number in 0..micro_batches {
                gauge.loss(number).write_f32(&[0.5 + number as f32]);
            }
            gauge.put_squares(7.25);
            let sum: f64 = (0..micro_batches).map(|number| 0.5 + number as f64).sum();
            assert_eq!(gauge.read(), (sum, 7.25));
            assert_eq!(gauge.losses().numel(), micro_batches);
        }
        assert_eq!(Gauge::new(&Device::meta(), 3).read(), (0.0, 0.0));
    }
}
