//! The safetensors format: one file, or several with an index.
//!
//! Headers are parsed, checked and made by the `safetensors` crate; the data is read by position
//! (see `file.rs`) and written as a stream, which that crate doesn't offer.

mod read;
mod write;

pub use read::{SafetensorsFile, ShardedSafetensors};
pub use write::{OutTensor, SaveModel, write_model};

use safetensors::Dtype as Stored;

use crate::dtype::Dtype;

/// Name of a model's only weight file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Name of the file that says which shard holds which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Longest header that is read, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

fn from_stored(stored: Stored) -> Dtype {
    let other = |name, elements, bytes| Dtype::Other { name, elements, bytes };
    match stored {
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
        Stored::BF16 => Dtype::Bf16,
        Stored::F64 => Dtype::F64,
        Stored::U8 => Dtype::U8,
        Stored::I32 => Dtype::I32,
        Stored::I64 => Dtype::I64,
        Stored::BOOL => other("BOOL", 1, 1),
        Stored::I8 => other("I8", 1, 1),
        Stored::I16 => other("I16", 1, 2),
        Stored::U16 => other("U16", 1, 2),
        Stored::U32 => other("U32", 1, 4),
        Stored::U64 => other("U64", 1, 8),
        Stored::C64 => other("C64", 1, 8),
        Stored::F8_E4M3 => other("F8_E4M3", 1, 1),
        Stored::F8_E5M2 => other("F8_E5M2", 1, 1),
        Stored::F8_E8M0 => other("F8_E8M0", 1, 1),
        Stored::F8_E4M3FNUZ => other("F8_E4M3FNUZ", 1, 1),
        Stored::F8_E5M2FNUZ => other("F8_E5M2FNUZ", 1, 1),
        Stored::F6_E2M3 => other("F6_E2M3", 4, 3),
        Stored::F6_E3M2 => other("F6_E3M2", 4, 3),
        Stored::F4 => other("F4", 2, 1),
        _ => other("a type of a later version", 1, 1),
    }
}

/// The type in a header, or `None` for types that are never written.
fn to_stored(dtype: Dtype) -> Option<Stored> {
    Some(match dtype {
        Dtype::F32 => Stored::F32,
        Dtype::F16 => Stored::F16,
        Dtype::Bf16 => Stored::BF16,
        Dtype::F64 => Stored::F64,
        Dtype::U8 => Stored::U8,
        Dtype::I32 => Stored::I32,
        Dtype::I64 => Stored::I64,
        _ => return None,
    })
}
