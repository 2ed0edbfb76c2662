//! Progress on standard error: bars for what has a size, silent when nobody watches.

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

/// `98.4 MB`, as storage is sold.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
