//! Running the commands of a proposal on this machine.

use std::io;
use std::process::{Command, ExitStatus};

use thiserror::Error;

/// The commands could not be run. The machine's owner can fix it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// Not a Mac.
    #[error(
        "--apply sets up Thunderbolt links of Macs only; on this system the network is set up by its own means, and \
         nothing was changed"
    )]
    Elsewhere,
    /// A command could not be started.
    #[error("cannot run `{command}`: {source}; what comes before it was done")]
    Start {
        /// Which.
        command: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A command failed.
    #[error("`{command}` failed ({status}); what comes before it was done")]
    Failed {
        /// Which.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
}

/// Says whether commands can be applied on this system.
///
/// # Errors
/// [`ApplyError::Elsewhere`] where they cannot.
pub fn can_apply() -> Result<(), ApplyError> {
    match cfg!(target_os = "macos") {
        true => Ok(()),
        false => Err(ApplyError::Elsewhere),
    }
}

/// Runs commands one after another as the superuser, telling each to `before` first. Only on macOS, for whose tools they
/// are written. `sudo` may ask for a password, so how long that takes is up to the user. What they print goes to standard
/// error.
///
/// # Errors
/// [`ApplyError`]; the commands after the one that failed are not run.
pub fn apply(commands: &[Vec<String>], before: impl Fn(&str)) -> Result<(), ApplyError> {
    can_apply()?;
    for words in commands {
        let command = format!("sudo {}", words.join(" "));
        before(&command);
        let mut sudo = Command::new("sudo");
        match sudo.args(words).stdout(io::stderr()).status() {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(ApplyError::Failed { command, status }),
            Err(source) => return Err(ApplyError::Start { command, source }),
        }
    }
    Ok(())
}
