//! The house rules of `docs/ARCHITECTURE.md`, held by a program: who may depend on whom, where unsafe code may be,
//! which crates are pure, and what tracked files may not name.
//!
//! Each test collects every offence before it fails, so one run shows all there is to mend.

use serde_json::Value;
use std::{
    collections::BTreeSet,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Which of our crates each of our crates may use. A crate that is not listed fails the test: add it here and to
/// `docs/ARCHITECTURE.md`.
const ARROWS: &[(&str, &[&str])] = &[
    ("kernels", &[]),
    ("fabric", &[]),
    ("model", &["kernels", "fabric"]),
    ("text", &[]),
    ("scheduler", &[]),
    ("engine", &["model", "scheduler", "fabric", "kernels"]),
    ("api", &[]),
    ("server", &["engine", "text", "api"]),
    ("cluster", &["fabric", "engine"]),
    (
        "shoal",
        &[
            "kernels", "fabric", "model", "text", "engine", "api", "server", "cluster",
        ],
    ),
    ("testkit", &["kernels"]),
    ("xtask", &[]),
];

/// Crates that speak HTTP or run the async runtime, and packages that bring either.
const ASYNC_CRATES: &[&str] = &["server", "cluster", "shoal"];
const ASYNC_PACKAGES: &[&str] = &[
    "tokio",
    "axum",
    "hyper",
    "reqwest",
    "tower",
    "tower-http",
    "hf-hub",
];

/// The only crates with unsafe code.
const UNSAFE_CRATES: &[&str] = &["kernels", "fabric"];

/// Crates to which time, randomness and the outer world come as arguments, and the words that would break it.
const PURE_CRATES: &[&str] = &["scheduler", "text"];
const IMPURE_WORDS: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "std::fs",
    "std::net",
    "std::process",
    "std::env",
    "thread::spawn",
    "rand::",
    "getrandom",
];

/// Model families, which only `model::families` may name.
const FAMILIES: &[&str] = &[
    "llama", "smollm", "qwen", "mistral", "gemma", "phi3", "deepseek", "kimi",
];

/// Files longer than this have grown a second noun. Files below `tests/` may be longer: they grow by cases.
const LINES_MAX: usize = 600;

#[test]
fn crates_depend_only_along_the_arrows() {
    let mut offences = Vec::new();
    for package in &packages() {
        let Some(allowed) = entry(ARROWS, &package.noun) else {
            offences.push(format!("{}: not in the list of arrows", package.noun));
            continue;
        };
        for dependency in &package.dependencies {
            let Some(noun) = dependency.name.strip_prefix("shoal-") else {
                continue;
            };
            let for_tests = dependency.dev && noun == "testkit";
            if !allowed.contains(&noun) && !for_tests {
                offences.push(format!("{} → {noun}", package.noun));
            }
        }
    }
    assert_none("dependencies against the arrows", &offences);
}

#[test]
fn only_the_outer_crates_use_the_async_runtime_and_http() {
    let mut offences = Vec::new();
    for package in &packages() {
        for dependency in &package.dependencies {
            if ASYNC_PACKAGES.contains(&dependency.name.as_str())
                && !ASYNC_CRATES.contains(&package.noun.as_str())
            {
                offences.push(format!("{} → {}", package.noun, dependency.name));
            }
        }
    }
    assert_none("async or HTTP packages in inner crates", &offences);
}

#[test]
fn engine_types_do_not_cross_the_public_wire() {
    let engine = packages()
        .into_iter()
        .find(|package| package.noun == "engine");
    let engine = engine.expect("the workspace has an engine");
    let names = engine
        .dependencies
        .iter()
        .filter(|dependency| !dependency.dev);
    let offences: Vec<_> = names
        .filter(|dependency| dependency.name.starts_with("serde"))
        .map(|it| &it.name)
        .collect();
    assert_none("serialisation packages in engine", &offences);
}

#[test]
fn every_other_crate_forbids_unsafe_code() {
    let mut offences = Vec::new();
    for package in packages() {
        if UNSAFE_CRATES.contains(&package.noun.as_str()) {
            continue;
        }
        for root in &package.roots {
            if !read(root)
                .lines()
                .any(|line| line == "#![forbid(unsafe_code)]")
            {
                offences.push(format!("{}: lacks #![forbid(unsafe_code)]", root.display()));
            }
        }
        for file in rust_files(&package.folder) {
            if read(&file).contains(concat!("allow(", "unsafe_code)")) {
                offences.push(format!("{}: allows unsafe code", file.display()));
            }
        }
    }
    assert_none("unsafe code outside its crates", &offences);
}

#[test]
fn scheduler_and_text_are_pure() {
    assert_none(
        "clocks, files, sockets, processes or randomness in pure crates",
        &{
            let crates = PURE_CRATES
                .iter()
                .map(|noun| crate_folder(noun).join("src"));
            crates
                .flat_map(|folder| mentions(&folder, IMPURE_WORDS))
                .collect::<Vec<_>>()
        },
    );
}

#[test]
fn only_families_name_model_families() {
    let mut offences = mentions(&crate_folder("kernels").join("src"), FAMILIES);
    offences.extend(mentions(&crate_folder("model").join("src"), FAMILIES));
    offences.retain(|offence| !offence.contains("model/src/families"));
    assert_none("model families named outside `model::families`", &offences);
}

