//! Every collective on every small world against its plain definition, for awkward lengths.

#![expect(clippy::unwrap_used, reason = "a test that fails may say so like that")]

mod common;

use ferrotune_dist::{Comm, CommError, threads};
use ferrotune_tensor::{DType, Device, Kind, Tensor};
use std::rc::Rc;
use std::time::Duration;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// None, one, fewer than ranks, primes, several segments with a ragged end.
const LENGTHS: [usize; 7] = [0, 1, 3, 7, 1009, 65_537, 140_009];

/// A value that differs by rank and place, and whose sums round.
fn value(rank: usize, i: usize) -> f32 {
    ((rank * 7919 + i * 31) % 1013) as f32 * 0.37 - 150.0 + rank as f32 * 1e-3
}

fn values(rank: usize, length: usize) -> Vec<f32> {
    (0..length).map(|i| value(rank, i)).collect()
}

fn tensor(device: &Device, values: &[f32]) -> Tensor {
    Tensor::from_f32(device, values, [values.len()], Kind::Work)
}

/// The sums in the order of the ring: the part of rank `owner` starts behind it.
fn ring_sums(world: usize, length: usize) -> Vec<f32> {
    let part = |owner: usize| (length * owner / world)..(length * (owner + 1) / world);
    let sum = |owner: usize, i: usize| {
        (2..=world).fold(value((owner + 1) % world, i), |sum, k| value((owner + k) % world, i) + sum)
    };
    (0..world).flat_map(|owner| part(owner).map(move |i| sum(owner, i))).collect()
}

fn all_collectives(comm: &dyn Comm, length: usize) {
    let device = Device::cpu();
    let (rank, world) = (comm.rank(), comm.world());
    let buffer = tensor(&device, &values(rank, length));
    comm.all_reduce(&buffer).wait().unwrap();
    assert_eq!(buffer.to_f32(), ring_sums(world, length), "all_reduce of {length} at {rank} of {world}");

    let full = values(rank, length * world);
    let sums = ring_sums(world, length * world);
    for inside in [false, true] {
        let full = tensor(&device, &full);
        let shard = match inside {
            true => full.view(rank * length * 4, [length], DType::F32),
            false => device.empty([length], DType::F32, Kind::Work),
        };
        comm.reduce_scatter(&full, &shard).wait().unwrap();
        let mine = &sums[rank * length..(rank + 1) * length];
        assert_eq!(shard.to_f32(), mine, "reduce_scatter of {length} at {rank} of {world}, inside: {inside}");
        // The sums go on around: together that is an all-reduce.
        comm.all_gather(&shard, &full).wait().unwrap();
        assert_eq!(full.to_f32(), sums, "all_gather of {length} at {rank} of {world}, inside: {inside}");
    }
    sums_of_halves(comm, &device, length);
    bytes_of_any_type(comm, &device, length);
    small_things(comm, length);
}

/// Small whole numbers, whose sums both kinds hold.
fn sums_of_halves(comm: &dyn Comm, device: &Device, length: usize) {
    let (rank, world) = (comm.rank(), comm.world());
    let small = |rank: usize| (0..length * world).map(move |i| ((rank * 5 + i) % 17) as f32);
    let sums: Vec<f32> =
        (0..length * world).map(|i| (0..world).map(|rank| ((rank * 5 + i) % 17) as f32).sum()).collect();
    for of in [DType::Bf16, DType::F16] {
        let full = device.empty([length * world], of, Kind::Work);
        full.write_f32(&small(rank).collect::<Vec<_>>());
        let shard = device.empty([length], of, Kind::Work);
        comm.all_reduce(&full).wait().unwrap();
        assert_eq!(full.to_f32(), sums, "all_reduce of {length} {of} at {rank} of {world}");
        full.write_f32(&small(rank).collect::<Vec<_>>());
        comm.reduce_scatter(&full, &shard).wait().unwrap();
        assert_eq!(shard.to_f32(), sums[rank * length..(rank + 1) * length], "reduce_scatter of {length} {of}");
    }
}

fn bytes_of_any_type(comm: &dyn Comm, device: &Device, length: usize) {
    let (rank, world) = (comm.rank(), comm.world());
    let ids = |rank: usize| (0..length).map(move |i| (rank * 1_000_003 + i) as u32);
    let shard = Tensor::from_u32(device, &ids(rank).collect::<Vec<_>>(), Kind::Input);
    let full = device.empty([length * world], DType::U32, Kind::Input);
    comm.all_gather(&shard, &full).wait().unwrap();
    let all: Vec<u8> = (0..world).flat_map(ids).flat_map(u32::to_le_bytes).collect();
    full.with_bytes(|bytes| assert_eq!(bytes, all));
    for root in 0..world {
        let halves = device.empty([length], DType::Bf16, Kind::Work);
        halves.write_f32(&values(rank, length));
        comm.broadcast(&halves, root).wait().unwrap();
        let expected = device.empty([length], DType::Bf16, Kind::Work);
        expected.write_f32(&values(root, length));
        assert_eq!(halves.to_f32(), expected.to_f32(), "broadcast of {length} from {root} at {rank} of {world}");
    }
}

