//! How runs end: each in time, with the rank or the call that is the cause.

use super::gpus::{FAKES, PATIENCE, Rank, run, set};
use super::{tensor, values};
use ferrotune_dist::{Comm, CommError, NcclSettings};
use ferrotune_tensor::cuda::nccl;
use ferrotune_tensor::{DType, Kind};
use std::time::{Duration, Instant};

const SHORT: NcclSettings =
    NcclSettings { join_timeout: Duration::from_secs(1), collective_timeout: Duration::from_secs(1) };
const LIMIT: Duration = Duration::from_secs(10);

/// Reduces until that fails.
fn reduce_for_ever(Rank { comm, device, .. }: Rank) -> String {
    let start = Instant::now();
    let buffer = tensor(&device, &values(comm.rank(), 100));
    let error = loop {
        if let Err(error) = comm.all_reduce(&buffer).wait() {
            break error;
        }
        // As a step ends: this must not wait for ever.
        let _ = device.synchronize();
        if let Some(error) = comm.ended() {
            break error;
        }
    };
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    error.to_string()
}

#[test]
fn ranks_that_nccl_does_not_bring_together_are_named() {
    let told = run(&["seed=1", "hang=ncclCommInitRankConfig:1"], SHORT, reduce_for_ever);
    assert!(told.iter().any(|told| told.contains("NCCL hasn't brought ranks [0, 1] together in 1 s")), "{told:?}");
}

#[test]
fn a_collective_that_does_not_end_says_what_the_others_do() {
    let told = run(&["seed=1", "hang=ncclAllReduce:3"], SHORT, reduce_for_ever);
    let named = |told: &String| told.contains("hasn't ended for 1 s, though all ranks are alive: rank ");
    assert!(told.iter().any(named), "{told:?}");
}

#[test]
fn an_error_that_nccl_finds_later_ends_all() {
    let told = run(&["later=ncclAllReduce:2:6", "seed=2"], PATIENCE, reduce_for_ever);
    let words = "NCCL failed: remote process exited or there was a network error (6)";
    assert!(told[0].contains(words), "{told:?}");
    assert!(told[1].starts_with("rank 0 (host-0) stopped: ") && told[1].contains(words), "{told:?}");
}

#[test]
fn a_call_that_fails_is_named() {
    let told = run(&["seed=1", "fail=ncclAllReduce:2:3"], PATIENCE, reduce_for_ever);
    assert!(told[1].contains("ncclAllReduce failed: internal error"), "{told:?}");
    assert!(told[0].starts_with("rank 1 (host-1) stopped: "), "{told:?}");
}

#[test]
fn a_rank_that_ends_is_named_though_nccl_says_nothing() {
    let told = run(&["seed=1", "seed=2", "seed=3"], PATIENCE, |rank| {
        if rank.comm.rank() == 1 {
            rank.comm.barrier().unwrap();
            rank.comm.fail("the disk is full");
            return String::new();
        }
        // Rank 1 may be through it, and its end known, before this rank has left it.
        match rank.comm.barrier() {
            Ok(()) => reduce_for_ever(rank),
            Err(error) => error.to_string(),
        }
    });
    for rank in [0, 2] {
        assert!(told[rank].starts_with("rank 1 (host-1) stopped: the disk is full"), "{told:?}");
    }
}

#[test]
fn a_tensor_without_values_ends_all() {
    let told = run(&["memory=100000000", "seed=2"], PATIENCE, |Rank { comm, device, .. }| {
        let buffer = match comm.rank() {
            0 => device.empty([50_000_000], DType::F32, Kind::Work),
            _ => tensor(&device, &values(1, 10)),
        };
        comm.all_reduce(&buffer).wait().unwrap_err()
    });
    assert!(told[0].to_string().contains("out of memory"), "{}", told[0]);
    assert!(matches!(&told[1], CommError::PeerFailed { rank: 0, .. }), "{}", told[1]);
}

#[test]
fn versions_that_are_too_old_are_told() {
    set(0, "nccl=21003");
    let error = nccl::open(&FAKES.search, 12_040).unwrap_err().to_string();
    set(0, "");
    for part in
        ["NCCL can't be used:", "libnccl.so.2: it is version 2.10.3; 2.14 or newer", "pip install nvidia-nccl-cu12"]
    {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert_eq!(nccl::open(&FAKES.search, 13_000).unwrap().version().unwrap(), "2.27.3");
}
