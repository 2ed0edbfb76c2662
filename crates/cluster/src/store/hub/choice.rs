//! Which file of a repository is meant.

use super::{HubSource, StoreError};

/// Quantisations by preference when the user names no file: the smallest that is near the original's quality, then
/// ever larger ones.
const PREFERRED: &[&str] = &[
    "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q8_0", "BF16",
    "F16", "F32",
];

/// Returns the file that `source` names, or the one to take when it names none.
pub(super) fn choose<'a>(names: &'a [String], source: &HubSource) -> Result<&'a str, StoreError> {
    let models: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| name.ends_with(".gguf"))
        .collect();
    choose_model(&models, source.file.as_deref()).map_err(|problem| StoreError::Choice {
        source_text: source.to_string(),
        problem,
        files: models.iter().map(|name| (*name).to_owned()).collect(),
    })
}

fn choose_model<'a>(models: &[&'a str], wanted: Option<&str>) -> Result<&'a str, &'static str> {
    if models.is_empty() {
        return Err(
            "holds no .gguf file; name a repository of GGUF files (its name often ends in -GGUF)",
        );
    }
    if let Some(wanted) = wanted {
        let found = models.iter().find(|name| **name == wanted);
        return match found {
            Some(name) if is_piece(name) => Err(SPLIT),
            Some(name) => Ok(name),
            None => Err("is not in that repository; name one of its files"),
        };
    }
    let mut whole: Vec<&str> = models.to_vec();
    whole.retain(|name| !is_piece(name) && !is_companion(name));
    if let [only] = whole.as_slice() {
        return Ok(only);
    }
    for quantisation in PREFERRED {
        let mut fitting = whole.iter().filter(|name| has(name, quantisation));
        if let Some(name) = fitting.next() {
            return match fitting.next() {
                None => Ok(name),
                Some(_) => Err("has several models; name one of its files"),
            };
        }
    }
    match whole.is_empty() {
        true => Err(SPLIT),
        false => Err("has no file of a usual quantisation; name one of its files"),
    }
}

const SPLIT: &str =
    "is split into several files, which is not supported; name a file that is whole";

/// Whether the name says `-00001-of-00003`.
fn is_piece(name: &str) -> bool {
    let numbered = |(before, count): (&str, &str)| {
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        let number = before.rsplit('-').next().unwrap_or_default();
        digits(count) && digits(number)
    };
    let stem = name.strip_suffix(".gguf").unwrap_or(name);
    stem.rsplit_once("-of-").is_some_and(numbered)
}

/// Whether the file goes with a model and is none itself.
fn is_companion(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("mmproj") || name.contains("imatrix")
}

/// Whether the quantisation is a word of the name, as in `m-Q4_0.gguf` or `m_q4_0.gguf`, and not a part of another,
/// as in `m-Q4_0_4_4.gguf`.
fn has(name: &str, quantisation: &str) -> bool {
    let stem = name
        .strip_suffix(".gguf")
        .unwrap_or(name)
        .to_ascii_uppercase();
    stem.split(['-', '.', '/']).any(|word| {
        let rest = word.strip_suffix(quantisation);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('_'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(models: &[&str], wanted: Option<&str>, expected: Result<&str, &str>) {
        let chosen = choose_model(models, wanted);
        match expected {
            Ok(name) => assert_eq!(chosen, Ok(name)),
            Err(part) => assert!(chosen.is_err_and(|it| it.contains(part)), "{chosen:?}"),
        }
    }

    #[test]
    fn preferences() {
        check(&["odd.gguf"], None, Ok("odd.gguf"));
        check(
            &["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_0.gguf"],
            None,
            Ok("m-Q4_K_M.gguf"),
        );
        check(
            &["m.q8_0.gguf", "m.q4_0.gguf", "m.q2_k.gguf"],
            None,
            Ok("m.q4_0.gguf"),
        );
        check(
            &["m-Q4_0_4_4.gguf", "m-IQ4_XS.gguf", "m_f16.gguf"],
            None,
            Ok("m_f16.gguf"),
        );
        check(&["mmproj-f16.gguf", "m-Q2_K.gguf"], None, Ok("m-Q2_K.gguf"));
        check(&["m-BF16.gguf", "m-Q2_K.gguf"], None, Ok("m-BF16.gguf"));
    }

    #[test]
    fn faults() {
        check(&[], None, Err("no .gguf"));
        check(
            &["m-IQ1_S.gguf", "m-Q2_K.gguf"],
            None,
            Err("usual quantisation"),
        );
        check(&["a-Q4_0.gguf", "b-Q4_0.gguf"], None, Err("several models"));
        check(&["a.gguf"], Some("b.gguf"), Err("not in that repository"));
        let pieces = ["m-Q4_0-00001-of-00002.gguf", "m-Q4_0-00002-of-00002.gguf"];
        check(&pieces, None, Err("split"));
        check(&pieces, Some(pieces[0]), Err("split"));
    }
}
