//! A device: its memory, streams, events and modules, and the order in which deferred work is done.

use crate::nccl::Wrong;
use crate::settings::Settings;
use crate::work::Work;
use ferrotune_ptx::{Memory, Module};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The driver's codes that the fake gives.
pub(crate) mod code {
    pub(crate) const INVALID_VALUE: i32 = 1;
    pub(crate) const OUT_OF_MEMORY: i32 = 2;
    pub(crate) const INVALID_DEVICE: i32 = 101;
    pub(crate) const INVALID_IMAGE: i32 = 200;
    pub(crate) const INVALID_CONTEXT: i32 = 201;
    pub(crate) const NO_BINARY_FOR_GPU: i32 = 209;
    pub(crate) const INVALID_HANDLE: i32 = 400;
    pub(crate) const NOT_FOUND: i32 = 500;
    pub(crate) const NOT_READY: i32 = 600;
    pub(crate) const PEER_UNSUPPORTED: i32 = 217;
    pub(crate) const PEER_ALREADY_ENABLED: i32 = 704;
    pub(crate) const LAUNCH_FAILED: i32 = 719;
    /// Never given to anybody: work waits for other processes.
    pub(crate) const BLOCKED: i32 = -1;
}

/// An event: how often it was recorded, the marks that aren't passed, and when the last one was. A wait is for its own mark,
/// whatever stream a later one is in.
#[derive(Default)]
pub(crate) struct Event {
    pub(crate) recorded: u64,
    pub(crate) pending: BTreeSet<u64>,
    pub(crate) at: f64,
}

/// A kernel of a module.
#[derive(Clone)]
pub(crate) struct Function {
    pub(crate) module: Arc<Module>,
    pub(crate) name: String,
    /// Bytes of shared memory that a launch may add.
    pub(crate) most_shared: usize,
}

/// A device's state.
pub(crate) struct Device {
    pub(crate) settings: Settings,
    pub(crate) memory: Memory,
    /// Bytes of each allocation, as the host sees them.
    pub(crate) sizes: BTreeMap<u64, usize>,
    pub(crate) pinned: BTreeMap<usize, Box<[u64]>>,
    pub(crate) streams: BTreeMap<u64, VecDeque<Work>>,
    pub(crate) events: HashMap<u64, Event>,
    pub(crate) modules: HashMap<u64, Arc<Module>>,
    pub(crate) functions: HashMap<u64, Function>,
    /// Devices whose memory this one was let reach.
    pub(crate) peers: BTreeSet<usize>,
    /// The sticky error.
    pub(crate) broken: Option<i32>,
    calls: HashMap<&'static str, u64>,
    next: u64,
    order: u64,
    /// Milliseconds that its work so far would have taken.
    done: f64,
    /// When the host last had work done.
    waited: Instant,
}

/// Most devices that a process can have.
pub(crate) const MOST: usize = 1024;

static DEVICES: LazyLock<Vec<Mutex<Device>>> = LazyLock::new(|| {
    let text = std::env::var("FERROTUNE_FAKE_CUDA").unwrap_or_default();
    let settings = Settings::parse(&text).unwrap_or_else(|error| {
        tell(&format!("FERROTUNE_FAKE_CUDA: {error}"));
        Settings { count: 0, ..Settings::default() }
    });
    (0..MOST as u64).map(|number| Mutex::new(Device::new(settings.clone(), number))).collect()
});

