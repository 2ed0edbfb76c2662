use anyhow::{Context, Result};

const BEGIN: &str = "<!-- measured: begin, written by cargo xtask peers -->\n";
const END: &str = "<!-- measured: end -->";

/// Puts `text` in the place of what lies between the markers of `document`.
///
/// # Errors
/// When a marker is missing.
pub(crate) fn replace(document: &str, text: &str) -> Result<String> {
    let parts = document.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) = parts.with_context(|| {
        format!(
            "docs/PERFORMANCE.md lacks the lines `{}` and `{END}`",
            BEGIN.trim_end()
        )
    })?;
    Ok(format!("{before}{BEGIN}\n{}\n\n{END}{after}", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_block_changes() {
        let document = format!("# Title\n{BEGIN}old\n{END}\nmore\n");
        let once = replace(&document, "new\n").unwrap();
        assert_eq!(once, format!("# Title\n{BEGIN}\nnew\n\n{END}\nmore\n"));
        assert_eq!(replace(&once, "new").unwrap(), once);
        assert!(replace("# Title\n", "new").is_err());
        assert!(replace(&format!("{END}{BEGIN}"), "new").is_err());
    }
}
