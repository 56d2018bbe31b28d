//! Collectives of NCCL on GPUs of paper: what they give, what goes beside them, how they go wrong.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod faults;
mod gpus;
mod marks;
mod real;

use ferrotune_dist::Comm;
use ferrotune_tensor::{DType, Device, Kind, Tensor, ops};
use gpus::{PATIENCE, Rank, run};

const SEEDS: [&str; 3] = ["seed=1", "seed=2", "seed=7"];

/// Whole numbers, which every order sums alike.
fn values(rank: usize, length: usize) -> Vec<f32> {
    (0..length).map(|i| ((rank * 7919 + i * 31) % 1013) as f32).collect()
}

fn sums(world: usize, length: usize) -> Vec<f32> {
    let sum = |i: usize| (0..world).map(|rank| values(rank, length)[i]).sum();
    (0..length).map(sum).collect()
}

fn tensor(device: &Device, values: &[f32]) -> Tensor {
    Tensor::from_f32(device, values, [values.len()], Kind::Work)
}

pub(crate) fn all_collectives(comm: &dyn Comm, device: &Device, length: usize) {
    let (rank, world) = (comm.rank(), comm.world());
    let buffer = tensor(device, &values(rank, length));
    comm.all_reduce(&buffer).wait().unwrap();
    assert_eq!(buffer.to_f32(), sums(world, length), "all_reduce of {length} at {rank} of {world}");
    for inside in [false, true] {
        let full = tensor(device, &values(rank, length * world));
        let shard = match inside {
            true => full.view(rank * length * 4, [length], DType::F32),
            false => device.empty([length], DType::F32, Kind::Work),
        };
        comm.reduce_scatter(&full, &shard).wait().unwrap();
        let all = sums(world, length * world);
        assert_eq!(shard.to_f32(), all[rank * length..(rank + 1) * length], "reduce_scatter at {rank} of {world}");
        comm.all_gather(&shard, &full).wait().unwrap();
        assert_eq!(full.to_f32(), all, "all_gather at {rank} of {world}, inside: {inside}");
    }
    for of in [DType::Bf16, DType::F16] {
        // Small ones, whose sums both kinds hold.
        let small = |rank: usize| (0..length).map(move |i| ((rank * 5 + i) % 17) as f32);
        let halves = device.empty([length], of, Kind::Work);
        halves.write_f32(&small(rank).collect::<Vec<_>>());
        comm.all_reduce(&halves).wait().unwrap();
        let sums: Vec<f32> = (0..length).map(|i| (0..world).map(|r| ((r * 5 + i) % 17) as f32).sum()).collect();
        assert_eq!(halves.to_f32(), sums, "all_reduce of {of} at {rank} of {world}");
    }
    for root in 0..world {
        let halves = device.empty([length], DType::Bf16, Kind::Work);
        halves.write_f32(&values(rank, length));
        comm.broadcast(&halves, root).wait().unwrap();
        let expected = Device::cpu().empty([length], DType::Bf16, Kind::Work);
        expected.write_f32(&values(root, length));
        assert_eq!(halves.to_f32(), expected.to_f32(), "broadcast from {root} at {rank} of {world}");
    }
}

#[test]
fn all_collectives_are_what_their_definitions_say() {
    for world in 1..=3 {
        run(&SEEDS[..world], PATIENCE, |Rank { comm, device, .. }| {
            [1, 7, 1009].iter().for_each(|length| all_collectives(&comm, &device, *length));
            comm.barrier().unwrap();
        });
    }
}

#[test]
fn groups_share_what_they_have_in_common_and_end_by_themselves() {
    run(&["seed=3", "seed=4", "seed=5", "seed=6"], PATIENCE, |Rank { comm, device, number }| {
        let rank = comm.rank();
        let pair = comm.group(&[rank / 2 * 2, rank / 2 * 2 + 1]);
        let across = comm.group(&[rank % 2, rank % 2 + 2]);
        all_collectives(&*pair, &device, 33);
        all_collectives(&*across, &device, 34);
        all_collectives(&comm, &device, 35);
        // The same ranks again, by another handle.
        all_collectives(&*comm.group(&[0, 1, 2, 3]), &device, 36);
        assert_eq!(gpus::calls(number, "ncclCommInitRankConfig"), 3);
        drop((pair, across));
        all_collectives(&*comm.group(&[rank % 2, rank % 2 + 2]), &device, 3);
        assert_eq!(gpus::calls(number, "ncclCommInitRankConfig"), 4);
        assert_eq!(comm.ended(), None);
    });
}

/// How many values one rank has for another: none, one, many, and other numbers on the way back.
fn messages(from: usize, to: usize) -> usize {
    [0, 1, 1009, 0, 33][(from * 3 + to) % 5]
}