fn small_things(comm: &dyn Comm, length: usize) {
    let (rank, world) = (comm.rank(), comm.world());
    let mut sums = [0.1 * rank as f64, 1e17, -1e17, rank as f64];
    comm.sum(&mut sums).unwrap();
    let in_order = |of: fn(usize) -> f64| (0..world).fold(0.0, |sum, rank| sum + of(rank));
    assert_eq!(sums, [in_order(|r| 0.1 * r as f64), in_order(|_| 1e17), in_order(|_| -1e17), in_order(|r| r as f64)]);
    let word = |rank: usize| vec![rank as u8; length * (world - rank) / world];
    assert_eq!(comm.exchange(&word(rank)).unwrap(), (0..world).map(word).collect::<Vec<_>>());
    comm.sum(&mut []).unwrap();
    comm.barrier().unwrap();
}

#[test]
fn all_collectives_are_what_their_definitions_say() {
    for world in 1..=5 {
        let body = |comm: Rc<dyn Comm>| LENGTHS.iter().for_each(|length| all_collectives(&*comm, *length));
        threads::run(world, body);
        common::tcp(world.max(2), PATIENCE, body);
    }
}

/// How many values one rank has for another: none, a few, many, and other numbers on the way back.
fn messages(from: usize, to: usize) -> usize {
    [0, 1, 1009, 0, 65_537][(from * 3 + to) % 5]
}

/// Every rank to every other, as lengths allow; what is a rank's own stays as it is.
fn swap(comm: &dyn Comm, device: &Device) {
    let (rank, world) = (comm.rank(), comm.world());
    let out: Vec<Tensor> =
        (0..world).map(|to| tensor(device, &values(rank * world + to, messages(rank, to)))).collect();
    let into: Vec<Tensor> =
        (0..world).map(|from| device.zeros([messages(from, rank)], DType::F32, Kind::Work)).collect();
    let before = comm.traffic();
    comm.swap(&out, &into).wait().unwrap();
    for (from, got) in into.iter().enumerate() {
        let sent = if from == rank { vec![0.0; got.numel()] } else { values(from * world + rank, got.numel()) };
        assert_eq!(got.to_f32(), sent, "from {from} at {rank} of {world}");
    }
    let sent: Vec<u64> = comm.traffic().iter().zip(before).map(|(now, before)| now - before).collect();
    let bytes = |to: usize| if to == rank { 0 } else { 4 * messages(rank, to) as u64 };
    assert_eq!(sent, (0..world).map(bytes).collect::<Vec<_>>());
}

#[test]
fn a_swap_brings_each_rank_what_every_other_has_for_it() {
    for world in 1..=5 {
        let body = |comm: Rc<dyn Comm>| {
            swap(&*comm, &Device::cpu());
            comm.barrier().unwrap();
        };
        threads::run(world, body);
        common::tcp(world.max(2), PATIENCE, body);
    }
}

#[test]
fn overlapping_groups_with_collectives_under_way_together() {
    let bits = |run: usize| {
        let body = |comm: Rc<dyn Comm>| {
            let device = Device::cpu();
            let rank = comm.rank();
            let low: Vec<usize> = if rank < 2 { vec![0, 1] } else { vec![2, 3] };
            let pair = comm.group(&low);
            let across = comm.group(&[rank % 2, rank % 2 + 2]);
            assert_eq!((pair.rank(), across.rank()), (rank % 2, rank / 2));
            let buffers: Vec<Tensor> = (0..9).map(|i| tensor(&device, &values(rank + i, 70_001))).collect();
            let groups = [&pair, &across, &comm];
            let tickets: Vec<_> = buffers.iter().enumerate().map(|(i, b)| groups[i % 3].all_reduce(b)).collect();
            tickets.into_iter().for_each(|ticket| ticket.wait().unwrap());
            let of_pair = |i: usize| value(low[0], i) + value(low[1], i);
            assert_eq!(buffers[0].to_f32()[1234], of_pair(1234));
            buffers.iter().flat_map(Tensor::to_f32).map(f32::to_bits).collect::<Vec<u32>>()
        };
        if run == 2 { common::tcp(4, PATIENCE, body) } else { threads::run(4, body) }
    };
    let runs: Vec<_> = (0..3).map(bits).collect();
    assert_eq!(runs[0], runs[1]);
    assert_eq!(runs[0], runs[2]);
    let world_sums = |rank: usize| runs[0][rank][2 * 70_001..3 * 70_001].to_vec();
    assert!((1..4).all(|rank| world_sums(rank) == world_sums(0)), "all ranks hold the same bits");
}

#[test]
fn a_group_within_a_group_counts_its_own_ranks() {
    threads::run(5, |comm| {
        if comm.rank() == 0 {
            return;
        }
        let inner = comm.group(&[1, 2, 3, 4]);
        if inner.rank() % 2 == 0 {
            let pair = inner.group(&[0, 2]);
            assert_eq!(pair.exchange(&[comm.rank() as u8]).unwrap(), [[1], [3]]);
            pair.fail("the test ends here");
        }
    });
}

