use std::{collections::BTreeSet, fs, thread};

/// The processor, as the system describes it.
pub(crate) struct Processor {
    pub(crate) model: String,
    /// Cores this process may use.
    pub(crate) cores: usize,
    flags: BTreeSet<String>,
}

impl Processor {
    pub(crate) fn detect() -> Self {
        // Empty where there is no such file: then nothing about the processor is known, and it has no flag.
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self::parse(&cpuinfo, cores)
    }

    pub(crate) fn parse(cpuinfo: &str, cores: usize) -> Self {
        let field = |names: &[&str]| {
            cpuinfo.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                names.contains(&name.trim()).then(|| value.trim())
            })
        };
        let flags = field(&["flags", "Features"]).unwrap_or_default();
        Self {
            model: field(&["model name"])
                .unwrap_or("unknown processor")
                .to_owned(),
            cores,
            flags: flags.split_whitespace().map(str::to_owned).collect(),
        }
    }

    /// Whether the system lists this flag, such as `avx512f`.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.flags.contains(flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_and_flags_are_found() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 2.10GHz\nflags\t\t: fpu avx2 avx512f\n\n\
                       processor\t: 1\nmodel name\t: other\nflags\t\t: amx_int8\n";
        let processor = Processor::parse(cpuinfo, 2);
        assert_eq!(processor.model, "Some CPU @ 2.10GHz");
        assert!(processor.has("avx512f"));
        assert!(!processor.has("avx512") && !processor.has("amx_int8"));
        assert_eq!(Processor::parse("", 1).model, "unknown processor");
    }
}
