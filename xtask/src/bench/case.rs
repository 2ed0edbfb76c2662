use anyhow::{Context, Result};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// One benchmark's figures.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Case {
    /// `group/function/value`, or without the value.
    pub(crate) id: String,
    /// Median time of one call.
    pub(crate) seconds: f64,
    /// Least time of one call, as a mean over each sample.
    pub(crate) fastest_seconds: f64,
    /// Bytes that one call must move.
    pub(crate) bytes: Option<u64>,
    /// Operations that one call must do.
    pub(crate) operations: Option<u64>,
}

impl Case {
    /// Reads every case below `folder`, in which criterion leaves a folder `new` for each.
    pub(crate) fn read_all(folder: &Path) -> Result<Vec<Self>> {
        let mut cases = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            if folder.join("new/benchmark.json").is_file() {
                cases.push(Self::read(&folder.join("new"))?);
            } else {
                folders.extend(subfolders(&folder)?);
            }
        }
        cases.sort_by(|a, b| a.order().cmp(&b.order()));
        Ok(cases)
    }

    fn read(folder: &Path) -> Result<Self> {
        let benchmark: Benchmark = json(&folder.join("benchmark.json"))?;
        let estimates: Estimates = json(&folder.join("estimates.json"))?;
        let sample: Sample = json(&folder.join("sample.json"))?;
        let calls = sample.times.iter().zip(&sample.iters);
        let fastest = calls
            .map(|(time, count)| time / count)
            .min_by(f64::total_cmp);
        let (bytes, operations) = match benchmark.throughput {
            Some(Throughput::Bytes(bytes)) => (Some(bytes), None),
            Some(Throughput::Elements(elements)) => (None, Some(elements)),
            Some(Throughput::ElementsAndBytes { elements, bytes }) => (Some(bytes), Some(elements)),
            None => (None, None),
        };
        Ok(Self {
            id: benchmark.full_id,
            seconds: estimates.median.point_estimate / 1e9,
            fastest_seconds: fastest.context("a benchmark without samples")? / 1e9,
            bytes,
            operations,
        })
    }

    /// The group, such as `linear`.
    pub(crate) fn group(&self) -> &str {
        self.id.split('/').next().unwrap_or_default()
    }

    /// The id without its last part, such as `linear/Q4_0`.
    pub(crate) fn kernel(&self) -> &str {
        self.id
            .rsplit_once('/')
            .map_or(&*self.id, |(kernel, _)| kernel)
    }

    pub(crate) fn bytes_rate(&self) -> Option<f64> {
        self.bytes.map(|bytes| bytes as f64 / self.seconds)
    }

    pub(crate) fn operations_rate(&self) -> Option<f64> {
        let operations = self.operations?;
        Some(operations as f64 / self.seconds)
    }

    /// Kernels by name, the cases of one by the number in their name.
    fn order(&self) -> (&str, u64, &str) {
        let last = &self.id[self.kernel().len()..];
        let number = last.split(' ').find_map(|word| word.parse().ok());
        (self.kernel(), number.unwrap_or(0), last)
    }
}

/// Criterion's `benchmark.json`.
#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
    throughput: Option<Throughput>,
}

#[derive(Deserialize)]
enum Throughput {
    Bytes(u64),
    Elements(u64),
    ElementsAndBytes { elements: u64, bytes: u64 },
}

/// Criterion's `estimates.json`, in nanoseconds.
#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

/// Criterion's `sample.json`: calls in each sample, and the nanoseconds they took together.
#[derive(Deserialize)]
struct Sample {
    iters: Vec<f64>,
    times: Vec<f64>,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not what criterion 0.8 writes", path.display()))
}

fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            paths.push(path);
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criterions_files_are_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let write = |id: &str, throughput: &str, nanoseconds: f64| {
            let new = folder.path().join(id).join("new");
            fs::create_dir_all(&new).unwrap();
            let benchmark =
                format!(r#"{{"group_id":"g","full_id":"{id}","throughput":{throughput}}}"#);
            fs::write(new.join("benchmark.json"), benchmark).unwrap();
            let estimates = format!(
                r#"{{"mean":{{"point_estimate":1.0}},"median":{{"point_estimate":{nanoseconds},"standard_error":0.1}}}}"#
            );
            fs::write(new.join("estimates.json"), estimates).unwrap();
            let sample = r#"{"sampling_mode":"Flat","iters":[2.0,4.0],"times":[6e8,8e8]}"#;
            fs::write(new.join("sample.json"), sample).unwrap();
        };
        write(
            "linear/Q4_0/batch 16",
            r#"{"ElementsAndBytes":{"elements":64,"bytes":32}}"#,
            2e9,
        );
        write(
            "linear/Q4_0/batch 2",
            r#"{"ElementsAndBytes":{"elements":8,"bytes":32}}"#,
            1e9,
        );
        write("roofline/read", r#"{"Bytes":10}"#, 5e8);
        let cases = Case::read_all(folder.path()).unwrap();
        let ids: Vec<&str> = cases.iter().map(|case| &*case.id).collect();
        assert_eq!(
            ids,
            [
                "linear/Q4_0/batch 2",
                "linear/Q4_0/batch 16",
                "roofline/read"
            ]
        );
        assert_eq!((cases[1].seconds, cases[1].fastest_seconds), (2.0, 0.2));
        assert_eq!(cases[1].bytes_rate(), Some(16.0));
        assert_eq!(cases[1].operations_rate(), Some(32.0));
        assert_eq!(
            (cases[2].bytes_rate(), cases[2].operations_rate()),
            (Some(20.0), None)
        );
        assert_eq!(
            (cases[0].group(), cases[0].kernel()),
            ("linear", "linear/Q4_0")
        );
    }
}
