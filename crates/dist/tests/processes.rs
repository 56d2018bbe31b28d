//! Ranks as processes: one that is killed or stopped in the middle of a collective. This program starts itself as the
//! other rank.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[expect(dead_code, reason = "this program needs a rank only")]
mod common;

use common::start;
use ferrotune_dist::{Comm, CommError, Link};
use ferrotune_tensor::{DType, Device, Kind};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Where the other process finds this one; also what tells it who it is.
const ADDRESS: &str = "FERROTUNE_TEST_ADDRESS";
const PATIENCE: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(4);

fn link(rank: usize, stream: TcpStream) -> Vec<Link> {
    vec![Link { rank, host: format!("host-{rank}"), stream }]
}

/// Reduces until that fails.
fn reduce_for_ever(comm: &dyn Comm) -> CommError {
    let buffer = Device::cpu().zeros([1 << 20], DType::F32, Kind::Work);
    loop {
        if let Err(error) = comm.all_reduce(&buffer).wait() {
            return error;
        }
    }
}

fn other(test: &str) -> (Rc<dyn Comm>, Child) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let exe = std::env::current_exe().unwrap();
    let mut command = Command::new(exe);
    command.args([test, "--exact"]).env(ADDRESS, address).stdout(Stdio::null());
    let child = command.spawn().unwrap();
    (start(0, link(1, listener.accept().unwrap().0), PATIENCE), child)
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
}

/// In the other process: takes part until it is told that the run is over.
fn plays_other() -> bool {
    let Ok(address) = std::env::var(ADDRESS) else { return false };
    let comm = start(1, link(0, TcpStream::connect(address).unwrap()), PATIENCE);
    reduce_for_ever(&*comm);
    true
}

/// What this process sees once the other has got a signal in the middle of things, and how long that took.
fn after(name: &str, child: &Child, comm: &dyn Comm) -> (CommError, Duration) {
    std::thread::scope(|scope| {
        let signalled = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            signal(child, name);
            Instant::now()
        });
        let error = reduce_for_ever(comm);
        (error, signalled.join().unwrap().elapsed())
    })
}

#[test]
fn a_killed_process_is_named() {
    if plays_other() {
        return;
    }
    let (comm, mut child) = other("a_killed_process_is_named");
    let (error, took) = after("KILL", &child, &*comm);
    child.wait().unwrap();
    assert!(matches!(&error, CommError::PeerLost { rank: 1, reason, .. } if reason.contains("connection")), "{error}");
    assert!(took < PATIENCE, "{took:?}");
}

#[test]
fn a_stopped_process_is_named_and_ends_when_it_goes_on() {
    if plays_other() {
        return;
    }
    let (comm, mut child) = other("a_stopped_process_is_named_and_ends_when_it_goes_on");
    let (error, took) = after("STOP", &child, &*comm);
    assert!(matches!(&error, CommError::PeerLost { rank: 1, reason, .. } if reason.contains("heard")), "{error}");
    assert!(took > PATIENCE / 2 && took < LIMIT, "{took:?}");
    drop(comm);
    signal(&child, "CONT");
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < LIMIT, "it goes on alone");
        std::thread::sleep(Duration::from_millis(10));
    }
}
