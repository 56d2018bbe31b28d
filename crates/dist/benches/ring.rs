//! The ring's all-reduce between two processes over loopback, beside a bare copy through one socket in both directions at
//! once, on the same cores. `cargo bench -p ferrotune-dist --bench ring`.
//!
//! Algorithm bandwidth is the buffer's size over the time. Each process sends and receives `2 (n - 1) / n = 1` times the
//! buffer, so the bus bandwidth, summed over both directions, is twice that; a bare copy moves as many bytes.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use ferrotune_dist::{Abort, Comm, Link, Pulse, Ranks, TcpSettings, TcpTransport};
use ferrotune_tensor::{DType, Device, Kind};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a buffer.
const SIZES: [usize; 7] = [1 << 10, 16 << 10, 256 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20];
/// Bytes moved for one figure, about, and how often at least and at most; each figure is the best of three.
const VOLUME: usize = 768 << 20;
const REPEATS: (usize, usize) = (3, 3000);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [address] = &args[..] {
        let connect = || TcpStream::connect(address).expect("the other process listens");
        return side(1, &connect(), connect());
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let exe = std::env::current_exe().expect("this program has a path");
    let mut other = Command::new(exe).arg(address).spawn().expect("it starts");
    let accept = || listener.accept().expect("the other process connects").0;
    println!("    bytes  repeats   bare GB/s   ring us   ring GB/s  bus GB/s  bus/bare  cpu of this process");
    side(0, &accept(), accept());
    assert!(other.wait().expect("it runs").success());
}

/// One of the two processes; both do the same.
fn side(rank: usize, bare: &TcpStream, link: TcpStream) {
    bare.set_nodelay(true).expect("a socket");
    let (abort, pulse) = (Arc::new(Abort::default()), Arc::new(Pulse::default()));
    let settings = TcpSettings { rank, host: "bench".into(), peer_timeout: Duration::from_secs(10) };
    let links = vec![Link { rank: 1 - rank, host: "bench".into(), stream: link }];
    let transport = TcpTransport::new(settings, links, abort.clone(), pulse.clone()).expect("sockets");
    let comm = Ranks::start(transport, abort, pulse).expect("a thread");
    for size in SIZES {
        let repeats = (VOLUME / size).clamp(REPEATS.0, REPEATS.1);
        // In turns, so that whatever else runs on the machine disturbs both alike.
        let mut best = (Duration::MAX, Duration::MAX);
        let mut busy = 0.0;
        for _ in 0..3 {
            comm.barrier().expect("both live");
            best.0 = best.0.min(copy(bare, size, repeats));
            comm.barrier().expect("both live");
            let (cpu, start) = (processor_time(), Instant::now());
            best.1 = best.1.min(reduce(&comm, size, repeats));
            busy = (processor_time() - cpu) / start.elapsed().as_secs_f64();
        }
        if rank == 0 {
            report(size, repeats, best, busy);
        }
    }
}

fn report(size: usize, repeats: usize, (bare, ring): (Duration, Duration), busy: f64) {
    let rate = |time: Duration| size as f64 / time.as_secs_f64() / 1e9;
    let (bare, algorithm) = (2.0 * rate(bare), rate(ring));
    let (bus, time) = (2.0 * algorithm, ring.as_secs_f64() * 1e6);
    let share = bus / bare;
    println!(
        "{size:9}  {repeats:7}  {bare:10.2}  {time:8.0}  {algorithm:10.2}  {bus:8.2}  {share:8.2}  {:6.0} %",
        busy * 100.0
    );
}

/// Time of a copy of `size` bytes in both directions at once, streamed `repeats` times. Its buffers stay in the cache,
/// which is the best that a copy can do.
fn copy(mut socket: &TcpStream, size: usize, repeats: usize) -> Duration {
    let chunk = size.min(256 << 10);
    let chunks = size / chunk * repeats;
    let bytes = vec![1; chunk];
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..chunks).for_each(|_| { &*socket }.write_all(&bytes).expect("the other side reads")));
        let mut into = vec![0; chunk];
        (0..chunks).for_each(|_| socket.read_exact(&mut into).expect("the other side writes"));
    });
    start.elapsed() / repeats as u32
}

/// Time of an all-reduce of `size` bytes, each waited for before the next one.
fn reduce(comm: &Ranks, size: usize, repeats: usize) -> Duration {
    let buffer = Device::cpu().zeros([size / 4], DType::F32, Kind::Work);
    comm.all_reduce(&buffer).wait().expect("both live");
    let start = Instant::now();
    (0..repeats).for_each(|_| comm.all_reduce(&buffer).wait().expect("both live"));
    start.elapsed() / repeats as u32
}

/// Seconds of processor time of this process so far.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
