//! Which instruction set the kernels use, decided once per process by what the processor reports.
//!
//! A kernel reads [`level`] once, on the calling thread, and hands the value to its tasks, so one call never mixes
//! levels. [`with_level`] lowers the level for the current thread: that is how every path is tested on one machine.

use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;

/// Instruction sets that kernels are written for, from the least to the most capable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the compilation target guarantees (SSE2 on x86-64, NEON on aarch64).
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The above with `vdpbf16ps`.
    Avx512Bf16,
}

impl Level {
    /// Every level that this processor can run, from the least to the most capable.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16].into_iter().filter(|&l| l <= features())
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
            Self::Avx512Bf16 => "AVX-512 with bf16 products",
        })
    }
}

/// The most capable level of this processor, found on the first call.
pub fn features() -> Level {
    static FOUND: OnceLock<Level> = OnceLock::new();
    *FOUND.get_or_init(detect)
}

thread_local! {
    static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
}

/// The level that kernels called from this thread use.
pub fn level() -> Level {
    FORCED.get().map_or_else(features, |forced| forced.min(features()))
}

/// Runs `f` with kernels called from this thread limited to `level` (and never above [`features`]).
pub fn with_level<R>(level: Level, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Level>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(Some(level)));
    f()
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    match (avx2, avx512) {
        (true, true) if is_x86_feature_detected!("avx512bf16") => Level::Avx512Bf16,
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        (false, _) => Level::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// Defines a function whose body is compiled once per [`Level`] and vectorised by the compiler for each.
///
/// The generated function takes the level as an additional first argument, and its body may name the type `M`, the
/// level's way to multiply and add ([`super::math::MulAdd`]). The body must be plain safe code: it is
/// inlined into one `#[target_feature]` function per level, so helpers it calls must be `#[inline(always)]`.
macro_rules! simd {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($gen:ident: $bound:path),*>)? ($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[inline]
        $vis fn $name $(<$($gen: $bound),*>)? (level: $crate::cpu::Level, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<M: $crate::cpu::math::MulAdd, $($($gen: $bound),*)?>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512 $(<$($gen: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? {
                    body::<$crate::cpu::math::Fused, $($($gen),*)?>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$($gen: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? {
                    body::<$crate::cpu::math::Fused, $($($gen),*)?>($($arg),*)
                }
                // SAFETY: a level is only ever one that the processor was found to support.
                unsafe {
                    match level {
                        $crate::cpu::Level::Portable => {}
                        $crate::cpu::Level::Avx2 => return avx2($($arg),*),
                        $crate::cpu::Level::Avx512 | $crate::cpu::Level::Avx512Bf16 => return avx512($($arg),*),
                    }
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = level;
            body::<$crate::cpu::math::Native, $($($gen),*)?>($($arg),*)
        }
    };
}
pub(crate) use simd;
