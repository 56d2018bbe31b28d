//! What ranks over TCP say, and how soon, when one of them dies, falls silent, or sends what nobody understands.

#![expect(clippy::unwrap_used, reason = "a test that fails may say so like that")]

mod common;

use common::{connection, mesh, start, tcp};
use ferrotune_dist::{Activity, Comm, CommError, Link};
use ferrotune_tensor::{DType, Device, Kind};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_millis(800);
/// By when everybody must have noticed: the patience, a tick, the grace, and a slow machine.
const LIMIT: Duration = Duration::from_millis(3500);

/// Runs `body` on ranks 0, 1 and 3 of 4 while `false_rank` plays rank 2 on its sockets.
fn with_false_rank<R: Send>(
    false_rank: impl FnOnce(Vec<TcpStream>) + Send,
    body: impl Fn(Rc<dyn Comm>) -> R + Sync,
) -> Vec<R> {
    let mut links = mesh(4);
    let sockets = links[2].drain(..).map(|link| link.stream).collect();
    let body = &body;
    std::thread::scope(|scope| {
        scope.spawn(move || false_rank(sockets));
        let ranks = links.into_iter().enumerate().filter(|(rank, _)| *rank != 2);
        let ranks: Vec<_> =
            ranks.map(|(rank, links)| scope.spawn(move || body(start(rank, links, PATIENCE)))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn reduce(comm: &dyn Comm, length: usize) -> Result<(), CommError> {
    comm.all_reduce(&Device::cpu().zeros([length], DType::F32, Kind::Work)).wait()
}

fn assert_lost(errors: &[(CommError, Duration)], because: &str) {
    for (error, took) in errors {
        let CommError::PeerLost { rank: 2, host, reason, .. } = error else { panic!("{error:?}") };
        assert_eq!(host, "host-2");
        assert!(reason.contains(because), "{reason}");
        assert!(*took < LIMIT, "noticed after {took:?}");
    }
}

/// The error of a collective that can't end, and how long it took.
fn stuck(comm: &dyn Comm) -> (CommError, Duration) {
    let start = Instant::now();
    (reduce(comm, 300_000).unwrap_err(), start.elapsed())
}

#[test]
fn a_rank_that_dies_is_named_by_all() {
    assert_lost(&with_false_rank(drop, |comm| stuck(&*comm)), "its connection ");
}

#[test]
fn a_rank_that_dies_in_the_middle_of_a_message_is_named_by_all() {
    let half = |sockets: Vec<TcpStream>| {
        sockets.iter().for_each(|mut socket| socket.write_all(&[2, 4, 0]).unwrap());
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_lost(&with_false_rank(half, |comm| stuck(&*comm)), "its connection ");
}

#[test]
fn a_rank_that_falls_silent_is_named_by_all_with_what_it_did() {
    let silent = |sockets: Vec<TcpStream>| {
        // A beat: in a forward pass of step 7.
        let mut beat = [0; 64];
        beat[0] = 2;
        beat[1] = Activity::Forward as u8;
        beat[8] = 7;
        sockets.iter().for_each(|mut socket| socket.write_all(&beat).unwrap());
        std::thread::sleep(LIMIT);
        drop(sockets);
    };
    let errors = with_false_rank(silent, |comm| stuck(&*comm));
    assert_lost(&errors, "nothing was heard of it for");
    assert!(errors[0].0.to_string().ends_with("it was in a forward pass, step 7"), "{}", errors[0].0);
    assert!(errors.iter().all(|(_, took)| *took > PATIENCE / 2));
}

#[test]
fn ranks_that_wait_for_others_or_for_nothing_notice_too() {
    let errors = with_false_rank(drop, |comm| {
        let start = Instant::now();
        if comm.rank() == 0 {
            // Not in a collective at all.
            while comm.ended().is_none() {
                assert!(start.elapsed() < LIMIT);
                std::thread::sleep(Duration::from_millis(5));
            }
            return (comm.ended().unwrap(), start.elapsed());
        }
        // Ranks 1 and 3 wait for rank 0, which never comes.
        (reduce(&*comm.group(&[0, 1, 3]), 10).unwrap_err(), start.elapsed())
    });
    assert_lost(&errors, "its connection ");
}

#[test]
fn a_rank_that_computes_for_long_is_not_lost() {
    tcp(3, PATIENCE, |comm| {
        if comm.rank() == 1 {
            std::thread::sleep(PATIENCE * 3);
        }
        reduce(&*comm, 100_000).unwrap();
    });
}

#[test]
fn a_rank_that_fails_is_named_with_its_words() {
    let errors = tcp(4, PATIENCE, |comm| {
        comm.pulse().step(3);
        comm.pulse().does(Activity::Saving);
        if comm.rank() == 2 {
            std::thread::sleep(Duration::from_millis(100));
            comm.fail("the disk is full");
            return (comm.barrier().unwrap_err(), Duration::ZERO);
        }
        stuck(&*comm)
    });
    assert_eq!(errors[2].0, CommError::Ended("the disk is full".into()));
    for rank in [0, 1, 3] {
        let (error, took) = &errors[rank];
        let words = "rank 2 (host-2) stopped: the disk is full; it was saving a checkpoint, step 3";
        assert!(error.to_string().starts_with(words), "{error}");
        assert!(*took < Duration::from_secs(2), "{took:?}");
    }
}

#[test]
fn a_rank_may_end_while_the_others_go_on() {
    tcp(4, PATIENCE, |comm| {
        reduce(&*comm, 1000).unwrap();
        if comm.rank() == 3 {
            return;
        }
        let rest = comm.group(&[0, 1, 2]);
        for _ in 0..10 {
            std::thread::sleep(PATIENCE / 5);
            reduce(&*rest, 1000).unwrap();
        }
        assert_eq!(comm.ended(), None);
        // The first to want something of it ends the run for all, so let the slowest come out of the loop.
        std::thread::sleep(PATIENCE / 2);
        let CommError::PeerLost { rank: 3, reason, .. } = comm.barrier().unwrap_err() else { panic!("not rank 3") };
        assert!(reason.contains("had ended its part"), "{reason}");
    });
}

#[test]
fn a_send_waits_for_nobody() {
    const FLOATS: usize = 8 << 20;
    tcp(3, Duration::from_secs(10), |comm| {
        let device = Device::cpu();
        let big = device.zeros([FLOATS], DType::F32, Kind::Work);
        match comm.rank() {
            0 => {
                big.with_bytes_mut(|bytes| bytes.fill(7));
                let ticket = comm.send(&big, 1);
                // Rank 1 takes it only after this, and its bytes don't fit into the socket.
                reduce(&*comm.group(&[0, 2]), 1000).unwrap();
                comm.send(&device.zeros([1], DType::F32, Kind::Work), 2).wait().unwrap();
                ticket.wait().unwrap();
            }
            1 => {
                comm.recv(&device.zeros([1], DType::F32, Kind::Work), 2).wait().unwrap();
                comm.recv(&big, 0).wait().unwrap();
                big.with_bytes(|bytes| assert!(bytes.iter().all(|byte| *byte == 7)));
            }
            _ => {
                reduce(&*comm.group(&[0, 2]), 1000).unwrap();
                comm.recv(&device.zeros([1], DType::F32, Kind::Work), 0).wait().unwrap();
                comm.send(&device.zeros([1], DType::F32, Kind::Work), 1).wait().unwrap();
            }
        }
        comm.barrier().unwrap();
    });
}

#[test]
fn what_nobody_takes_holds_up_no_end() {
    let start = Instant::now();
    let results = tcp(2, PATIENCE, |comm| {
        if comm.rank() == 1 {
            return Ok(());
        }
        let big = Device::cpu().zeros([8 << 20], DType::F32, Kind::Work);
        comm.send(&big, 1).wait()
    });
    assert!(matches!(results[0], Err(CommError::PeerLost { rank: 1, .. })), "{results:?}");
    assert!(start.elapsed() < LIMIT * 2, "{:?}", start.elapsed());
}

/// Small numbers without end, the same each time.
fn noise(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}

/// Passes on what comes from one socket to another, late, in odd pieces, and now and then not for a while.
fn slowly(mut from: TcpStream, mut to: TcpStream, late: Duration, pauses: Duration) {
    let (queue, out) = std::sync::mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut sizes = noise(9);
            for (number, (arrives, bytes)) in out.into_iter().enumerate() {
                std::thread::sleep(arrives.saturating_duration_since(Instant::now()));
                if number % 40 == 20 {
                    std::thread::sleep(pauses);
                }
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at((1 + sizes() as usize % 9000).min(rest.len()));
                    // The other end may have gone; then so does this one.
                    if to.write_all(piece).is_err() {
                        return;
                    }
                    rest = after;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
        let mut bytes = vec![0; 32 << 10];
        while let Ok(read @ 1..) = from.read(&mut bytes) {
            if queue.send((Instant::now() + late, bytes[..read].to_vec())).is_err() {
                break;
            }
        }
        drop(queue);
    });
}

/// As `tcp` with two ranks, over wires with a delay of `late` that stand still for `pauses` at times.
fn over_slow_wires<R: Send>(late: Duration, pauses: Duration, body: impl Fn(Rc<dyn Comm>) -> R + Sync) -> Vec<R> {
    let ((near, relay), (far, other)) = (connection(), connection());
    let body = &body;
    std::thread::scope(|scope| {
        let (back, forth) = ((other.try_clone().unwrap(), relay.try_clone().unwrap()), (relay, other));
        scope.spawn(move || slowly(forth.0, forth.1, late, pauses));
        scope.spawn(move || slowly(back.0, back.1, late, pauses));
        let link = |rank: usize, stream| vec![Link { rank, host: format!("host-{rank}"), stream }];
        let ranks = [(0, link(1, near)), (1, link(0, far))];
        let ranks = ranks.map(|(rank, links)| scope.spawn(move || body(start(rank, links, PATIENCE))));
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn late_and_halting_wires_cost_time_and_nothing_else() {
    let work = |comm: Rc<dyn Comm>| {
        let device = Device::cpu();
        let mut sums = Vec::new();
        for round in 1..=6 {
            let values: Vec<f32> =
                (0..70_000).map(|i| (i % 91) as f32 * round as f32 * (comm.rank() + 1) as f32).collect();
            let buffer = device.empty([values.len()], DType::F32, Kind::Work);
            buffer.write_f32(&values);
            comm.all_reduce(&buffer).wait().unwrap();
            let mut few = [round as f64, comm.rank() as f64];
            comm.sum(&mut few).unwrap();
            sums.push((buffer.to_f32(), few));
        }
        sums
    };
    let want = tcp(2, PATIENCE, work);
    let begun = Instant::now();
    let (late, pauses) = (Duration::from_millis(60), PAUSE_BELOW_PATIENCE);
    assert!(over_slow_wires(late, pauses, work) == want, "the same bits");
    assert!(begun.elapsed() > late * 12, "the wires were slow: {:?}", begun.elapsed());
}

/// A wire may stand still for so long.
const PAUSE_BELOW_PATIENCE: Duration = Duration::from_millis(400);

#[test]
fn a_wire_that_stands_still_beyond_the_deadline_is_a_loss_for_both() {
    let errors = over_slow_wires(Duration::from_millis(5), Duration::from_secs(6), |comm| {
        let start = Instant::now();
        loop {
            if let Err(error) = reduce(&*comm, 300_000) {
                return (error, start.elapsed());
            }
        }
    });
    for (rank, (error, took)) in errors.iter().enumerate() {
        assert!(matches!(error, CommError::PeerLost { rank: other, .. } if *other == 1 - rank), "{error:?}");
        assert!(*took < LIMIT, "{took:?}");
    }
}

/// What a false peer sends: noise, headers with a few fields gone wrong, or a real rank's bytes with some changed.
fn garbage(seed: u64, real: &[u8]) -> Vec<u8> {
    let mut next = noise(seed);
    match seed % 3 {
        0 => (0..next() % 400).map(|_| next() as u8).collect(),
        1 => {
            let mut bytes = vec![0; 64 * (1 + next() as usize % 4)];
            for header in bytes.chunks_exact_mut(64) {
                header[0] = (next() % 7) as u8;
                for _ in 0..next() % 4 {
                    header[next() as usize % 64] = next() as u8;
                }
            }
            bytes
        }
        _ => {
            let mut bytes = real.to_vec();
            for _ in 0..1 + next() % 3 {
                // Most of the bytes are content, which may be anything; aim at the headers.
                let at = next() as usize % 120.min(bytes.len());
                bytes[at] ^= 1 << (next() % 8);
            }
            bytes.truncate(next() as usize % (bytes.len() + 1));
            bytes
        }
    }
}

/// All that a real rank 1 sends to a rank 0 that answers nothing.
fn real_bytes() -> Vec<u8> {
    let (ours, mut theirs) = connection();
    let links = vec![Link { rank: 0, host: "host-0".into(), stream: ours }];
    let mut bytes = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || reduce(&*start(1, links, Duration::from_millis(200)), 50).unwrap_err());
        theirs.read_to_end(&mut bytes).unwrap();
    });
    bytes
}

#[test]
fn garbage_is_an_error_and_never_a_panic() {
    let real = real_bytes();
    assert!(real.len() > 164, "a header and half of 200 bytes: {}", real.len());
    let one = &|seed: u64| {
        let (ours, mut theirs) = connection();
        theirs.write_all(&garbage(seed, &real)).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let comm = start(0, vec![Link { rank: 1, host: "host-1".into(), stream: ours }], PATIENCE);
        let begun = Instant::now();
        let error = reduce(&*comm, 50).unwrap_err();
        let names_it = match &error {
            CommError::PeerLost { rank, .. } | CommError::PeerFailed { rank, .. } => *rank < 2,
            CommError::OutOfStep { rank, .. } => *rank == 1,
            CommError::Ended(_) => false,
        };
        assert!(names_it && begun.elapsed() < LIMIT, "seed {seed}: {error} after {:?}", begun.elapsed());
        drop(theirs);
    };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || (0..30).for_each(|i| one(thread + 8 * i)));
        }
    });
}
