//! What a person sees: results on standard output, progress on standard error.

use std::io::{self, ErrorKind, Write};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// A bar in bytes with rate and time left. On a pipe it draws nothing.
pub(crate) fn bytes_bar(label: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
    )
    .expect("the template is a constant");
    ProgressBar::new(0)
        .with_style(style)
        .with_message(label.to_owned())
}

/// Writes to standard output at once. Says whether anybody still reads it: a reader that has had enough (`| head`) is no
/// error.
pub(crate) fn say(text: &str) -> Result<bool> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        outcome => outcome
            .map(|()| true)
            .context("cannot write to standard output"),
    }
}

/// Writes a line to standard error. Nobody may be there any more (a closed terminal), which must not end the command
/// before it has cleaned up. What others have a say in, such as names of files, gives a terminal no orders.
pub(crate) fn note(line: &str) {
    let shown = |letter: char| match letter {
        '\n' | '\t' => letter,
        _ if letter.is_control() => char::REPLACEMENT_CHARACTER,
        _ => letter,
    };
    let line: String = line.chars().map(shown).collect();
    let _ = writeln!(io::stderr(), "{line}");
}

/// `98.4 MB`, as storage is sold.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
