use super::{llama::Build, models::Model, processor::Processor};
use std::fmt;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A prompt, up to its first token.
    Prefill { tokens: u32 },
    /// Tokens one after the other, from the first to the last, after a prompt.
    Decode { context: u32, tokens: u32 },
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill { tokens } => write!(f, "prefill {tokens}"),
            Self::Decode { context, .. } => write!(f, "decode at {context}"),
        }
    }
}

pub(crate) const PREFILL: Work = Work::Prefill { tokens: 512 };
pub(crate) const DECODE: Work = Work::Decode {
    context: 128,
    tokens: 64,
};
/// As far as the random shape was made for.
pub(crate) const DECODE_LONG: Work = Work::Decode {
    context: 8128,
    tokens: 64,
};

/// How many sequences are decoded together.
pub(crate) const BATCHES: [u32; 6] = [1, 2, 4, 8, 16, 32];

/// The shape that is measured most.
pub(crate) const LARGE: Model = Model::Random("Q4_0");

/// One work that Shoal and llama.cpp do in turns, with the same file and as many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) model: Model,
    pub(crate) work: Work,
    pub(crate) threads: u32,
    /// The instruction set that Shoal is held to; otherwise its choice.
    pub(crate) isa: Option<Forced>,
    pub(crate) build: Build,
}

/// An instruction set to hold Shoal to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forced {
    /// As `SHOAL_ISA` takes it.
    pub(crate) name: &'static str,
    /// The processor's flag without which it cannot run.
    flag: &'static str,
}

impl Forced {
    pub(crate) fn runs_on(self, processor: &Processor) -> bool {
        processor.has(self.flag)
    }
}

/// What prefill is measured with where the processor is an x86-64: its time is arithmetic, so each set has its own limit.
const X86_64: [(Forced, Build); 3] = [
    (forced("amx", "amx_bf16"), Build::Widest),
    (forced("avx512", "avx512_vnni"), Build::Widest),
    (forced("avx2", "avx2"), Build::Avx2),
];

const fn forced(name: &'static str, flag: &'static str) -> Forced {
    Forced { name, flag }
}

/// Returns the pairs, in the order of the table. `quick` leaves most of them out.
pub(crate) fn pairs(quick: bool) -> Vec<Pair> {
    let threads: &[u32] = if quick { &[2] } else { &[1, 2] };
    let mut pairs = Vec::new();
    let mut add = |model, work, isa, build| {
        for &threads in threads {
            pairs.push(Pair {
                model,
                work,
                threads,
                isa,
                build,
            });
        }
    };
    add(Model::Smollm2, DECODE, None, Build::Widest);
    add(LARGE, DECODE, None, Build::Widest);
    if !quick {
        add(Model::Random("Q4_K"), DECODE, None, Build::Widest);
        add(Model::Random("Q8_0"), DECODE, None, Build::Widest);
    }
    add(Model::Smollm2, PREFILL, None, Build::Widest);
    if cfg!(target_arch = "x86_64") && !quick {
        for (isa, build) in X86_64 {
            add(LARGE, PREFILL, Some(isa), build);
        }
    } else {
        add(LARGE, PREFILL, None, Build::Widest);
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_does_fewer_rows() {
        let (all, quick) = (pairs(false), pairs(true));
        assert!(quick.len() < all.len() / 2);
        for pairs in [all, quick] {
            for (work, model) in [(DECODE, Model::Smollm2), (DECODE, LARGE), (PREFILL, LARGE)] {
                assert!(
                    pairs
                        .iter()
                        .any(|pair| (pair.work, pair.model) == (work, model))
                );
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_set_that_is_held_to_meets_a_peer_built_for_it() {
        for pair in pairs(false) {
            let avx2 = pair.isa.is_some_and(|isa| isa.name == "avx2");
            assert_eq!(avx2, pair.build == Build::Avx2, "{pair:?}");
        }
        let processor = Processor::parse("flags : avx2 avx512f avx512_vnni", 2);
        let runs = X86_64.map(|(isa, _)| isa.runs_on(&processor));
        assert_eq!(runs, [false, true, true]);
    }
}
