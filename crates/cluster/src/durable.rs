//! Having what was written reach the disk, on file systems that cannot do all that is asked of them.

use std::fs::File;
use std::io;

use rustix::io::Errno;

/// Has a file's bytes written to the disk, as far as its file system can.
pub(crate) fn sync_file(file: &File) -> io::Result<()> {
    match file.sync_all() {
        // On macOS that asks the disk to write its own cache too, which network volumes and some others do not know.
        Err(error) if is_unknown(&error) => Ok(rustix::fs::fsync(file)?),
        outcome => outcome,
    }
}

/// Has the names in a folder written to the disk, where its file system can: several write them in their own time.
pub(crate) fn sync_folder(folder: &File) -> io::Result<()> {
    sync_file(folder).or_else(|error| match is_unknown(&error) {
        true => Ok(()),
        false => Err(error),
    })
}

fn is_unknown(error: &io::Error) -> bool {
    let unknown = [Errno::INVAL, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOTTY];
    Errno::from_io_error(error).is_some_and(|error| unknown.contains(&error))
}

// A pipe of macOS answers something else.
#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn what_cannot_be_synced_is_no_failure_of_a_folder_and_one_of_a_file() {
        let (reader, _writer) = io::pipe().unwrap();
        let pipe = File::from(OwnedFd::from(reader));
        assert!(is_unknown(&pipe.sync_all().unwrap_err()));
        sync_folder(&pipe).unwrap();
        sync_file(&pipe).unwrap_err();
    }

    #[test]
    fn files_and_folders_are_synced() {
        let folder = tempfile::tempdir().unwrap();
        sync_folder(&File::open(folder.path()).unwrap()).unwrap();
        sync_file(&File::create(folder.path().join("file")).unwrap()).unwrap();
    }
}
