//! A `python3` that is a shell script, and wheels for it to download.

use std::{
    fs,
    io::{Cursor, Write},
    path::PathBuf,
    process::{Command, Stdio},
};

use sha2::{Digest, Sha256};
use shoal_cluster::store::Store;
use tempfile::TempDir;
use zip::{ZipWriter, write::SimpleFileOptions};

/// A folder with a store and a script that stands in for Python.
pub(crate) struct FakePip {
    folder: TempDir,
}

impl FakePip {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("home")
    }

    pub(crate) fn store(&self) -> Store {
        let store = Store::open(self.root()).unwrap();
        store.with_python(self.path("python").to_str().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Downloads `wheel` from now on.
    pub(crate) fn offers(&self, wheel: &[u8]) {
        fs::write(self.path("offered"), wheel).unwrap();
        let size = wheel.len();
        self.does(&format!(
            "echo 'Downloading m-1.0-py3-none-any.whl ({size} bytes)'\n\
             cp {} \"$TMPDIR/growing\"\n\
             cp \"$TMPDIR/growing\" \"$dest/m-1.0-py3-none-any.whl\"\n\
             rm \"$TMPDIR/growing\"",
            self.path("offered").display()
        ));
    }

    /// Runs these lines of shell from now on; `$dest` is the folder that pip was told.
    pub(crate) fn does(&self, lines: &str) {
        let script = format!(
            "#!/bin/sh\n\
             echo \"$*\" >> {}\n\
             while [ $# -gt 0 ]; do\n\
             if [ \"$1\" = --dest ]; then dest=$2; fi\n\
             shift\n\
             done\n\
             {lines}\n",
            self.path("calls").display()
        );
        // Written by another process: a file that this one had open for writing while a neighbouring test started a
        // program could not be run ("text file busy").
        let mut writer = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(self.path("python"))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writer
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        assert!(writer.wait().unwrap().success());
    }

    /// The arguments of each run so far.
    pub(crate) fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Returns a wheel of these files, with a true RECORD.
pub(crate) fn wheel(package: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let lines = files
        .iter()
        .map(|(name, bytes)| record_line(name, bytes, bytes.len()));
    wheel_with_record(package, files, &lines.collect::<String>())
}

/// Returns a wheel of these files, with this RECORD.
pub(crate) fn wheel_with_record(package: &str, files: &[(&str, &[u8])], record: &str) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let record_name = format!("{package}-1.0.dist-info/RECORD");
    let record = (record_name.as_str(), record.as_bytes());
    for (name, bytes) in files.iter().copied().chain([record]) {
        zip.start_file(name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Returns the line of RECORD that says of `name` the checksum of `bytes` and the size `len`.
pub(crate) fn record_line(name: &str, bytes: &[u8], len: usize) -> String {
    format!(
        "{name},sha256={},{len}\n",
        urlsafe_base64(&Sha256::digest(bytes))
    )
}

fn urlsafe_base64(bytes: &[u8]) -> String {
    let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
    let alphabet = ('A'..='Z')
        .chain('a'..='z')
        .chain('0'..='9')
        .chain(['-', '_']);
    let alphabet: Vec<char> = alphabet.collect();
    let groups = bits.as_bytes().chunks(6).map(|group| {
        let digits = str::from_utf8(group).unwrap();
        alphabet[usize::from_str_radix(&format!("{digits:0<6}"), 2).unwrap()]
    });
    groups.collect()
}
