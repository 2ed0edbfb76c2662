//! llama.cpp, from the source archive of its Python package, built for this processor.

use super::{processor::Processor, work::Work};
use crate::shell::{check, command, output};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The package whose source archive carries all of llama.cpp.
pub(crate) const PACKAGE: &str = "llama-cpp-python";
pub(crate) const VERSION: &str = "0.3.36";

/// What llama.cpp is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// All that the processor has, but AMX: that path crashed on the machines this was first measured on.
    Widest,
    /// AVX2 and what comes with it.
    Avx2,
}

/// llama.cpp's sources, and what is built of them.
pub(crate) struct Llama {
    folder: PathBuf,
}

impl Llama {
    /// Fetches the sources into `folder`, unless they are there.
    pub(crate) fn fetch(folder: &Path) -> Result<Self> {
        let llama = Self {
            folder: folder.to_owned(),
        };
        if llama.sources().join("CMakeLists.txt").is_file() {
            return Ok(llama);
        }
        let wanted = format!("{PACKAGE}=={VERSION}");
        let mut pip = command("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps"]);
        pip.args(["--no-binary", PACKAGE, &wanted, "--dest"]);
        check(pip.arg(folder)).context("fetching llama.cpp's sources by pip")?;
        let archive = folder.join(format!("{}.tar.gz", stem()));
        let mut unpack = command("python3");
        unpack.args(["-m", "tarfile", "--extract"]);
        check(unpack.arg(&archive).arg(folder))?;
        Ok(llama)
    }

    /// Builds `llama-bench`, unless it is built of the same version with the same options.
    pub(crate) fn build(&self, build: Build, processor: &Processor) -> Result<()> {
        let options = build.options(processor);
        let folder = self.build_folder(build);
        let built = format!(
            "{VERSION} {} {}",
            COMMON_OPTIONS.join(" "),
            options.join(" ")
        );
        // Written last, so that what was interrupted is built again.
        let built_path = folder.join("built.txt");
        if fs::read_to_string(&built_path).is_ok_and(|there| there == built) {
            return Ok(());
        }
        let mut configure = command("cmake");
        configure
            .arg("-S")
            .arg(self.sources())
            .arg("-B")
            .arg(&folder);
        check(configure.args(COMMON_OPTIONS).args(&options))
            .context("configuring llama.cpp (on Debian: apt-get install cmake g++)")?;
        let mut make = command("cmake");
        make.arg("--build").arg(&folder);
        make.args(["--target", "llama-bench", "--parallel"]);
        check(make.arg(processor.cores.to_string()))?;
        fs::write(&built_path, built).with_context(|| format!("writing {}", built_path.display()))
    }

    /// Returns the command that does this work once, after a warm-up of its own.
    pub(crate) fn command(&self, build: Build, file: &Path, work: Work, threads: u32) -> Command {
        let mut bench = command(self.build_folder(build).join("bin/llama-bench"));
        bench.arg("-m").arg(file);
        let (prompt, generated, depth) = match work {
            Work::Prefill { tokens } => (tokens, 0, 0),
            Work::Decode { context, tokens } => (0, tokens, context),
        };
        for (flag, value) in [
            ("-t", threads),
            ("-p", prompt),
            ("-n", generated),
            ("-d", depth),
            ("-r", 1),
        ] {
            bench.arg(flag).arg(value.to_string());
        }
        bench.args(["-o", "json"]);
        bench
    }

    fn sources(&self) -> PathBuf {
        self.folder.join(stem()).join("vendor/llama.cpp")
    }

    fn build_folder(&self, build: Build) -> PathBuf {
        self.folder.join(match build {
            Build::Widest => "llama-widest",
            Build::Avx2 => "llama-avx2",
        })
    }
}

impl Build {
    /// The options for cmake that say which instructions to use.
    pub(crate) fn options(self, processor: &Processor) -> Vec<String> {
        if !cfg!(target_arch = "x86_64") {
            return vec!["-DGGML_NATIVE=ON".to_owned()];
        }
        let mut options = vec!["-DGGML_NATIVE=OFF".to_owned()];
        for &(option, flags) in INSTRUCTIONS {
            let wanted = self == Self::Widest || AVX2_INSTRUCTIONS.contains(&option);
            let on = wanted && flags.iter().all(|flag| processor.has(flag));
            options.push(format!("-DGGML_{option}={}", if on { "ON" } else { "OFF" }));
        }
        options
    }
}

