use crate::shell::root;
use anyhow::{Context, Result};
use std::{fs, path::PathBuf};

/// A document with a block of figures that a task has measured.
pub(crate) struct Document {
    path: PathBuf,
    text: String,
    /// The line before the block.
    begin: String,
}

impl Document {
    /// Reads the document at `path` below the repository root; the block is that of `cargo xtask TASK`.
    ///
    /// # Errors
    /// When it cannot be read, or lacks a marker.
    pub(crate) fn open(path: &str, task: &str) -> Result<Self> {
        let path = root().join(path);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let begin = format!("<!-- measured: begin, written by cargo xtask {task} -->\n");
        let document = Self { path, text, begin };
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
        replace(&self.text, &self.begin, block).with_context(|| {
            format!(
                "{} lacks the lines `{}` and `{END}`",
                self.path.display(),
                self.begin.trim_end()
            )
        })
    }
}

/// Puts `text` in the place of what lies between `begin` and the end's marker in `document`; `None` when one is missing.
fn replace(document: &str, begin: &str, text: &str) -> Option<String> {
    let (before, rest) = document.split_once(begin)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{begin}\n{}\n\n{END}{after}", text.trim()))
}

const END: &str = "<!-- measured: end -->";

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "<!-- begin -->\n";

    #[test]
    fn only_the_block_changes() {
        let other = format!("<!-- other -->\nother\n{END}\n");
        let document = format!("# Title\n{other}{BEGIN}old\n{END}\n{other}more\n");
        let once = replace(&document, BEGIN, "new\n").unwrap();
        let expected = format!("# Title\n{other}{BEGIN}\nnew\n\n{END}\n{other}more\n");
        assert_eq!(once, expected);
        assert_eq!(replace(&once, BEGIN, "new").unwrap(), once);
        assert_eq!(replace("# Title\n", BEGIN, "new"), None);
        assert_eq!(replace(&format!("{END}{BEGIN}"), BEGIN, "new"), None);
    }
}