#[test]
fn stages_pass_activations_and_gradients_one_forward_one_backward() {
    const STAGES: usize = 4;
    const MICROS: usize = 9;
    let body = |comm: Rc<dyn Comm>| {
        let device = Device::cpu();
        let (rank, last) = (comm.rank(), comm.rank() + 1 == STAGES);
        let mut tickets = Vec::new();
        let forward = |micro: usize| {
            let act = tensor(&device, &[micro as f32; 50_000]);
            if rank > 0 {
                comm.recv(&act, rank - 1).wait().unwrap();
                assert_eq!(act.to_f32()[49_999], (micro * 10 + rank - 1) as f32);
            }
            act.write_f32(&[(micro * 10 + rank) as f32; 50_000]);
            (!last).then(|| comm.send(&act, rank + 1))
        };
        let backward = |micro: usize| {
            let grad = tensor(&device, &[0.0; 50_000]);
            if !last {
                comm.recv(&grad, rank + 1).wait().unwrap();
                assert_eq!(grad.to_f32()[0], -((micro * 10 + rank + 1) as f32));
            }
            grad.write_f32(&[-((micro * 10 + rank) as f32); 50_000]);
            (rank > 0).then(|| comm.send(&grad, rank - 1))
        };
        let warm = (STAGES - 1 - rank).min(MICROS);
        (0..warm).for_each(|micro| tickets.extend(forward(micro)));
        for micro in 0..MICROS {
            if micro + warm < MICROS {
                tickets.extend(forward(micro + warm));
            }
            tickets.extend(backward(micro));
        }
        tickets.into_iter().for_each(|ticket| ticket.wait().unwrap());
        comm.barrier().unwrap();
    };
    threads::run(STAGES, body);
    common::tcp(STAGES, PATIENCE, body);
}

#[test]
fn ranks_out_of_step_are_told_both_calls() {
    let unequal = |comm: Rc<dyn Comm>| {
        let device = Device::cpu();
        let buffer = device.zeros([10 + comm.rank()], DType::F32, Kind::Work);
        comm.all_reduce(&buffer).wait().unwrap_err()
    };
    for errors in [threads::run(2, unequal), common::tcp(2, PATIENCE, unequal)] {
        assert!(errors.iter().any(|error| matches!(error, CommError::OutOfStep { .. })), "{errors:?}");
        let text = errors[0].to_string();
        assert!(text.contains("all_reduce number 1 of 40 bytes"), "{text}");
        assert!(text.contains("all_reduce number 1 of 44 bytes"), "{text}");
    }

    let errors = threads::run(3, |comm| {
        let buffer = Device::cpu().zeros([1000], DType::F32, Kind::Work);
        match comm.rank() {
            1 => comm.barrier().unwrap_err(),
            _ => comm.broadcast(&buffer, 0).wait().and_then(|()| comm.barrier()).unwrap_err(),
        }
    });
    assert!(errors.iter().all(|e| e.to_string().contains("where this rank called")), "{errors:?}");
}

#[test]
fn a_rank_that_is_gone_fails_or_panics_is_named_by_all_others() {
    type End = fn(Rc<dyn Comm>);
    let ends: [(End, &str); 3] = [
        (drop, "rank 1 (this process) is gone: it had ended its part of the run"),
        (|comm| comm.fail("disk full"), "rank 1 (this process) stopped: disk full; it was starting"),
        (|_| panic!("oh no"), "rank 1 (this process) stopped: it panicked: oh no; it was starting"),
    ];
    for (end, words) in ends {
        let errors = threads::run_each(4, |comm| {
            if comm.rank() == 1 {
                end(comm);
                return None;
            }
            let buffer = Device::cpu().zeros([100_000], DType::F32, Kind::Work);
            let first = comm.all_reduce(&buffer).wait().unwrap_err();
            assert_eq!(comm.ended(), Some(first.clone()));
            assert_eq!(comm.barrier(), Err(first.clone()));
            Some(first)
        });
        for (rank, error) in errors.into_iter().enumerate().filter(|(rank, _)| *rank != 1) {
            let error = error.expect("only rank 1 panics").expect("an error");
            assert!(error.to_string().starts_with(words), "rank {rank}: {error}");
        }
    }
}

#[test]
fn a_device_that_executes_nothing_ends_the_run_for_all() {
    let errors = threads::run(2, |comm| {
        let device = if comm.rank() == 0 { Device::meta() } else { Device::cpu() };
        let buffer = device.zeros([10], DType::F32, Kind::Work);
        comm.all_reduce(&buffer).wait().unwrap_err().to_string()
    });
    assert!(errors[0].contains("meta"), "{errors:?}");
    assert!(errors[1].starts_with("rank 0 (this process) stopped: a tensor on meta"), "{errors:?}");
}
