//! Element types of tensors. Few on purpose: what a kernel can't take, loading converts.

/// Element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16: the upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Indices and token ids.
    U32,
    /// Labels; -100 means no loss.
    I32,
    /// Sums of squares, on devices that keep them.
    F64,
}

impl DType {
    /// Bytes of `numel` elements.
    pub fn bytes(self, numel: usize) -> usize {
        numel
            * match self {
                DType::F32 | DType::U32 | DType::I32 => 4,
                DType::Bf16 | DType::F16 => 2,
                DType::F64 => 8,
            }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::U32 => "u32",
            DType::I32 => "i32",
            DType::F64 => "f64",
        })
    }
}
