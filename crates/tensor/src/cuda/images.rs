//! The kernels as they are built into the program: PTX for any GPU, machine code for the common ones.

use std::io::Read as _;

/// A file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Image {
    Attention,
    AttentionPlain,
    Dora,
    Elementwise,
    Experts,
    Grouped,
    GroupedPlain,
    Loss,
    Norm,
    Optimizer,
    Rope,
    Rows,
    Sample,
}

/// What a file was compiled to.
struct Compiled {
    ptx: &'static str,
    /// Compute capability and a zlib stream of machine code.
    code: [((i32, i32), &'static [u8]); 4],
}

macro_rules! compiled {
    ($name:literal) => {
        Compiled {
            ptx: concat!(include_str!(concat!("../../../../kernels/ptx/", $name, ".ptx")), "\0"),
            code: [
                ((8, 0), include_bytes!(concat!("../../../../kernels/cubin/", $name, ".sm_80.z"))),
                ((8, 6), include_bytes!(concat!("../../../../kernels/cubin/", $name, ".sm_86.z"))),
                ((8, 9), include_bytes!(concat!("../../../../kernels/cubin/", $name, ".sm_89.z"))),
                ((9, 0), include_bytes!(concat!("../../../../kernels/cubin/", $name, ".sm_90.z"))),
            ],
        }
    };
}

static ATTENTION: Compiled = compiled!("attention");
static ATTENTION_PLAIN: Compiled = compiled!("attention_plain");
static DORA: Compiled = compiled!("dora");
static ELEMENTWISE: Compiled = compiled!("elementwise");
static EXPERTS: Compiled = compiled!("experts");
static GROUPED: Compiled = compiled!("grouped");
static GROUPED_PLAIN: Compiled = compiled!("grouped_plain");
static LOSS: Compiled = compiled!("loss");
static NORM: Compiled = compiled!("norm");
static OPTIMIZER: Compiled = compiled!("optimizer");
static ROPE: Compiled = compiled!("rope");
static ROWS: Compiled = compiled!("rows");
static SAMPLE: Compiled = compiled!("sample");

impl Image {
    fn compiled(self) -> &'static Compiled {
        match self {
            Self::Attention => &ATTENTION,
            Self::AttentionPlain => &ATTENTION_PLAIN,
            Self::Dora => &DORA,
            Self::Elementwise => &ELEMENTWISE,
            Self::Experts => &EXPERTS,
            Self::Grouped => &GROUPED,
            Self::GroupedPlain => &GROUPED_PLAIN,
            Self::Loss => &LOSS,
            Self::Norm => &NORM,
            Self::Optimizer => &OPTIMIZER,
            Self::Rope => &ROPE,
            Self::Rows => &ROWS,
            Self::Sample => &SAMPLE,
        }
    }

    /// PTX, with a zero at its end.
    pub(crate) fn ptx(self) -> &'static str {
        self.compiled().ptx
    }

    /// Machine code for a GPU of this compute capability, if there is some.
    pub(crate) fn code(self, capability: (i32, i32)) -> Option<Vec<u8>> {
        let (_, stream) = self.compiled().code.iter().find(|(of, _)| *of == capability)?;
        let mut code = Vec::new();
        flate2::read::ZlibDecoder::new(*stream).read_to_end(&mut code).ok()?;
        Some(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_unpacks_to_machine_code() {
        let all = [Image::Attention, Image::AttentionPlain, Image::Dora, Image::Elementwise, Image::Loss, Image::Norm];
        let more = [Image::Experts, Image::Grouped, Image::GroupedPlain, Image::Optimizer, Image::Rope, Image::Rows];
        for image in all.into_iter().chain(more).chain([Image::Sample]) {
            for capability in [(8, 0), (8, 6), (8, 9), (9, 0)] {
                assert!(image.code(capability).unwrap().starts_with(b"\x7fELF"), "{image:?}");
            }
            assert!(image.code((12, 0)).is_none() && image.ptx().ends_with("}\n\n\0"), "{image:?}");
        }
    }
}
