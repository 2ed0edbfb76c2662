//! Where the file is and where it goes, and what the processor has done meanwhile.

use anyhow::{Context, Result, ensure};
use std::{
    fmt,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
};

/// A folder in memory, where the system has one, with the file; it goes when this does.
pub(crate) struct Place {
    folder: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Result<Self> {
        let memory = Path::new(MEMORY).is_dir().then(|| PathBuf::from(MEMORY));
        let base = memory.unwrap_or_else(std::env::temp_dir);
        let folder = base.join(format!("shoal-peers-cp-{}", std::process::id()));
        let place = Self { folder };
        fs::create_dir_all(place.destination())
            .with_context(|| format!("creating {}", place.destination().display()))?;
        let file = place.file();
        let doing = || format!("writing {}", file.display());
        let mut out = File::create(&file).with_context(doing)?;
        // Such as no two chunks share, and no system stores short.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut piece = vec![0; PIECE_BYTES];
        for _ in 0..FILE_BYTES / PIECE_BYTES as u64 {
            for word in piece.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            out.write_all(&piece).with_context(doing)?;
        }
        Ok(place)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// The folder it goes to.
    pub(crate) fn destination(&self) -> PathBuf {
        self.folder.join("there")
    }

    /// Where it will be.
    pub(crate) fn copied(&self) -> PathBuf {
        self.destination().join(NAME)
    }

    /// Takes away what the last turn has left: giving memory back is no part of a copy.
    pub(crate) fn clear(&self) -> Result<()> {
        let copied = self.copied();
        if copied.exists() {
            fs::remove_file(&copied).with_context(|| format!("removing {}", copied.display()))?;
        }
        Ok(())
    }

    /// Compares the copy with the file, if there is to be one.
    pub(crate) fn check(&self, is_there: bool) -> Result<()> {
        if !is_there {
            return Ok(());
        }
        let open = |path: PathBuf| {
            File::open(&path).with_context(|| format!("opening {}", path.display()))
        };
        let (mut file, mut copied) = (open(self.file())?, open(self.copied())?);
        ensure!(
            copied.metadata()?.len() == FILE_BYTES,
            "the copy is not as long as the file"
        );
        let (mut one, mut other) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
        for _ in 0..FILE_BYTES / PIECE_BYTES as u64 {
            file.read_exact(&mut one)?;
            copied.read_exact(&mut other)?;
            ensure!(one == other, "the copy is not what the file is");
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.folder.starts_with(MEMORY) {
            true => f.write_str("memory (tmpfs)"),
            false => f.write_str("the folder for temporary files"),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _it_may_be_gone = fs::remove_dir_all(&self.folder);
    }
}

/// Processor time of a process so far, in seconds: its own, and that of the children it has waited for. `None` where
/// there is no `/proc`.
pub(crate) fn processor_seconds(process: &str) -> Option<Times> {
    parse(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// Seconds in user and system mode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Times {
    pub(crate) own: f64,
    pub(crate) children: f64,
}

/// The name of the program, in brackets, may hold anything.
fn parse(stat: &str) -> Option<Times> {
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = fields.split_whitespace().skip(11).take(4);
    let ticks: Vec<f64> = ticks.map(|it| it.parse().ok()).collect::<Option<_>>()?;
    let [user, system, children_user, children_system] = ticks[..] else {
        return None;
    };
    Some(Times {
        own: (user + system) / TICKS_PER_SECOND,
        children: (children_user + children_system) / TICKS_PER_SECOND,
    })
}

pub(crate) const FILE_BYTES: u64 = 1 << 30;
/// What is read, written and sent at once by the plain sides.
pub(crate) const PIECE_BYTES: usize = 256 << 10;
const NAME: &str = "file";
const MEMORY: &str = "/dev/shm";
/// What Linux shows times in, whatever it counts in.
const TICKS_PER_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_whatever_the_program_is_called() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 150 50 25 75 20 0 3 0 1 2 3\n";
        let times = parse(stat);
        let expected = Times {
            own: 2.0,
            children: 1.0,
        };
        assert_eq!(times, Some(expected));
        assert_eq!(parse("7 (a) S 1"), None);
    }
}
