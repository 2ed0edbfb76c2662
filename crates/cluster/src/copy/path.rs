//! Paths below a folder, as they go between machines.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A path that leads down only: no root, no `.` and no `..`. The empty one is the folder itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelPath(String);

impl RelPath {
    /// Takes a path as people write it: `.` and doubled or trailing slashes do not count.
    ///
    /// # Errors
    /// A sentence on what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Err(
                "paths on a node are relative to the folder it serves; leave out the leading /"
                    .to_owned(),
            );
        }
        let parts = text
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".");
        Self::try_from(parts.collect::<Vec<_>>().join("/"))
    }

    /// Returns the path as text, its parts separated by `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|part| !part.is_empty())
    }

    /// The folder that it is in, and its name there. The empty path has neither.
    pub(super) fn split_last(&self) -> Option<(Self, &str)> {
        if self.is_empty() {
            return None;
        }
        let (folder, name) = self.0.rsplit_once('/').unwrap_or(("", &self.0));
        Some((Self(folder.to_owned()), name))
    }

    /// Its first part, and the rest below that.
    pub(super) fn split_first(&self) -> (&str, Self) {
        let (first, rest) = self.0.split_once('/').unwrap_or((&self.0, ""));
        (first, Self(rest.to_owned()))
    }

    pub(super) fn join(&self, below: &Self) -> Self {
        match (self.is_empty(), below.is_empty()) {
            (true, _) => below.clone(),
            (_, true) => self.clone(),
            _ => Self(format!("{}/{}", self.0, below.0)),
        }
    }
}

impl TryFrom<String> for RelPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let fits = |part: &str| {
            !part.is_empty() && part != "." && part != ".." && part.len() <= NAME_BYTES_MAX
        };
        if text.contains('\0') || text.len() > PATH_BYTES_MAX {
            return Err(format!(
                "a path is at most {PATH_BYTES_MAX} bytes, none of them zero"
            ));
        }
        if !text.is_empty() && !text.split('/').all(fits) {
            return Err(format!(
                "a path leads down from its folder: no leading /, no . or .., no name over {NAME_BYTES_MAX} bytes"
            ));
        }
        Ok(Self(text))
    }
}

impl From<RelPath> for String {
    fn from(path: RelPath) -> Self {
        path.0
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "." } else { &self.0 })
    }
}

const PATH_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_lead_down_only() {
        for (text, path) in [
            ("", ""),
            (".", ""),
            ("./a//b/", "a/b"),
            ("a..b/...", "a..b/..."),
        ] {
            assert_eq!(RelPath::parse(text).unwrap().as_str(), path);
        }
        for text in [
            "/",
            "/etc",
            "..",
            "a/../b",
            "a/..",
            "a\0b",
            &"x".repeat(256),
        ] {
            assert!(RelPath::parse(text).is_err(), "{text}");
        }
        for json in [
            r#""/a""#,
            r#""a//b""#,
            r#""./a""#,
            r#""a/..""#,
            r#""a/""#,
            r#""a\u0000""#,
        ] {
            assert!(serde_json::from_str::<RelPath>(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_has_ordinary_parts(text in "[./a\\\\]{0,12}") {
            if let Ok(path) = RelPath::try_from(text.clone()) {
                prop_assert!(!std::path::Path::new(path.as_str()).is_absolute());
                prop_assert!(path.parts().all(|part| part != ".." && part != "."));
                prop_assert_eq!(path.as_str(), text);
            }
        }
    }
}