#[test]
fn tracked_files_name_no_registry_host_and_no_home() {
    // In two parts each, so that this file does not offend.
    let hosts = [
        ["crates", ".io"],
        ["pypi", ".org"],
        ["npm", "js.com"],
        ["deb.", "debian.org"],
    ];
    let homes = [
        ["/ro", "ot/"],
        ["/ho", "me/"],
        ["/Us", "ers/"],
        ["/wo", "rk/"],
    ];
    let words: Vec<String> = hosts
        .iter()
        .chain(&homes)
        .map(|parts| parts.concat())
        .collect();
    let mut offences = Vec::new();
    for path in tracked_files() {
        if path.ends_with("Cargo.lock") {
            continue;
        }
        // Files that are not text name nothing.
        let text = fs::read_to_string(&path).unwrap_or_default();
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(word.as_str())) {
                offences.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    assert_none("registry hosts or home folders in tracked files", &offences);
}

#[test]
fn files_stay_short() {
    let files = rust_files(&root()).into_iter();
    let files = files.filter(|path| inside(path).iter().all(|part| part != "tests"));
    let lengths = files.map(|path| (read(&path).lines().count(), path));
    let long = lengths.filter(|(lines, _)| *lines > LINES_MAX);
    let offences: Vec<_> = long
        .map(|(lines, path)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert_none(&format!("files over {LINES_MAX} lines"), &offences);
}

#[test]
fn the_readme_commands_are_what_ci_runs() {
    let readme = read(&root().join("README.md"));
    let first_block = readme
        .split("```")
        .nth(1)
        .expect("README opens with a block of commands");
    let commands: Vec<&str> = first_block
        .lines()
        .filter(|line| line.starts_with("cargo "))
        .collect();
    let words: Vec<&str> = commands
        .iter()
        .map(|line| line.split('#').next().expect("one part").trim())
        .collect();
    assert_eq!(words, ["cargo run --release -- up", "cargo xtask ci"]);

    let ci = read(&root().join(".ci/run"));
    assert!(
        ci.lines().any(|line| line.trim() == "cargo xtask ci"),
        ".ci/run does not call the test command"
    );
    let up = read(&root().join("tests/e2e/test_up.py"));
    assert!(up.contains("\"up\""), "no end-to-end test starts `up`");
}

struct Package {
    /// The name without `shoal-`.
    noun: String,
    folder: PathBuf,
    /// The root files of its libraries and binaries.
    roots: Vec<PathBuf>,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    dev: bool,
}

fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages: Vec<_> = list(&metadata["packages"]).iter().map(package).collect();
    assert!(
        packages.len() >= ARROWS.len(),
        "cargo metadata lists the workspace"
    );
    packages
}

fn package(value: &Value) -> Package {
    let manifest = PathBuf::from(text(&value["manifest_path"]));
    let targets = list(&value["targets"]).iter();
    let roots = targets.filter(|target| {
        list(&target["kind"])
            .iter()
            .any(|kind| kind == "lib" || kind == "bin")
    });
    let dependencies = list(&value["dependencies"])
        .iter()
        .map(|dependency| Dependency {
            name: text(&dependency["name"]).to_owned(),
            dev: dependency["kind"] == "dev",
        });
    let name = text(&value["name"]);
    Package {
        noun: name.strip_prefix("shoal-").unwrap_or(name).to_owned(),
        folder: manifest
            .parent()
            .expect("a manifest lies in a folder")
            .to_owned(),
        roots: roots
            .map(|target| PathBuf::from(text(&target["src_path"])))
            .collect(),
        dependencies: dependencies.collect(),
    }
}

/// Lines of production code below `folder` that contain one of `words`, in any case.
fn mentions(folder: &Path, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let files = rust_files(folder);
    assert!(!files.is_empty(), "{} holds no code", folder.display());
    for file in files {
        let source = read(&file);
        // Tests come last in a file and may do what they like.
        let production = source
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        for (number, line) in production.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let lower = code.to_lowercase();
            if let Some(word) = words
                .iter()
                .find(|word| lower.contains(&word.to_lowercase()))
            {
                found.push(format!("{}:{}: {word}", file.display(), number + 1));
            }
        }
    }
    found
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let files = tracked_files().into_iter();
    files
        .filter(|path| path.starts_with(folder) && path.extension().is_some_and(|it| it == "rs"))
        .collect()
}

/// Every file under version control, and those that are new and not ignored.
fn tracked_files() -> BTreeSet<PathBuf> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(
        output.status.success(),
        "the house rules need a git checkout"
    );
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    let paths = names
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(|name| root().join(name));
    paths.filter(|path| path.is_file()).collect()
}

/// Returns where a file is inside the repository.
fn inside(path: &Path) -> PathBuf {
    let inside = path.strip_prefix(root()).map(Path::to_owned);
    inside.expect("the files of the repository are below its root")
}

fn crate_folder(noun: &str) -> PathBuf {
    root().join("crates").join(noun)
}

fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package
        .parent()
        .expect("xtask lies one folder below the root")
        .to_owned()
}

fn entry<'a>(table: &[(&str, &'a [&'a str])], noun: &str) -> Option<&'a [&'a str]> {
    let row = table.iter().find(|(name, _)| *name == noun);
    row.map(|(_, nouns)| *nouns)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("cargo metadata has a list here")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("cargo metadata has a text here")
}

fn assert_none(what: &str, offences: &[impl Display]) {
    let lines: Vec<String> = offences
        .iter()
        .map(|offence| format!("\n  {offence}"))
        .collect();
    assert!(lines.is_empty(), "{what}:{}", lines.concat());
}
