//! Text from a model file, made fit for a message.

use std::fmt::{self, Display, Formatter, Write};

/// Shows text from a file on one line, with nothing in it that a terminal would obey, and no longer than a message may be.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut characters = self.0.chars();
        for character in characters.by_ref().take(CHARACTERS_MAX) {
            write!(f, "{}", character.escape_debug())?;
        }
        match characters.next() {
            None => Ok(()),
            Some(_) => f.write_char('…'),
        }
    }
}

/// As many as the longest name of a tensor.
const CHARACTERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_what_can_be_read_on_a_line_is_shown() {
        for (text, shown) in [
            ("blk.0.attn_q.weight", "blk.0.attn_q.weight"),
            ("größe 🐟", "größe 🐟"),
            ("a\nb\r\x1b[2J\0", r"a\nb\r\u{1b}[2J\0"),
            ("\u{202e}\u{7f}\u{9b}\"", r#"\u{202e}\u{7f}\u{9b}\""#),
        ] {
            assert_eq!(Shown(text).to_string(), shown);
        }
        let longest = "é".repeat(64);
        assert_eq!(Shown(&longest).to_string(), longest);
        assert_eq!(Shown(&"é".repeat(1 << 20)).to_string(), longest + "…");
    }
}
