//! Ranks on GPUs of paper: threads of one process, each with a device of its own, connected over TCP and by the fake NCCL.

#[expect(dead_code, reason = "these ranks need connections only")]
#[path = "../common/mod.rs"]
mod common;

use ferrotune_dist::{Abort, Link, NcclRanks, NcclSettings, Pulse, Ranks, TcpSettings, TcpTransport};
use ferrotune_tensor::Device;
use ferrotune_tensor::cuda::nccl::{self, Nccl};
use ferrotune_tensor::cuda::{Collectives, Libraries, Options, Search, Surroundings};
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

pub(crate) struct Fakes {
    libraries: Libraries,
    pub(crate) search: Search,
    nccl: Nccl,
    control: usize,
    count: usize,
    _folder: tempfile::TempDir,
}

pub(crate) static FAKES: LazyLock<Fakes> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    ferrotune_fake_cuda::install(folder.path()).expect("the fake libraries");
    let around = Surroundings { chosen: Some(folder.path().to_owned()), ..Surroundings::default() };
    let search = Search::new(&around);
    let libraries = Libraries::find(&search).expect("usable libraries").expect("a GPU");
    let nccl = nccl::open(&search, 12_040).expect("NCCL");
    let of = |name| libraries.driver().library().symbol(name).expect("the fake driver") as usize;
    let (control, count) = (of(c"ferrotune_fake_cuda"), of(c"ferrotune_fake_cuda_calls"));
    Fakes { libraries, search, nccl, control, count, _folder: folder }
});

/// Begins a device anew.
pub(crate) fn set(device: usize, settings: &str) {
    // SAFETY: the address of the fake's control function; each rank of a test has a device of its own.
    unsafe { ferrotune_fake_cuda::set(FAKES.control as *mut c_void, device as i32, settings) };
}

/// How often a function was called on a device since it was begun.
pub(crate) fn calls(device: usize, name: &str) -> u64 {
    // SAFETY: the address of the fake's counting function.
    unsafe { ferrotune_fake_cuda::calls(FAKES.count as *mut c_void, device as i32, name) }
}

/// Long enough for a busy machine.
pub(crate) const PATIENCE: NcclSettings =
    NcclSettings { join_timeout: Duration::from_secs(30), collective_timeout: Duration::from_secs(30) };

/// One rank: its communication, its device, and the number of that.
pub(crate) struct Rank {
    pub(crate) comm: NcclRanks,
    pub(crate) device: Device,
    pub(crate) number: usize,
}

/// A rank over its links, on device `number` of paper.
fn rank(rank: usize, number: usize, links: Vec<Link>, settings: NcclSettings) -> Rank {
    over((&FAKES.libraries, &FAKES.nccl), (rank, number), links, settings)
}

/// A rank with its number and that of its device.
pub(crate) fn over(
    (libraries, nccl): (&Libraries, &Nccl),
    (rank, number): (usize, usize),
    links: Vec<Link>,
    settings: NcclSettings,
) -> Rank {
    let (abort, pulse) = (Arc::new(Abort::default()), Arc::new(Pulse::default()));
    let tcp = TcpSettings { rank, host: format!("host-{rank}"), peer_timeout: Duration::from_secs(5) };
    let transport = TcpTransport::new(tcp, links, abort.clone(), pulse.clone()).expect("sockets");
    let control = Ranks::start(transport, abort, pulse).expect("a thread");
    let device = Device::cuda(libraries, &Options { device: number, ..Options::default() }).expect("a GPU");
    let collectives = Collectives::new(&device, nccl.clone()).expect("a stream").expect("a GPU");
    Rank { comm: NcclRanks::start(control, collectives, settings).expect("a thread"), device, number }
}

/// Runs `body` on as many ranks as there are `fakes`, each on a device with these settings. What each returned.
pub(crate) fn run<R: Send>(fakes: &[&str], patience: NcclSettings, body: impl Fn(Rank) -> R + Sync) -> Vec<R> {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let body = &body;
    std::thread::scope(|scope| {
        let ranks = common::mesh(fakes.len()).into_iter().zip(fakes).enumerate().map(|(number, (links, fake))| {
            let device = NEXT.fetch_add(1, Ordering::Relaxed);
            set(device, fake);
            scope.spawn(move || body(rank(number, device, links, patience)))
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}
