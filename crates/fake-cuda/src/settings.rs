//! What machine is imitated, and what goes wrong with it, as `key=value` parted by commas:
//!
//! | key | value | |
//! |---|---|---|
//! | `gpu` | `L20`, `4090`, `A100`, `H100`, `H200` | what the devices are |
//! | `count` | number | how many there are |
//! | `driver` | 12040 | newest CUDA of the driver, 1000 major + 10 minor |
//! | `memory` | bytes | of a device |
//! | `free` | bytes | what a device says is free, whatever there is |
//! | `left` | `cuMemAlloc_v2:3:5000000` | from the third such call on, all that may be in use |
//! | `seed` | number | of the order of work; each device adds its own number |
//! | `fail` | `cuLaunchKernel:17`, or with a code `cuMemAlloc_v2:3:2` | the 17th such call of a device fails |
//! | `nccl` | 22703 | NCCL's version, 10000 major + 100 minor + patch |
//! | `hang` | `ncclAllReduce:3`, `ncclCommInitRankConfig:1` | the third such call never comes to its end |
//! | `later` | `ncclAllReduce:3:6` | nor does this, and its communicator says so with that code |
//! | `drop` | `cuStreamWaitEvent:3` | the third such call succeeds and does nothing |
//! | `wrong` | `cublasLtMatmul:1` | the first such call gives a wrong value |
//! | `rate` | percent | how fast its links seem by its events; 100 is what such a GPU's do |
//! | `bus` | `0000:17:00.0+0000:2a:00.0` | where the devices are; the rest follow |
//! | `peer` | `0-1:corrupt`, `0-1:hang`, `0-1:none` | what comes of direct copies from the first to the second, NCCL's sums among them |
//! | `uncorrected` | number | errors of memory that weren't corrected |

/// A model of GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Model {
    key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) capability: [i32; 2],
    pub(crate) memory: u64,
    pub(crate) multiprocessors: i32,
    /// Most shared memory of a block, bytes.
    pub(crate) shared: i32,
    /// MHz.
    pub(crate) clock: i32,
    /// How it reaches its peers.
    pub(crate) link: Link,
}

/// The way to peers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Link {
    /// Direct copies aren't allowed.
    Host,
    /// PCI Express.
    Bus,
    /// So many links.
    Nvlink(u32),
}

impl Link {
    /// Bytes a second of a copy.
    pub(crate) fn bandwidth(self) -> f64 {
        match self {
            Self::Host => 12e9,
            Self::Bus => 25e9,
            Self::Nvlink(links) => f64::from(links) * 21e9,
        }
    }
}

const fn model(
    key: &'static str,
    name: &'static str,
    capability: [i32; 2],
    gib: u64,
    (multiprocessors, shared_kib, clock): (i32, i32, i32),
    link: Link,
) -> Model {
    Model { key, name, capability, memory: gib << 30, multiprocessors, shared: shared_kib << 10, clock, link }
}

const MODELS: [Model; 5] = [
    model("L20", "NVIDIA L20", [8, 9], 45, (92, 99, 2520), Link::Bus),
    model("4090", "NVIDIA GeForce RTX 4090", [8, 9], 24, (128, 99, 2520), Link::Host),
    model("A100", "NVIDIA A100-SXM4-80GB", [8, 0], 80, (108, 163, 1410), Link::Nvlink(12)),
    model("H100", "NVIDIA H100 80GB HBM3", [9, 0], 80, (132, 227, 1980), Link::Nvlink(18)),
    model("H200", "NVIDIA H200", [9, 0], 140, (132, 227, 1980), Link::Nvlink(18)),
];

/// The n-th call of a function.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) number: u64,
    pub(crate) code: i32,
}

/// What comes of direct copies from one device to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// Other bytes.
    Corrupt,
    /// Nothing, ever.
    Hang,
    /// They are refused.
    None,
}

/// All settings.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) model: Model,
    pub(crate) count: usize,
    pub(crate) driver: i32,
    pub(crate) memory: u64,
    pub(crate) free: Option<u64>,
    pub(crate) left: Option<Call>,
    pub(crate) seed: u64,
    pub(crate) fail: Vec<Call>,
    pub(crate) drop: Vec<Call>,
    pub(crate) nccl: i32,
    pub(crate) hang: Vec<Call>,
    pub(crate) later: Vec<Call>,
    pub(crate) wrong: Vec<Call>,
    /// Percent.
    pub(crate) rate: u32,
    pub(crate) bus: Vec<String>,
    pub(crate) peer: Vec<(usize, usize, Broken)>,
    pub(crate) uncorrected: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let model = MODELS[0];
        let (memory, calls) = (model.memory, Vec::new);
        let (fail, drop, hang, later, wrong) = (calls(), calls(), calls(), calls(), calls());
        let (driver, seed, nccl, rate) = (12_040, 1, 22_703, 100);
        let (bus, peer, uncorrected) = (Vec::new(), Vec::new(), 0);
        Self {
            model,
            count: 1,
            driver,
            memory,
            free: None,
            left: None,
            seed,
            fail,
            drop,
            nccl,
            hang,
            later,
            wrong,
            rate,
            bus,
            peer,
            uncorrected,
        }
    }
}

