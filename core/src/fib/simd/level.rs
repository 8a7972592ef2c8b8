//! Which instructions lookups use, and which of them the machine has: CPUID, and what the operating system keeps of
//! registers (XCR0).

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64;

/// The instructions that lookups use.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum SimdLevel {
    /// Only what every processor of the architecture has: on x86-64 that is prefetch, elsewhere nothing but the language.
    #[default]
    Portable,
    /// x86-64 with POPCNT, LZCNT, MOVBE, BMI1 and BMI2 (every server processor since 2015), and prefetch.
    Bmi2,
    /// The same with AVX2.
    Avx2,
    /// The same with AVX-512 F, BW, DQ, VL, VPOPCNTDQ and VBMI2 (Intel since Ice Lake, AMD since Zen 4): several
    /// addresses of a batch to a vector.
    Avx512,
    /// The same, what vectors of addresses lead to fetched by gathers: the choice where the processor does a gather as
    /// fast as the loads that it stands for (Intel since Sapphire Rapids). Every processor with AVX-512 can do it.
    Avx512Gather,
}

impl SimdLevel {
    /// Every level, lowest first.
    pub const ALL: [Self; 5] = [
        Self::Portable,
        Self::Bmi2,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Gather,
    ];

    /// The level that is fastest on this machine.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let (most, _) = x86_64::__get_cpuid_max(0);
            let popcnt = x86_64::__cpuid(1).ecx >> 23 & 1 == 1;
            let (extended, further) = if most >= 7 {
                let leaf = x86_64::__cpuid_count(7, 0);
                (leaf.ebx, leaf.ecx)
            } else {
                (0, 0)
            };
            let (bmi1, bmi2) = (extended >> 3 & 1 == 1, extended >> 8 & 1 == 1);
            let movbe = x86_64::__cpuid(1).ecx >> 22 & 1 == 1;
            let (most_extended, _) = x86_64::__get_cpuid_max(0x8000_0000);
            let lzcnt =
                most_extended >= 0x8000_0001 && x86_64::__cpuid(0x8000_0001).ecx >> 5 & 1 == 1;
            if popcnt && bmi1 && bmi2 && movbe && lzcnt {
                let saved = saved_state();
                let avx2 = extended >> 5 & 1 == 1 && saved & SSE_AND_AVX == SSE_AND_AVX;
                let avx512 = extended & AVX512_EBX == AVX512_EBX
                    && further & AVX512_ECX == AVX512_ECX
                    && saved & ALL_VECTORS == ALL_VECTORS;
                return match (avx2, avx512) {
                    (false, _) => Self::Bmi2,
                    (true, false) => Self::Avx2,
                    (true, true) if gathers_are_fast() => Self::Avx512Gather,
                    (true, true) => Self::Avx512,
                };
            }
        }
        Self::Portable
    }
}

/// The processor state that the operating system keeps over a switch, as XCR0 has it.
#[cfg(target_arch = "x86_64")]
fn saved_state() -> u64 {
    const OSXSAVE_AND_AVX: u32 = 3 << 27;
    if x86_64::__cpuid(1).ecx & OSXSAVE_AND_AVX != OSXSAVE_AND_AVX {
        return 0;
    }
    // SAFETY: OSXSAVE says that the operating system has turned XGETBV on.
    unsafe { x86_64::_xgetbv(0) }
}

/// Whether a gather takes no longer than the loads that it stands for. Intel's first processors with these instructions
/// (Ice Lake, Tiger Lake, Rocket Lake) leak by gathers what others have loaded, and their microcode's cure for that makes
/// a gather wait for all before it; those after them do not, and take 2.2 ns for eight cells of the nearest cache where
/// AMD's Zen 5 takes 3.8.
#[cfg(target_arch = "x86_64")]
fn gathers_are_fast() -> bool {
    /// The models of family 6 that are those processors.
    const LEAKING: [u32; 7] = [0x6a, 0x6c, 0x7d, 0x7e, 0x8c, 0x8d, 0xa7];
    let vendor = x86_64::__cpuid(0);
    let signature = x86_64::__cpuid(1).eax;
    let family = signature >> 8 & 0xf;
    let model = signature >> 4 & 0xf | signature >> 12 & 0xf0;
    // The name of the vendor is in these three, in this order.
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    name == [*b"Genu", *b"ineI", *b"ntel"] && (family != 6 || !LEAKING.contains(&model))
}

/// The bits of XCR0 for 128-bit and 256-bit registers.
#[cfg(target_arch = "x86_64")]
const SSE_AND_AVX: u64 = 3 << 1;
/// Those, and the bits for mask registers and both parts of the 512-bit ones.
#[cfg(target_arch = "x86_64")]
const ALL_VECTORS: u64 = SSE_AND_AVX | 7 << 5;
/// The bits of CPUID leaf 7 for AVX-512 F, DQ, BW and VL (EBX), VBMI2 and VPOPCNTDQ (ECX).
#[cfg(target_arch = "x86_64")]
const AVX512_EBX: u32 = 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31;
#[cfg(target_arch = "x86_64")]
const AVX512_ECX: u32 = 1 << 6 | 1 << 14;
