//! Device arrays, launches under two schedules, and tolerances.

use ferrotune_ptx::{Arg, Call, Fault, Memory, Module, Options, Traffic};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

/// The committed PTX, or what stands in for it while mutants are tried.
static SOURCES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let folder = std::env::var_os("FERROTUNE_TEST_PTX")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/ptx").into(), std::path::PathBuf::from);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).expect("PTX is text")).collect()
});

/// A kernel by itself, parsed when it is first launched: files are large, and a test needs little of them.
fn module_of(kernel: &str) -> &'static Module {
    static PARSED: Mutex<BTreeMap<String, &'static Module>> = Mutex::new(BTreeMap::new());
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = parsed.get(kernel) {
        return module;
    }
    let text = SOURCES.iter().find_map(|text| alone(text, kernel)).unwrap_or_else(|| panic!("no kernel {kernel}"));
    let module: &Module = Box::leak(Box::new(Module::parse(&text).unwrap_or_else(|error| panic!("{error}"))));
    parsed.insert(kernel.to_owned(), module);
    tell(kernel);
    module
}

/// Where `FERROTUNE_TEST_LAUNCHES` names a file, kernels are listed there: so that a mutant is tried on the tests of its
/// kernel only.
fn tell(kernel: &str) {
    if let Some(path) = std::env::var_os("FERROTUNE_TEST_LAUNCHES") {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a list of kernels");
        std::io::Write::write_all(&mut file, format!("{kernel}\n").as_bytes()).expect("a list of kernels");
    }
}

/// The head of a file's text and one kernel's body; lines of the others are empty, so that numbers stay.
fn alone(text: &str, kernel: &str) -> Option<String> {
    let entry = text.find(&format!(".visible .entry {kernel}("))?;
    let end = entry + text[entry..].find("\n}\n")? + 3;
    let head = text.find(".visible .entry ")?;
    let between = text[head..entry].matches('\n').count();
    Some(format!("{}{}{}", &text[..head], "\n".repeat(between), &text[entry..end]))
}

/// Element types.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Type {
    F32,
    Bf16,
    F16,
}

pub(crate) const TYPES: [Type; 3] = [Type::F32, Type::Bf16, Type::F16];

impl Type {
    /// As kernels' names end.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Largest relative error of rounding to it.
    pub(crate) fn unit(self) -> f64 {
        match self {
            Self::F32 => 2f64.powi(-24),
            Self::Bf16 => 2f64.powi(-8),
            Self::F16 => 2f64.powi(-11),
        }
    }

    /// Half the distance of subnormal numbers.
    fn tiny(self) -> f64 {
        if self == Self::F16 { 2f64.powi(-25) } else { 1e-30 }
    }

    pub(crate) fn round(self, x: f64) -> f64 {
        match self {
            Self::F32 => f64::from(x as f32),
            Self::Bf16 => bf16::from_f32(x as f32).to_f64(),
            Self::F16 => f16::from_f32(x as f32).to_f64(),
        }
    }

    fn bytes(self, x: &[f64]) -> Vec<u8> {
        match self {
            Self::F32 => x.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
            Self::Bf16 => x.iter().flat_map(|v| bf16::from_f32(*v as f32).to_le_bytes()).collect(),
            Self::F16 => x.iter().flat_map(|v| f16::from_f32(*v as f32).to_le_bytes()).collect(),
        }
    }

    fn values(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            Self::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64()).collect(),
            Self::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f64()).collect(),
        }
    }

    fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// Deterministic values within `bound`, exact in every type if it is a power of two: 8 bits each.
pub(crate) fn values(n: usize, seed: u32, bound: f64) -> Vec<f64> {
    let mix = |i: u32| {
        let x = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(2_654_435_761).rotate_left(13);
        (x ^ x >> 15).wrapping_mul(0x85eb_ca6b)
    };
    (0..n as u32).map(|i| f64::from((mix(i) >> 24) as u8 as i8) / 128.0 * bound).collect()
}

/// An array on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Array {
    pub(crate) at: u64,
    pub(crate) len: usize,
    pub(crate) of: Type,
}

impl From<Array> for Arg {
    fn from(array: Array) -> Self {
        Self::U64(array.at)
    }
}

pub(crate) const NULL: Arg = Arg::U64(0);

/// A device under one schedule.
pub(crate) struct Gpu {
    pub(crate) memory: Memory,
    seed: u64,
    /// What launches cost, by kernel.
    pub(crate) costs: BTreeMap<String, Traffic>,
}

impl Gpu {
    pub(crate) fn new(memory: Memory, seed: u64) -> Self {
        Self { memory, seed, costs: BTreeMap::new() }
    }

