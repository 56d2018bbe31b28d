//! What orders the work and the collectives, left away one call at a time: each must be missed.

use super::gpus::{PATIENCE, Rank, calls, run};
use super::tensor;
use ferrotune_dist::{Comm, NcclSettings};
use ferrotune_tensor::{DType, Kind, ops};
use std::time::Duration;

const STEPS: usize = 2;
/// What a wrong order may cost.
const SHORT: NcclSettings =
    NcclSettings { join_timeout: Duration::from_secs(5), collective_timeout: Duration::from_secs(1) };

/// What two ranks keep of a few steps, and how often the first called a function.
fn steps(first: &str, patience: NcclSettings, name: &str) -> (Vec<f32>, u64) {
    let kept = run(&[first, "seed=5"], patience, |Rank { comm, device, number }| {
        let sum = device.zeros([16], DType::F32, Kind::Act);
        for step in 0..STEPS {
            let gradient = tensor(&device, &vec![(comm.rank() + step) as f32; 4096]);
            ops::add_into(&gradient, &gradient);
            // Another value in each step, so that what an earlier one left in its place is seen. Before the collective, whose
            // calls come from a thread of its own: the numbers below are always of the same calls.
            let beside = tensor(&device, &[(step + 1) as f32; 16]);
            let ticket = comm.all_reduce(&gradient);
            ops::add_into(&sum, &beside);
            let _ = ticket.wait();
            ops::add_into(&sum, &gradient.view(4 * 4000, [16], DType::F32));
        }
        let values = sum.to_f32();
        let failed = device.check().is_err() || comm.ended().is_some();
        if failed {
            comm.fail("it is wrong");
        } else {
            let _ = comm.barrier();
        }
        (if failed { Vec::new() } else { values }, calls(number, name))
    });
    kept.into_iter().next().unwrap_or_default()
}

/// Calls that may be left away. Of those below, a step has 6 waits and 7 marks: copies after work and work after copies, for
/// the gradient and then for the tensor beside; the collective after work, with its begin and its end; work after the
/// collective.
const SPARED: [(&str, &[u64]); 2] = [
    // Uploads of the first step are into fresh memory (1, 3); of the second, the other has waited already (9).
    ("cuStreamWaitEvent", &[1, 3, 9]),
    // Their marks (1, 3, 10); and the collective's begins, which only tell how long it took (6, 13).
    ("cuEventRecord", &[1, 3, 6, 10, 13]),
];

#[test]
fn no_mark_or_wait_can_be_left_away() {
    // 2 (2 s + 1) + s + 1 in each step.
    let want: Vec<f32> = vec![(0..STEPS).map(|s| (2 * (2 * s + 1) + s + 1) as f32).sum(); 16];
    let mut survivors = Vec::new();
    for (name, spared) in SPARED {
        let (kept, count) = steps("seed=1", PATIENCE, name);
        assert_eq!(kept, want);
        for number in (1..=count).filter(|number| !spared.contains(number)) {
            let missed = (1..8).any(|seed| steps(&format!("seed={seed},drop={name}:{number}"), SHORT, name).0 != want);
            if !missed {
                survivors.push((name, number));
            }
        }
    }
    assert_eq!(survivors, []);
}
