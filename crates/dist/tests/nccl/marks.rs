//! What orders the work and the collectives, left away one call at a time: each must be missed.

use super::gpus::{Rank, calls, run};
use super::tensor;
use ferrotune_dist::{Comm, NcclSettings};
use ferrotune_tensor::{DType, Kind, ops};
use std::time::Duration;

const STEPS: usize = 2;
/// What a wrong order may cost.
const SHORT: NcclSettings =
    NcclSettings { join_timeout: Duration::from_secs(5), collective_timeout: Duration::from_secs(1) };

/// What two ranks keep of a few steps, and how often the first called a function.
fn steps(first: &str, name: &str) -> (Vec<f32>, u64) {
    let kept = run(&[first, "seed=5"], SHORT, |Rank { comm, device, number }| {
        let sum = device.zeros([16], DType::F32, Kind::Act);
        for step in 0..STEPS {
            let gradient = tensor(&device, &vec![(comm.rank() + step) as f32; 4096]);
            ops::add_into(&gradient, &gradient);
            let ticket = comm.all_reduce(&gradient);
            let beside = tensor(&device, &[1.0; 16]);
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

#[test]
#[ignore = "takes minutes, and which calls may be spared (marks that only measure, uploads into fresh memory) is still to be listed"]
fn no_mark_or_wait_can_be_left_away() {
    // 2 (2 s + 1) + 1 in each step.
    let want: Vec<f32> = vec![(0..STEPS).map(|s| 2.0 * (2 * s + 1) as f32 + 1.0).sum(); 16];
    let mut survivors = Vec::new();
    for name in ["cuStreamWaitEvent", "cuEventRecord"] {
        let (kept, count) = steps("seed=1", name);
        assert_eq!(kept, want);
        for number in 1..=count {
            let missed = (1..8).any(|seed| steps(&format!("seed={seed},drop={name}:{number}"), name).0 != want);
            if !missed {
                survivors.push((name, number));
            }
        }
    }
    assert_eq!(survivors, []);
}