    pub(crate) fn array(&mut self, of: Type, values: &[f64]) -> Array {
        let array = self.empty(of, values.len());
        self.memory.write(array.at, &of.bytes(values)).expect("an array of its own");
        array
    }

    /// Begins `by` elements after a multiple of 16 bytes.
    pub(crate) fn shifted(&mut self, of: Type, by: usize, values: &[f64]) -> Array {
        let all = [&vec![0.0; by], values].concat();
        let array = self.array(of, &all);
        Array { at: array.at + (by * of.size()) as u64, len: values.len(), of }
    }

    pub(crate) fn empty(&mut self, of: Type, len: usize) -> Array {
        Array { at: self.memory.alloc(len * of.size()), len, of }
    }

    pub(crate) fn zeros(&mut self, of: Type, len: usize) -> Array {
        self.array(of, &vec![0.0; len])
    }

    /// 32-bit integers; their length isn't asked for again.
    pub(crate) fn words(&mut self, words: &[u32]) -> Arg {
        let at = self.memory.alloc(4 * words.len());
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.memory.write(at, &bytes).expect("an array of its own");
        Arg::U64(at)
    }

    pub(crate) fn read(&self, array: Array) -> Vec<f64> {
        let mut bytes = vec![0; array.len * array.of.size()];
        self.memory.read(array.at, &mut bytes).unwrap_or_else(|error| panic!("a result: {error}"));
        array.of.values(&bytes)
    }

    pub(crate) fn raw(&self, at: &Arg, bytes: usize) -> Vec<u8> {
        let Arg::U64(at) = *at else { panic!("an address") };
        let mut raw = vec![0; bytes];
        self.memory.read(at, &mut raw).unwrap_or_else(|error| panic!("a result: {error}"));
        raw
    }

    pub(crate) fn launch(&mut self, kernel: &str, grid: [u32; 3], block: [u32; 3], args: &[Arg]) {
        self.launch_shared(kernel, (grid, block, 0), args);
    }

    pub(crate) fn launch_shared(&mut self, kernel: &str, shape: ([u32; 3], [u32; 3], usize), args: &[Arg]) {
        self.try_launch(kernel, shape, args).unwrap_or_else(|fault| panic!("{fault}"));
    }

    pub(crate) fn try_launch(
        &mut self,
        kernel: &str,
        (grid, block, shared_bytes): ([u32; 3], [u32; 3], usize),
        args: &[Arg],
    ) -> Result<(), Fault> {
        let module = module_of(kernel);
        let call = Call { kernel, grid: grid.into(), block: block.into(), shared_bytes, args };
        let stats = module.launch(&call, &mut self.memory, &Options { seed: self.seed, limit: 1 << 23 })?;
        *self.costs.entry(kernel.to_owned()).or_default() += stats.traffic;
        Ok(())
    }
}

/// What `work` computes, the same bits under two schedules.
pub(crate) fn on_gpu<R: PartialEq + std::fmt::Debug>(work: impl Fn(&mut Gpu) -> R) -> R {
    let [first, second] = [3, 77].map(|seed| work(&mut Gpu::new(Memory::new(), seed)));
    assert_eq!(first, second, "two schedules");
    first
}

/// Asserts that each element is the wanted one rounded to its type, but for `slack` of the largest wanted.
pub(crate) fn assert_near(what: &str, of: Type, got: &[f64], want: &[f64], slack: f64) {
    let largest = want.iter().fold(0f64, |m, x| m.max(x.abs()));
    assert_within(what, of, got, want, slack * largest);
}

/// The same, but for `error`: what remains where large terms cancel.
pub(crate) fn assert_within(what: &str, of: Type, got: &[f64], want: &[f64], error: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let allowed = 1.01 * of.unit() * w.abs() + error + of.tiny();
        assert!((g - w).abs() <= allowed, "{what} {of:?} at {i}: {g}, expected {w} within {allowed:e}");
    }
}

/// Blocks for `n` items of `each` a thread, 256 threads a block; few, so that threads take several.
pub(crate) fn blocks(n: usize, each: usize) -> [u32; 3] {
    [n.div_ceil(256 * each).clamp(1, 3) as u32, 1, 1]
}

#[test]
fn every_kernel_is_understood() {
    for text in SOURCES.iter() {
        let module = Module::parse(text).unwrap_or_else(|error| panic!("{error}"));
        for kernel in module.kernels() {
            let own = alone(text, kernel.name()).expect("a kernel of the file");
            let own = Module::parse(&own).unwrap_or_else(|error| panic!("{error}"));
            let lines =
                |kernel: &ferrotune_ptx::Kernel| kernel.instructions().map(|(line, _)| line).collect::<Vec<_>>();
            assert_eq!(lines(&own.kernels()[0]), lines(kernel), "{} alone", kernel.name());
        }
    }
}