/// What `llama-bench` reports, as far as it is used here.
#[derive(Debug, Deserialize)]
pub(crate) struct Report {
    #[serde(rename = "avg_ts")]
    pub(crate) tokens_per_second: f64,
    /// Tensors alone, without tokenizer and padding: what decoding reads for each token.
    #[serde(rename = "model_size")]
    pub(crate) weight_bytes: u64,
}

/// Runs a command of [`Llama::command`].
pub(crate) fn measure(command: &mut Command) -> Result<Report> {
    Report::parse(&output(command)?)
}

impl Report {
    fn parse(report: &str) -> Result<Self> {
        let tests: Vec<Self> = serde_json::from_str(report)
            .context("llama-bench did not print the JSON it used to")?;
        tests.into_iter().next().context("llama-bench ran no test")
    }
}

fn stem() -> String {
    format!("{}-{VERSION}", PACKAGE.replace('-', "_"))
}

const COMMON_OPTIONS: [&str; 6] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_OPENSSL=OFF",
];

/// Options of ggml's build, and the processor's flags that each wants.
const INSTRUCTIONS: &[(&str, &[&str])] = &[
    ("SSE42", &["sse4_2"]),
    ("AVX", &["avx"]),
    ("AVX2", &["avx2"]),
    ("FMA", &["fma"]),
    ("F16C", &["f16c"]),
    ("BMI2", &["bmi2"]),
    ("AVX_VNNI", &["avx_vnni"]),
    (
        "AVX512",
        &["avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"],
    ),
    ("AVX512_VBMI", &["avx512vbmi"]),
    ("AVX512_VNNI", &["avx512_vnni"]),
    ("AVX512_BF16", &["avx512_bf16"]),
];
const AVX2_INSTRUCTIONS: &[&str] = &["SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_benchs_report_is_read() {
        let report = r#"[{"build_commit": "0c1e570", "model_size": 96576768, "n_prompt": 512, "n_gen": 0,
                          "avg_ns": 2570000000, "avg_ts": 199.1, "stddev_ts": 0.0, "samples_ts": [199.1]}]"#;
        let report = Report::parse(report).unwrap();
        assert_eq!(
            (report.tokens_per_second, report.weight_bytes),
            (199.1, 96_576_768)
        );
        for wrong in ["[]", "", "error: failed to load model"] {
            assert!(Report::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_build_has_what_the_processor_has() {
        let flags = "sse4_2 avx avx2 fma f16c bmi2 avx512f avx512cd avx512vl avx512dq avx512bw avx512_vnni amx_int8";
        let processor = Processor::parse(&format!("flags : {flags}"), 2);
        let widest = Build::Widest.options(&processor);
        let avx2 = Build::Avx2.options(&processor);
        for on in [
            "-DGGML_AVX2=ON",
            "-DGGML_AVX512=ON",
            "-DGGML_AVX512_VNNI=ON",
            "-DGGML_AVX512_BF16=OFF",
        ] {
            assert!(widest.iter().any(|option| option == on), "{on}");
        }
        for on in [
            "-DGGML_NATIVE=OFF",
            "-DGGML_AVX2=ON",
            "-DGGML_FMA=ON",
            "-DGGML_AVX512=OFF",
        ] {
            assert!(avx2.iter().any(|option| option == on), "{on}");
        }
    }

    #[test]
    fn the_same_work_is_asked_for() {
        let llama = Llama {
            folder: PathBuf::from("peers"),
        };
        let words = |work| {
            let command = llama.command(Build::Avx2, Path::new("m.gguf"), work, 2);
            let words = command.get_args().map(|word| word.to_string_lossy());
            words.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            words(Work::Prefill { tokens: 512 }),
            "-m m.gguf -t 2 -p 512 -n 0 -d 0 -r 1 -o json"
        );
        assert_eq!(
            words(Work::Decode {
                context: 128,
                tokens: 64
            }),
            "-m m.gguf -t 2 -p 0 -n 64 -d 128 -r 1 -o json"
        );
    }
}