/// A device by its number.
pub(crate) fn device(number: usize) -> Option<MutexGuard<'static, Device>> {
    Some(DEVICES.get(number)?.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Says on standard error what no code can say.
#[expect(clippy::print_stderr, reason = "a driver has no other way to name the line of a kernel")]
pub(crate) fn tell(what: &str) {
    eprintln!("fake GPU: {what}");
}

/// The default stream.
const DEFAULT_STREAM: u64 = 0;

impl Device {
    /// Handles hold the device's number in their upper half.
    pub(crate) fn new(settings: Settings, number: u64) -> Self {
        let order = (settings.seed + number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self {
            settings,
            memory: Memory::new(),
            sizes: BTreeMap::new(),
            pinned: BTreeMap::new(),
            streams: BTreeMap::from([(DEFAULT_STREAM, VecDeque::new())]),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            peers: BTreeSet::new(),
            broken: None,
            calls: HashMap::new(),
            next: number << 32 | 0x10,
            order,
            done: 0.0,
            waited: Instant::now(),
        }
    }

    /// A handle that wasn't given before.
    pub(crate) fn handle(&mut self) -> u64 {
        self.next += 8;
        self.next
    }

    /// Counts a call; a code if it fails or does nothing by the settings, or if an error sticks.
    pub(crate) fn call(&mut self, name: &'static str) -> Result<(), i32> {
        let count = self.calls.entry(name).or_default();
        *count += 1;
        let this = |call: &&crate::settings::Call| call.name == name && call.number == *count;
        if let Some(failure) = self.settings.fail.iter().find(this) {
            return Err(failure.code);
        }
        if self.settings.drop.iter().any(|call| this(&call)) {
            return Err(0);
        }
        self.broken.map_or(Ok(()), Err)
    }

    /// How the call that was just counted goes wrong later.
    pub(crate) fn wrong(&self, name: &str) -> Option<Wrong> {
        let this = |call: &&crate::settings::Call| call.name == name && call.number == self.calls(name);
        let fails = self.settings.later.iter().find(this).map(|call| Wrong::Fails(call.code));
        fails.or_else(|| self.settings.hang.iter().find(this).map(|_| Wrong::Hangs))
    }

    /// Whether the call that was just counted gives a wrong value.
    pub(crate) fn gives_wrong(&self, name: &str) -> bool {
        self.settings.wrong.iter().any(|call| call.name == name && call.number == self.calls(name))
    }

    /// How often a function was called.
    pub(crate) fn calls(&self, name: &str) -> u64 {
        self.calls.get(name).copied().unwrap_or(0)
    }

    /// Bytes that may be in use.
    pub(crate) fn room(&self) -> u64 {
        let left = self.settings.left.as_ref().filter(|call| self.calls(&call.name) >= call.number);
        left.map_or(self.settings.memory, |call| call.code as u64)
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> u64 {
        self.sizes.values().map(|bytes| *bytes as u64).sum()
    }

    pub(crate) fn push(&mut self, stream: u64, work: Work) -> Result<(), i32> {
        self.streams.get_mut(&stream).ok_or(code::INVALID_HANDLE)?.push_back(work);
        Ok(())
    }

    /// The pinned memory that holds these bytes.
    pub(crate) fn is_pinned(&self, at: usize, bytes: usize) -> bool {
        let before = self.pinned.range(..=at).next_back();
        before.is_some_and(|(base, held)| at - base + bytes <= held.len() * 8)
    }

    fn below(&mut self, n: usize) -> usize {
        self.order ^= self.order << 13;
        self.order ^= self.order >> 7;
        self.order ^= self.order << 17;
        ((self.order >> 16) % n.max(1) as u64) as usize
    }

    /// Streams whose next work can be done.
    fn ready(&self) -> Vec<u64> {
        let can = |work: &Work| match work {
            Work::Wait { event, mark } => self.events.get(event).is_none_or(|event| !event.pending.contains(mark)),
            Work::Exchange(exchange) => exchange.is_ready(),
            Work::Never => false,
            _ => true,
        };
        self.streams.iter().filter(|(_, queue)| queue.front().is_some_and(can)).map(|(stream, _)| *stream).collect()
    }

    /// Does work of any stream until `enough`; [`code::BLOCKED`] if that takes what other processes do.
    pub(crate) fn run_until(&mut self, enough: impl Fn(&Self) -> bool) -> Result<(), i32> {
        while !enough(self) {
            let ready = self.ready();
            if ready.is_empty() && self.waits() {
                self.waited = Instant::now();
                return Err(code::BLOCKED);
            }
            if ready.is_empty() {
                tell("all streams wait for each other");
                self.broken = Some(code::LAUNCH_FAILED);
            } else {
                self.turn(&ready, &enough);
            }
            if let Some(broken) = self.broken {
                return Err(broken);
            }
        }
        self.waited = Instant::now();
        Ok(())
    }

    /// Some work of one stream: in turns of random length, so that one stream may run far ahead of the others.
    fn turn(&mut self, ready: &[u64], enough: &impl Fn(&Self) -> bool) {
        let stream = ready[self.below(ready.len())];
        for _ in 0..=self.below(24) {
            if enough(self) || !self.ready().contains(&stream) {
                break;
            }
            self.step(stream);
        }
    }

    /// Whether a stream waits for other processes, or for what never comes.
    fn waits(&self) -> bool {
        self.streams.values().any(|queue| matches!(queue.front(), Some(Work::Exchange(_) | Work::Never)))
    }

    /// Does work while the host hasn't waited for any for `idle`, as long as other processes may wait for it.
    pub(crate) fn go_on(&mut self, idle: Duration) {
        let among = |queue: &VecDeque<Work>| queue.iter().any(|work| matches!(work, Work::Exchange(_)));
        while self.waited.elapsed() > idle && self.broken.is_none() && self.streams.values().any(among) {
            let ready = self.ready();
            if ready.is_empty() {
                return;
            }
            self.turn(&ready, &|_| false);
        }
    }

    fn step(&mut self, stream: u64) {
        let queue = self.streams.get_mut(&stream);
        if let Some(Work::Exchange(exchange)) = queue.and_then(VecDeque::front_mut)
            && exchange.begun.is_none()
            && !exchange.communicator.is_aborted()
        {
            if let Err(fault) = exchange.begin(&mut self.memory) {
                tell(&fault.to_string());
                self.broken = Some(code::LAUNCH_FAILED);
            }
            return;
        }
        let Some(work) = self.streams.get_mut(&stream).and_then(VecDeque::pop_front) else { return };
        self.done += work.milliseconds(&self.settings);
        if let Work::Record { event, mark } = work {
            if let Some(event) = self.events.get_mut(&event) {
                event.pending.remove(&mark);
                event.at = self.done;
            }
            return;
        }
        let seed = self.order;
        if let Err(fault) = work.run(&mut self.memory, seed) {
            tell(&fault.to_string());
            self.broken = Some(code::LAUNCH_FAILED);
        }
    }

    /// Does all work of a stream.
    pub(crate) fn drain(&mut self, stream: u64) -> Result<(), i32> {
        if !self.streams.contains_key(&stream) {
            return Err(code::INVALID_HANDLE);
        }
        self.run_until(|device| device.streams.get(&stream).is_none_or(VecDeque::is_empty))
    }

    /// Does all work.
    pub(crate) fn drain_all(&mut self) -> Result<(), i32> {
        self.run_until(|device| device.streams.values().all(VecDeque::is_empty))
    }
}
