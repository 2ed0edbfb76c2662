use crate::shell::root;
use anyhow::{Context, Result};
use std::{fs, path::PathBuf};

/// A document with a block of measured figures.
pub(crate) struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    /// Reads the document at `path` below the repository root.
    ///
    /// # Errors
    /// When it cannot be read, or lacks a marker.
    pub(crate) fn open(path: &str) -> Result<Self> {
        let path = root().join(path);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let document = Self { path, text };
        document.with("")?;
        Ok(document)
    }

    /// Puts `block` in the place of what lies between the markers.
    ///
    /// # Errors
    /// When the document cannot be written.
    pub(crate) fn write(&self, block: &str) -> Result<()> {
        fs::write(&self.path, self.with(block)?)
            .with_context(|| format!("writing {}", self.path.display()))?;
        eprintln!("written to {}", self.path.display());
        Ok(())
    }

    fn with(&self, block: &str) -> Result<String> {
        replace(&self.text, block).with_context(|| {
            format!(
                "{} lacks the lines `{}` and `{END}`",
                self.path.display(),
                BEGIN.trim_end()
            )
        })
    }
}

/// Puts `text` in the place of what lies between the markers of `document`; `None` when a marker is missing.
fn replace(document: &str, text: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{}\n\n{END}{after}", text.trim()))
}

const BEGIN: &str = "<!-- measured: begin, written by cargo xtask peers -->\n";
const END: &str = "<!-- measured: end -->";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_block_changes() {
        let document = format!("# Title\n{BEGIN}old\n{END}\nmore\n");
        let once = replace(&document, "new\n").unwrap();
        assert_eq!(once, format!("# Title\n{BEGIN}\nnew\n\n{END}\nmore\n"));
        assert_eq!(replace(&once, "new").unwrap(), once);
        assert_eq!(replace("# Title\n", "new"), None);
        assert_eq!(replace(&format!("{END}{BEGIN}"), "new"), None);
    }
}