/// Code of a launch that failed, where none is given.
const LAUNCH_FAILED: i32 = 719;

impl Settings {
    /// Reads settings.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut found = Self::default();
        let mut memory = None;
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("`{pair}` isn't `key=value`"))?;
            match key {
                "gpu" => {
                    let models = MODELS.iter().find(|model| model.key == value);
                    found.model = *models.ok_or_else(|| format!("`{value}` is no GPU known here"))?;
                }
                "count" => found.count = number(value)?,
                "driver" => found.driver = number(value)?,
                "memory" => memory = Some(number(value)?),
                "free" => found.free = Some(number(value)?),
                "left" => found.left = Some(call(value)?),
                "seed" => found.seed = number(value)?,
                "fail" => found.fail.push(call(value)?),
                "drop" => found.drop.push(call(value)?),
                "nccl" => found.nccl = number(value)?,
                "hang" => found.hang.push(call(value)?),
                "later" => found.later.push(call(value)?),
                "wrong" => found.wrong.push(call(value)?),
                "rate" => found.rate = number(value)?,
                "bus" => found.bus = value.split('+').map(str::to_owned).collect(),
                "peer" => found.peer.push(broken(value)?),
                "uncorrected" => found.uncorrected = number(value)?,
                _ => return Err(format!("`{key}` is no setting of the fake")),
            }
        }
        found.memory = memory.unwrap_or(found.model.memory);
        Ok(found)
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` isn't a number"))
}

fn broken(text: &str) -> Result<(usize, usize, Broken), String> {
    let (pair, how) = text.split_once(':').ok_or_else(|| format!("`{text}` doesn't say how"))?;
    let (from, to) = pair.split_once('-').ok_or_else(|| format!("`{pair}` is no pair"))?;
    let how = match how {
        "corrupt" => Broken::Corrupt,
        "hang" => Broken::Hang,
        "none" => Broken::None,
        other => return Err(format!("`{other}` is nothing that comes of copies")),
    };
    Ok((number(from)?, number(to)?, how))
}

impl Settings {
    /// Where a device is on the bus.
    pub(crate) fn bus(&self, number: usize) -> String {
        self.bus.get(number).cloned().unwrap_or_else(|| format!("0000:{:02X}:00.0", number + 1))
    }

    /// What is wrong with direct copies between two.
    pub(crate) fn broken(&self, from: usize, to: usize) -> Option<Broken> {
        self.peer.iter().find(|(a, b, _)| (*a, *b) == (from, to)).map(|(.., how)| *how)
    }

    /// Whether one may reach the other's memory, to read what it copies from there.
    pub(crate) fn reaches(&self, own: usize, other: usize) -> bool {
        own != other && self.model.link != Link::Host && self.broken(other, own) != Some(Broken::None)
    }
}

fn call(text: &str) -> Result<Call, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (name, rest) = parts.split_first().ok_or("no function")?;
    let at = rest.first().ok_or_else(|| format!("`{text}` doesn't say which call"))?;
    let code = rest.get(1).map_or(Ok(LAUNCH_FAILED), |code| number(code))?;
    Ok(Call { name: (*name).to_owned(), number: number(at)?, code })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_mistakes_named() {
        let got = Settings::parse("gpu=H200, count=4,fail=cuMemAlloc_v2:3:2,drop=cuStreamWaitEvent:9").unwrap();
        assert_eq!((got.model.name, got.count, got.memory), ("NVIDIA H200", 4, 140 << 30));
        assert_eq!(got.fail, [Call { name: "cuMemAlloc_v2".into(), number: 3, code: 2 }]);
        assert_eq!(got.drop[0].number, 9);
        let got = Settings::parse("nccl=21003,hang=ncclSend:2,later=ncclAllReduce:3:6").unwrap();
        assert_eq!((got.nccl, got.hang[0].number, got.later[0].code), (21_003, 2, 6));
        let got = Settings::parse("free=70,left=cuMemAlloc_v2:3:5000").unwrap();
        assert_eq!((got.free, got.left.map(|call| (call.number, call.code))), (Some(70), Some((3, 5000))));
        assert_eq!(Settings::parse("").unwrap(), Settings::default());
        let got = Settings::parse("gpu=L20,count=3,peer=0-1:corrupt,peer=2-0:none,bus=0000:17:00.0").unwrap();
        assert_eq!((got.broken(0, 1), got.broken(1, 0)), (Some(Broken::Corrupt), None));
        assert!(got.reaches(0, 1) && got.reaches(2, 0) && !got.reaches(0, 2) && !got.reaches(1, 1));
        assert_eq!([got.bus(0), got.bus(1)], ["0000:17:00.0", "0000:02:00.0"]);
        for (text, part) in [
            ("peer=0-1:sing", "sing"),
            ("gpu=Voodoo", "Voodoo"),
            ("size=3", "size"),
            ("count", "count"),
            ("fail=cuInit", "which"),
        ] {
            assert!(Settings::parse(text).unwrap_err().contains(part), "{text}");
        }
    }
}
