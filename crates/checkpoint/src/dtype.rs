//! Element types as they lie in files, and conversion through f32.
//!
//! Plain types hold one element in so many bytes; the quantised types of GGUF hold a block of
//! elements in so many bytes. Both are described by [`Dtype::block`], so one reader serves all.

use half::slice::HalfFloatSliceExt;

use crate::gguf::{quant, quantize};

/// Type of the elements of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// IEEE double precision.
    F64,
    /// Bytes.
    U8,
    /// Signed 32-bit integers.
    I32,
    /// Signed 64-bit integers.
    I64,
    /// Blocks of 32: f16 scale, 4-bit values around 8.
    Q4_0,
    /// Blocks of 32: f16 scale and minimum, 4-bit values.
    Q4_1,
    /// Blocks of 32: f16 scale, 5-bit values around 16.
    Q5_0,
    /// Blocks of 32: f16 scale and minimum, 5-bit values.
    Q5_1,
    /// Blocks of 32: f16 scale, 8-bit values.
    Q8_0,
    /// Blocks of 256: 6-bit scales and minima of 8 groups, 4-bit values.
    Q4K,
    /// Blocks of 256: 6-bit scales and minima of 8 groups, 5-bit values.
    Q5K,
    /// Blocks of 256: 8-bit scales of 16 groups, 6-bit values.
    Q6K,
    /// A type that is recognised in headers and can't be read.
    Other {
        /// Its name in the format.
        name: &'static str,
        /// Elements of a block.
        elements: usize,
        /// Bytes of a block.
        bytes: usize,
    },
}

impl Dtype {
    /// Elements and bytes of the smallest unit that can be read.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::U8 => (1, 1),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::F32 | Self::I32 => (1, 4),
            Self::F64 | Self::I64 => (1, 8),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Other { elements, bytes, .. } => (elements, bytes),
        }
    }

    /// Bytes of `elements` elements, or `None` if they don't fill whole blocks or overflow.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        let (block, bytes) = self.block();
        if !elements.is_multiple_of(block) {
            return None;
        }
        (elements / block).checked_mul(bytes)
    }

    /// Whether it holds blocks of several elements.
    pub fn is_quantised(self) -> bool {
        self.block().0 > 1
    }

    /// Name as in safetensors headers and in GGUF tools.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F64 => "F64",
            Self::U8 => "U8",
            Self::I32 => "I32",
            Self::I64 => "I64",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Other { name, .. } => name,
        }
    }

    /// Whether values of this type can be read into `to`: the same type, or from any float or
    /// quantised type to f32, f16 or bf16.
    pub fn converts_to(self, to: Self) -> bool {
        let from_floats = !matches!(self, Self::U8 | Self::I32 | Self::I64 | Self::Other { .. });
        let to_floats = matches!(to, Self::F32 | Self::F16 | Self::Bf16);
        (self == to && self.block().0 == 1 && !matches!(self, Self::Other { .. })) || (from_floats && to_floats)
    }
}

/// Decodes whole blocks of `from` into f32. `src` holds exactly the blocks of `dst`.
///
/// f16, bf16 and f32 are exact, f64 is rounded to nearest.
pub(crate) fn decode(from: Dtype, src: &[u8], dst: &mut [f32]) {
    debug_assert_eq!(from.bytes(dst.len()), Some(src.len()));
    match from {
        Dtype::F32 => bytemuck::cast_slice_mut(dst).copy_from_slice(src),
        Dtype::F16 => {
            for (values, bytes) in dst.chunks_mut(256).zip(src.chunks(512)) {
                let mut halves = [half::f16::ZERO; 256];
                let halves = &mut halves[..values.len()];
                bytemuck::cast_slice_mut(halves).copy_from_slice(bytes);
                halves.convert_to_f32_slice(values);
            }
        }
        Dtype::Bf16 => {
            for (value, bytes) in dst.iter_mut().zip(src.as_chunks::<2>().0) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
        Dtype::F64 => {
            for (value, bytes) in dst.iter_mut().zip(src.as_chunks::<8>().0) {
                *value = f64::from_le_bytes(*bytes) as f32;
            }
        }
        quantised => quant::decode(quantised, src, dst),
    }
}

/// Encodes f32 as `to`: f32, f16 or bf16, rounding to nearest, ties to even; or a type that GGUF export writes
/// ([`Dtype::is_quantised`]), as llama.cpp does. `dst` holds exactly the elements of `src`.
pub fn encode(to: Dtype, src: &[f32], dst: &mut [u8]) {
    debug_assert_eq!(to.bytes(src.len()), Some(dst.len()));
    match to {
        Dtype::F32 => dst.copy_from_slice(bytemuck::cast_slice(src)),
        Dtype::Bf16 => {
            for (bytes, value) in dst.as_chunks_mut::<2>().0.iter_mut().zip(src) {
                *bytes = bf16_bits(*value).to_le_bytes();
            }
        }
        Dtype::F16 => {
            for (bytes, values) in dst.chunks_mut(512).zip(src.chunks(256)) {
                let mut halves = [half::f16::ZERO; 256];
                let halves = &mut halves[..values.len()];
                halves.convert_from_f32_slice(values);
                bytes.copy_from_slice(bytemuck::cast_slice(halves));
            }
        }
        quantised => quantize::encode(quantised, src, dst),
    }
}

/// The upper half of an f32, rounded to nearest even; a NaN stays one. Without a branch, so that
/// the loop over it is vectorised.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_f32_and_back() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let mut wide = vec![0f32; 65536];
            decode(dtype, &all, &mut wide);
            let mut back = vec![0; all.len()];
            encode(dtype, &wide, &mut back);
            for (bits, (bytes, value)) in back.as_chunks::<2>().0.iter().zip(&wide).enumerate() {
                let got = u16::from_le_bytes(*bytes);
                if value.is_nan() {
                    // A signalling NaN may come back as a quiet one.
                    assert_eq!(got & 0x7e00 & !0x0200, bits as u16 & 0x7e00 & !0x0200);
                } else {
                    assert_eq!(usize::from(got), bits, "{dtype:?}");
                }
            }
        }
    }

    #[test]
    fn known_half_values() {
        // From the IEEE 754 definition: 1, smallest subnormal, largest subnormal, largest, -inf.
        let cases: [(u16, f32); 5] = [
            (0x3c00, 1.0),
            (0x0001, 2f32.powi(-24)),
            (0x03ff, 1023.0 * 2f32.powi(-24)),
            (0x7bff, 65504.0),
            (0xfc00, f32::NEG_INFINITY),
        ];
        for (bits, value) in cases {
            let mut got = [0f32];
            decode(Dtype::F16, &bits.to_le_bytes(), &mut got);
            assert_eq!(got[0], value);
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        let bf16 = |v: f32| {
            let mut out = [0; 2];
            encode(Dtype::Bf16, &[v], &mut out);
            u16::from_le_bytes(out)
        };
        assert_eq!(bf16(f32::from_bits(0x3f80_8000)), 0x3f80, "a tie goes to even");
        assert_eq!(bf16(f32::from_bits(0x3f81_8000)), 0x3f82, "a tie goes to even");
        assert_eq!(bf16(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert_eq!(bf16(f32::MAX), 0x7f80, "overflow is infinity");
        assert_eq!(bf16(f32::from_bits(0x7f80_0001)), 0x7fc0, "a NaN is not infinity");
        let mut out = [0; 2];
        encode(Dtype::F16, &[65520.0], &mut out);
        assert_eq!(u16::from_le_bytes(out), 0x7c00, "beyond the largest half is infinity");
    }
}
