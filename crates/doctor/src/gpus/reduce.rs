//! A sum over all GPUs by NCCL, one process a GPU as in a run.

use super::{Told, open};
use crate::facts::{Outcome, Trial, What};
use ferrotune_tensor::cuda::nccl::{self, UniqueId};
use ferrotune_tensor::cuda::{Call, CallError, Collectives, Communicator, Mark, Operand, Queue, Search, State};
use ferrotune_tensor::{DType, Device, Kind, Tensor};
use std::time::{Duration, Instant};

/// Bytes of the first sum, whose values are compared, and of the largest.
const FIRST: usize = 1 << 20;
const LARGEST: usize = 256 << 20;
/// A sum that took longer isn't made larger.
const LONG_ENOUGH: Duration = Duration::from_millis(20);
/// Sums that are timed at one size.
const REPEATS: u32 = 5;
/// Bytes from which a sum tells what links can.
const TELLING: usize = 32 << 20;

pub(super) fn rank(
    search: &Search,
    (what, rank, ranks): (What, usize, usize),
    identity: Option<&str>,
    tell: &mut dyn FnMut(Told),
) {
    tell(Told::Begin(what.clone()));
    let (size, outcome) = match reduce(search, (rank, ranks), identity, tell) {
        Ok(done) => done,
        Err(error) => (String::new(), Outcome::Failed(error)),
    };
    tell(Told::Done(Trial { what, size, outcome }));
}

fn reduce(
    search: &Search,
    (rank, ranks): (usize, usize),
    identity: Option<&str>,
    tell: &mut dyn FnMut(Told),
) -> Result<(String, Outcome), String> {
    let device = open(search, rank)?;
    let nccl = nccl::open(search, 0).map_err(|error| error.to_string())?;
    let collectives = Collectives::new(&device, nccl).map_err(words)?.ok_or("that is no GPU")?;
    let id = match identity {
        Some(digits) => read(digits).ok_or("the identity can't be read")?,
        None => {
            let id = collectives.unique_id().map_err(words)?;
            tell(Told::Identity(id.bytes.iter().map(|byte| format!("{byte:02x}")).collect()));
            id
        }
    };
    let communicator = collectives.join(&id, rank, ranks, Queue::Shared).map_err(words)?;
    ready(&communicator)?;
    let done = measured(&device, &communicator, (rank, ranks))?;
    communicator.finalize();
    ready(&communicator)?;
    communicator.destroy();
    Ok(done)
}

/// Compares one sum, then makes larger ones as long as they are quick.
fn measured(
    device: &Device,
    communicator: &Communicator,
    (rank, ranks): (usize, usize),
) -> Result<(String, Outcome), String> {
    let mut bytes = FIRST;
    let wrong = compared(device, communicator, (rank, ranks), bytes / 4)?;
    // All ranks must go on or end together: what they decide by is a sum, too.
    let any = Tensor::from_f32(device, &[f32::from(u8::from(wrong.is_some()))], [1], Kind::Work);
    sum(communicator, &any)?;
    if let Some(wrong) = wrong {
        return Ok((mib(bytes), Outcome::Wrong(wrong)));
    }
    if any.item() != 0.0 {
        return Ok((mib(bytes), Outcome::Skipped("another rank's sum is wrong".to_owned())));
    }
    loop {
        let tensor = device.zeros([bytes / 4], DType::F32, Kind::Work);
        let (mut least, begun) = (f64::INFINITY, Instant::now());
        for _ in 0..REPEATS {
            least = least.min(sum(communicator, &tensor)?);
        }
        let took = (begun.elapsed() / REPEATS).as_secs_f32();
        let took = Tensor::from_f32(device, &[took], [1], Kind::Work);
        sum(communicator, &took)?;
        let long = took.item() / ranks as f32 > LONG_ENOUGH.as_secs_f32();
        device.check().map_err(|fault| fault.to_string())?;
        if long || bytes >= LARGEST {
            // What each link of a ring carries.
            let carried = 2.0 * (ranks - 1) as f64 / ranks as f64 * bytes as f64;
            let rate = carried / least.max(1e-6);
            return Ok((mib(bytes), Outcome::Right { rate, telling: bytes >= TELLING }));
        }
        bytes *= 4;
    }
}

/// Sums small whole numbers, which f32 adds without rounding; what is wrong, in words.
fn compared(
    device: &Device,
    communicator: &Communicator,
    (rank, ranks): (usize, usize),
    count: usize,
) -> Result<Option<String>, String> {
    let own: Vec<f32> = (0..count).map(|i| (i % 97 + rank) as f32).collect();
    let tensor = Tensor::from_f32(device, &own, [count], Kind::Work);
    sum(communicator, &tensor)?;
    let got = tensor.to_f32();
    device.check().map_err(|fault| fault.to_string())?;
    let wanted = |i: usize| (ranks * (i % 97) + ranks * (ranks - 1) / 2) as f32;
    let first = (0..count).find(|i| got.get(*i).copied() != Some(wanted(*i)));
    let value = |i: usize| got.get(i).copied().unwrap_or(f32::NAN);
    Ok(first.map(|i| format!("rank {rank}: element {i} of the sum is {}, and not {}", value(i), wanted(i))))
}

/// Sums in place; seconds that it took the GPU.
fn sum(communicator: &Communicator, tensor: &Tensor) -> Result<f64, String> {
    let operand = Operand::of(tensor).ok_or_else(|| fault(tensor))?;
    let before = communicator.work_so_far().map_err(words)?;
    let launched = communicator.launch(&Call::AllReduce(operand), before).map_err(words)?;
    ready(communicator)?;
    let mark: Mark = communicator.mark(launched).map_err(words)?;
    while !mark.passed().map_err(words)? {
        // A sum that failed never passes.
        if let State::Failed(error) = communicator.state() {
            return Err(words(error));
        }
        std::thread::sleep(PAUSE);
    }
    mark.hold_work();
    Ok(mark.took().unwrap_or_default().as_secs_f64())
}

fn fault(tensor: &Tensor) -> String {
    tensor.device().check().err().map_or_else(|| "the tensor isn't on a GPU".to_owned(), |fault| fault.to_string())
}

/// Waits until NCCL takes calls again. Whoever started this process watches the time.
fn ready(communicator: &Communicator) -> Result<(), String> {
    loop {
        match communicator.state() {
            State::Ready => return Ok(()),
            State::Working => std::thread::sleep(PAUSE),
            State::Failed(error) => return Err(words(error)),
        }
    }
}

/// Between two looks.
const PAUSE: Duration = Duration::from_micros(50);

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn words(error: CallError) -> String {
    error.to_string()
}

fn mib(bytes: usize) -> String {
    format!("{} MiB", bytes >> 20)
}

/// An identity out of hexadecimal digits.
fn read(digits: &str) -> Option<UniqueId> {
    let mut id = UniqueId { bytes: [0; 128] };
    if digits.len() != 2 * id.bytes.len() || !digits.is_ascii() {
        return None;
    }
    for (i, byte) in id.bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn an_identity_is_read_back() {
        assert_eq!(read(&"0f".repeat(128)).unwrap().bytes, [15; 128]);
        assert!(read("0f").is_none() && read(&"zz".repeat(128)).is_none());
    }
}
