#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;
use std::fmt;

#[cfg(target_arch = "x86_64")]
use crate::arch::amx;

/// Instruction set that the kernels use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust with `f32` activations; runs everywhere and defines what the others compute.
    Scalar,
    /// AVX2, FMA and F16C; 8-bit activations against quantised weights.
    Avx2,
    /// The same with the product sums of AVX-VNNI.
    Avx2Vnni,
    /// AVX-512 F, BW, VL and VNNI; 8-bit activations against quantised weights.
    Avx512,
    /// AVX-512 with the tiles of AMX, which multiply bfloat16 for many tokens at a time.
    Amx,
    /// NEON, which every 64-bit Arm processor has; 8-bit activations against quantised weights.
    Neon,
    /// The same with the product sums of `dotprod`.
    NeonDot,
    /// The same with the product sums of unsigned and signed bytes of `i8mm`.
    NeonI8mm,
}

impl Isa {
    /// Every instruction set; those of one processor are slowest first.
    pub const ALL: [Self; 8] = [
        Self::Scalar,
        Self::Avx2,
        Self::Avx2Vnni,
        Self::Avx512,
        Self::Amx,
        Self::Neon,
        Self::NeonDot,
        Self::NeonI8mm,
    ];

    /// Returns the fastest instruction set of this processor.
    pub fn detect() -> Self {
        Self::ALL
            .into_iter()
            .rfind(|isa| isa.is_available())
            .unwrap_or(Self::Scalar)
    }

    /// Says whether this processor can run it, and the system lets this process.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Vnni => Self::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Amx => amx::refusal().is_none(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx2Vnni | Self::Avx512 | Self::Amx => false,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => Self::Neon.is_available() && is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => Self::NeonDot.is_available() && is_aarch64_feature_detected!("i8mm"),
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon | Self::NeonDot | Self::NeonI8mm => false,
        }
    }

    /// Parses a name given by the user.
    ///
    /// # Errors
    /// If there is no such instruction set, or this processor does not have it; the message lists what it has.
    pub fn parse(name: &str) -> Result<Self, IsaError> {
        let found = Self::ALL.into_iter().find(|isa| isa.name() == name);
        let Some(isa) = found else {
            return Err(IsaError::Unknown(name.to_owned(), available()));
        };
        if isa.is_available() {
            return Ok(isa);
        }
        #[cfg(target_arch = "x86_64")]
        if isa == Self::Amx
            && let Some(refusal) = amx::refusal()
        {
            return Err(IsaError::Amx(refusal, available()));
        }
        Err(IsaError::Unavailable(isa, available()))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx2Vnni => "avx2-vnni",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
            Self::Neon => "neon",
            Self::NeonDot => "neon-dot",
            Self::NeonI8mm => "neon-i8mm",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why an instruction set cannot be used. The user can fix it by naming another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// No instruction set has this name.
    #[error("unknown instruction set {0:?}; this processor has: {1}")]
    Unknown(String, String),
    /// The processor lacks it.
    #[error("this processor cannot run {0}; it has: {1}")]
    Unavailable(Isa, String),
    /// AMX is missing or must not be used.
    #[error("this processor cannot run amx, {0}; it has: {1}")]
    Amx(AmxRefusal, String),
}

/// Why AMX cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmxRefusal {
    /// It takes an Intel processor from Sapphire Rapids on.
    #[error("it lacks avx512, amx-tile or amx-bf16")]
    Processor,
    /// It takes Linux 5.16, and a sandbox that does not filter the request.
    #[error("the kernel does not permit it (ARCH_REQ_XCOMP_PERM needs Linux 5.16)")]
    Kernel,
    /// The processor, or what emulates it, is faulty.
    #[error("its products are not what they are defined to be")]
    WrongProducts,
}

fn available() -> String {
    let names: Vec<_> = Isa::ALL
        .into_iter()
        .filter(|isa| isa.is_available())
        .map(Isa::name)
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_what_is_there_and_lists_it_otherwise() {
        assert_eq!(Isa::parse("scalar"), Ok(Isa::Scalar));
        assert!(Isa::detect().is_available());
        let error = Isa::parse("sse9").unwrap_err().to_string();
        assert!(error.starts_with("unknown instruction set \"sse9\"; this processor has: scalar"));
        if !Isa::Amx.is_available() {
            let error = Isa::parse("amx").unwrap_err().to_string();
            assert!(
                error.contains("amx") && error.contains("; it has: scalar"),
                "{error}"
            );
        }
        for isa in Isa::ALL {
            assert_eq!(Isa::parse(&isa.to_string()).is_ok(), isa.is_available());
        }
    }
}