/// Every rank to every other over one communicator, among collectives that share it; whoever has no messages is there too.
#[test]
fn a_swap_takes_one_communicator_however_many_ranks_there_are() {
    run(&["seed=1", "seed=2", "seed=7", "seed=8"], PATIENCE, |Rank { comm, device, number }| {
        let (rank, world) = (comm.rank(), comm.world());
        for round in 0..3 {
            // In the last round the last rank neither sends nor receives.
            let length = |from: usize, to: usize| {
                let none = round == 2 && from.max(to) + 1 == world;
                if none { 0 } else { messages(from + round, to) }
            };
            let out: Vec<Tensor> =
                (0..world).map(|to| tensor(&device, &values(rank * world + to, length(rank, to)))).collect();
            let into: Vec<Tensor> =
                (0..world).map(|from| device.zeros([length(from, rank)], DType::F32, Kind::Work)).collect();
            let before = comm.traffic();
            comm.swap(&out, &into).wait().unwrap();
            for (from, got) in into.iter().enumerate() {
                let sent = match from == rank {
                    true => vec![0.0; got.numel()],
                    false => values(from * world + rank, got.numel()),
                };
                assert_eq!(got.to_f32(), sent, "from {from} at {rank}, round {round}");
            }
            let bytes = |to: usize| if to == rank { 0 } else { 4 * length(rank, to) as u64 };
            let sent: Vec<u64> = comm.traffic().iter().zip(before).map(|(now, before)| now - before).collect();
            // In the first one its communicator was made, which takes an identity.
            assert!(round == 0 || sent == (0..world).map(bytes).collect::<Vec<_>>(), "{sent:?} in round {round}");
            all_collectives(&comm, &device, 5);
        }
        assert_eq!(gpus::calls(number, "ncclCommInitRankConfig"), 1);
        assert_eq!(comm.ended(), None);
    });
}

/// What stages of a pipe do: each sends ahead what the other will receive later, in both directions.
#[test]
fn a_send_waits_for_nobody() {
    const AHEAD: usize = 4;
    run(&SEEDS[..2], PATIENCE, |Rank { comm, device, .. }| {
        let (rank, peer) = (comm.rank(), 1 - comm.rank());
        let sent: Vec<Tensor> = (0..AHEAD).map(|i| tensor(&device, &values(rank * AHEAD + i, 500))).collect();
        let tickets: Vec<_> = sent.iter().map(|x| comm.send(x, peer)).collect();
        let got: Vec<Tensor> = (0..AHEAD).map(|_| device.empty([500], DType::F32, Kind::Work)).collect();
        got.iter().for_each(|x| comm.recv(x, peer).wait().unwrap());
        tickets.into_iter().for_each(|ticket| ticket.wait().unwrap());
        for (i, x) in got.iter().enumerate() {
            assert_eq!(x.to_f32(), values(peer * AHEAD + i, 500), "message {i} at {rank}");
        }
        comm.release();
        all_collectives(&comm, &device, 5);
        let x = tensor(&device, &values(rank, 10));
        match rank {
            0 => comm.send(&x, 1).wait().unwrap(),
            _ => comm.recv(&x, 0).wait().unwrap(),
        }
        assert_eq!(x.to_f32(), values(0, 10));
    });
}

/// As in a pipe of two stages with many micro-batches: what comes back is needed for what is sent next, and the second stage's host
/// is through with all of it before NCCL has taken its first send.
#[test]
fn a_send_waits_for_no_later_work() {
    const MESSAGES: usize = 6;
    run(&SEEDS[..2], PATIENCE, |Rank { comm, device, .. }| {
        let (ahead, one) = (2, tensor(&device, &[1.0; 64]));
        let mut sent = Vec::new();
        let mut send = |x: Tensor, to: usize| sent.push((comm.send(&x, to), x));
        if comm.rank() == 0 {
            (0..ahead).for_each(|i| send(tensor(&device, &[i as f32; 64]), 1));
        }
        let last = device.zeros([64], DType::F32, Kind::Act);
        for number in 0..MESSAGES {
            let x = device.empty([64], DType::F32, Kind::Work);
            comm.recv(&x, 1 - comm.rank()).wait().unwrap();
            ops::add_into(&x, &one);
            ops::copy(&last, &x);
            if comm.rank() == 1 || number + ahead < MESSAGES {
                send(x, 1 - comm.rank());
            }
        }
        sent.into_iter().for_each(|(ticket, _)| ticket.wait().unwrap());
        // The last one began as 1 and was added to at each rank that it passed, three times here and there.
        assert_eq!(last.to_f32(), [if comm.rank() == 0 { 7.0 } else { 6.0 }; 64]);
    });
}

/// Work goes on beside a collective, and its buffer is free for what comes after the wait.
#[test]
fn work_goes_on_beside_a_collective() {
    run(&SEEDS[..2], PATIENCE, |Rank { comm, device, .. }| {
        let rank = comm.rank();
        let (kept, sum) = (device.zeros([64], DType::F32, Kind::Act), device.zeros([64], DType::F32, Kind::Act));
        for step in 0..5 {
            let gradient = tensor(&device, &vec![(rank + step) as f32; 64]);
            let ticket = comm.all_reduce(&gradient);
            ops::add_into(&kept, &tensor(&device, &[1.0; 64]));
            ticket.wait().unwrap();
            ops::add_into(&sum, &gradient);
            // Its memory goes to the next one.
            drop(gradient);
        }
        assert_eq!((kept.to_f32(), sum.to_f32()), (vec![5.0; 64], vec![25.0; 64]));
    });
}

#[test]
fn what_is_not_on_a_gpu_goes_over_tcp() {
    run(&SEEDS[..2], PATIENCE, |Rank { comm, number, .. }| {
        let x = tensor(&Device::cpu(), &values(comm.rank(), 100));
        comm.all_reduce(&x).wait().unwrap();
        assert_eq!(x.to_f32(), sums(2, 100));
        let mut small = [1.0, comm.rank() as f64];
        comm.sum(&mut small).unwrap();
        assert_eq!(small, [2.0, 1.0]);
        assert_eq!(gpus::calls(number, "ncclCommInitRankConfig"), 0);
    });
}
