//! What orders the two streams and the host, left away one call at a time: each must be missed.
//!
//! Tensors of a quarter of the pinned ring are uploaded one after the other, the next into the memory of the last; a few values of
//! each are kept, and read at the end. So the ring wraps, memory is given out again while its readers wait in their queue, and
//! every mark, wait and synchronisation stands between somebody and wrong values.

use super::gpus::{calls, open, set};
use ferrotune_tensor::cuda::Options;
use ferrotune_tensor::{DType, Kind, Tensor, ops};

/// The number of this test's device.
const DEVICE: usize = 60;
const UPLOADS: usize = 6;

/// What is kept; `None` if the GPU failed.
fn traffic(settings: &str) -> Option<Vec<f32>> {
    set(DEVICE, settings);
    let gpu = open(&Options { device: DEVICE, ..Options::default() });
    let kept = gpu.empty([UPLOADS, 16], DType::F32, Kind::Act);
    for number in 0..UPLOADS {
        let x = Tensor::from_f32(&gpu, &vec![number as f32 + 1.0; 2_000_000], [2_000_000], Kind::Input);
        ops::copy(&kept.rows(number, 1), &x.view(4 * 1_999_000, [16], DType::F32));
    }
    let values = kept.to_f32();
    gpu.check().ok().map(|()| values)
}

#[test]
fn no_mark_wait_or_synchronisation_can_be_left_away() {
    let want: Vec<f32> = (0..UPLOADS).flat_map(|number| [number as f32 + 1.0; 16]).collect();
    for seed in 0..6 {
        assert_eq!(traffic(&format!("seed={seed}")).as_ref(), Some(&want));
    }
    let functions = ["cuStreamWaitEvent", "cuEventRecord", "cuStreamSynchronize", "cuEventSynchronize"];
    let counts = functions.map(|name| calls(DEVICE, name));
    let mut survivors = Vec::new();
    for (name, count) in functions.into_iter().zip(counts) {
        for number in 1..=count {
            let missed =
                (0..16).any(|seed| traffic(&format!("seed={seed},drop={name}:{number}")) != Some(want.clone()));
            if !missed {
                survivors.push((name, number));
            }
        }
    }
    // The first upload goes into memory that nobody has used: nothing comes before it. The download takes the third upload's piece
    // of the ring, and follows it in the copies' stream.
    let spared = [("cuStreamWaitEvent", 1), ("cuEventRecord", 1), ("cuEventSynchronize", 3)];
    assert_eq!(survivors, spared, "of {counts:?}");
    // Two a piece of work, before and after it, and one before the download; three pieces of the ring are used again.
    assert_eq!(counts, [2 * UPLOADS as u64 + 1, 2 * UPLOADS as u64 + 1, 1, 3]);
}
