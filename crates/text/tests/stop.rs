//! Stop strings against a search over the whole text, whatever the pieces it comes in.

use proptest::prelude::*;
use shoal_text::StopMatcher;

/// What a matcher gives out over all of `pieces`, and which stop string ended it.
fn stream<'p>(
    stops: &[String],
    pieces: impl IntoIterator<Item = &'p str>,
) -> (String, Option<usize>) {
    let mut matcher = StopMatcher::new(stops);
    let mut text = String::new();
    let mut matched = None;
    for piece in pieces {
        let outcome = matcher.push(piece);
        assert!(matched.is_none() || outcome.text.is_empty() && outcome.matched.is_none());
        text.push_str(&outcome.text);
        matched = matched.or(outcome.matched);
    }
    (text + &matcher.finish(), matched)
}

/// The definition: of all occurrences the one that ends first, of those the longest.
fn search(stops: &[String], text: &str) -> (String, Option<usize>) {
    let occurrences = stops
        .iter()
        .enumerate()
        .filter(|(_, stop)| !stop.is_empty())
        .flat_map(|(index, stop)| {
            text.match_indices(stop.as_str())
                .map(move |(at, _)| (at + stop.len(), at, index))
        });
    match occurrences.min() {
        Some((_, at, index)) => (text[..at].to_owned(), Some(index)),
        None => (text.to_owned(), None),
    }
}

proptest! {
    #[test]
    fn streams_match_the_search(
        stops in prop::collection::vec("[aé😀b]{0,4}", 0..4),
        pieces in prop::collection::vec("[aé😀bc]{0,5}", 0..8),
    ) {
        let text = pieces.concat();
        let wanted = search(&stops, &text);
        prop_assert_eq!(&stream(&stops, pieces.iter().map(String::as_str)), &wanted);
        let characters = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
        prop_assert_eq!(stream(&stops, characters), wanted);
    }
}

#[test]
fn every_chunking_gives_the_same() {
    let stops = ["END", "ND.", "\n\n"].map(str::to_owned);
    let text = "A EN\nE END. x";
    for cuts in 0..1u32 << (text.len() - 1) {
        let mut pieces = Vec::new();
        let mut start = 0;
        for at in 1..text.len() {
            if cuts & (1 << (at - 1)) != 0 {
                pieces.push(&text[start..at]);
                start = at;
            }
        }
        pieces.push(&text[start..]);
        assert_eq!(
            stream(&stops, pieces.iter().copied()),
            ("A EN\nE ".to_owned(), Some(0)),
            "{pieces:?}"
        );
    }
}

#[test]
fn only_a_possible_beginning_is_held_back() {
    let mut matcher = StopMatcher::new(&["</s>".to_owned(), "User:".to_owned()]);
    assert_eq!(matcher.push("Hello <").text, "Hello ");
    assert_eq!(matcher.push("b> U").text, "<b> ");
    assert_eq!(matcher.push("se").text, "");
    assert_eq!(matcher.push("s Us").text, "Uses ");
    assert_eq!(matcher.finish(), "Us");
}
