use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

/// A file mapped read-only into memory.
///
/// The bytes are the page cache's own. If another program truncates the file while it is mapped,
/// touching the lost part kills the process with SIGBUS; if it rewrites the file, the bytes change
/// under us. Model stores therefore replace files by renaming and never write into one in place.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps the whole file.
    ///
    /// # Errors
    /// If the file cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only. That nobody truncates or rewrites the file
        // in place is asked of the user above: no interface of the system can promise it, and all
        // readers treat the bytes as untrusted input.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { map })
    }

    /// Returns the file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Drops the whole pages within `range` from this process's resident memory. Reading them
    /// again is allowed and brings them back from the file.
    ///
    /// It is a hint: a system that refuses it only costs memory.
    pub fn release(&self, range: Range<usize>) {
        let page = rustix::param::page_size();
        let start = range.start.next_multiple_of(page);
        let end = range.end.min(self.map.len()) / page * page;
        if start >= end {
            return;
        }
        // SAFETY: the mapping is a read-only view of a file, so dropped pages are filled again
        // from that file with the same bytes; references into the mapping stay valid.
        let released = unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
        };
        if let Err(error) = released {
            tracing::debug!(%error, start, end, "mapped pages not released");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn released_pages_read_the_same_again() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        let mapped = MappedFile::open(file.path()).unwrap();
        assert_eq!(mapped.bytes(), bytes);
        mapped.release(0..bytes.len());
        mapped.release(10..20);
        mapped.release(90_000..usize::MAX);
        assert_eq!(mapped.bytes(), bytes);
    }

    #[test]
    fn an_empty_file_maps_and_a_missing_one_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(MappedFile::open(file.path()).unwrap().bytes(), b"");
        assert!(MappedFile::open(Path::new("no/such/file")).is_err());
    }
}
