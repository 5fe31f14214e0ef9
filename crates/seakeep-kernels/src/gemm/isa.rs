//! The instruction sets a product is written for, and the choice among them at run time.

use std::sync::OnceLock;

use super::pack::{Pack, Unpack, pack};
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// Multiplies a panel of A by a panel of B: `(words, a, b, tile)`. `b` is `[words, NR]`; of `a` only the tile's rows are read.
///
/// # Safety
/// The panels and what the tile names of C must be as large as that, and the processor must have the instructions.
pub(super) type Kernel = unsafe fn(usize, Side, *const u32, Tile);

/// A panel of A: word `w` of row `r` is `at[r * outer + w * inner]`.
#[derive(Clone, Copy)]
pub(super) struct Side {
    pub at: *const u32,
    pub outer: usize,
    pub inner: usize,
}

/// What becomes of the product of two panels: `c = alpha a b` or, with `add`, `c += alpha a b`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// The first element in C.
    pub c: *mut f32,
    /// Distance between rows of C.
    pub c_row: usize,
    /// Distance between columns of C: this or the other is 1.
    pub c_col: usize,
    /// Rows that are written, up to MR.
    pub rows: usize,
    /// Columns that are written, up to NR.
    pub cols: usize,
    pub add: bool,
    pub alpha: f32,
}

/// What a product needs of an instruction set.
#[derive(Clone, Copy)]
pub(super) struct Isa {
    pub name: &'static str,
    /// Rows of a panel of A.
    pub mr: usize,
    /// Columns of a panel of B.
    pub nr: usize,
    pub pack_a: Pack,
    pub pack_b: Pack,
    pub unpack: Option<Unpack>,
    pub kernel_f32: Kernel,
    /// For words that are pairs of bf16; called only where `pairs`.
    pub kernel_bf16: Kernel,
    /// Whether pairs of bf16 are multiplied as such.
    pub pairs: bool,
}

const PORTABLE: Isa = Isa {
    name: "portable",
    mr: portable::MR,
    nr: portable::NR,
    pack_a: pack::<{ portable::MR }>,
    pack_b: pack::<{ portable::NR }>,
    unpack: None,
    kernel_f32: portable::kernel,
    kernel_bf16: portable::kernel,
    pairs: false,
};

impl Isa {
    /// All that this processor has, the best first.
    pub fn available() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let wide = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq");
            if wide {
                let isa = Isa {
                    name: "AVX-512",
                    mr: avx512::MR,
                    nr: avx512::NR,
                    pack_a: avx512::pack_a,
                    pack_b: avx512::pack_b,
                    unpack: Some(avx512::unpack),
                    kernel_f32: avx512::kernel_f32,
                    kernel_bf16: avx512::kernel_bf16,
                    pairs: false,
                };
                if is_x86_feature_detected!("avx512bf16") {
                    found.push(Isa { name: "AVX-512 with BF16", pairs: true, ..isa });
                }
                found.push(isa);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Isa {
                    name: "AVX2",
                    mr: avx2::MR,
                    nr: avx2::NR,
                    pack_a: pack::<{ avx2::MR }>,
                    pack_b: pack::<{ avx2::NR }>,
                    unpack: None,
                    kernel_f32: avx2::kernel,
                    kernel_bf16: avx2::kernel,
                    pairs: false,
                });
            }
        }
        found.push(PORTABLE);
        found
    }

    /// The best that this processor has.
    pub fn best() -> &'static Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        BEST.get_or_init(|| Isa::available()[0])
    }
}
