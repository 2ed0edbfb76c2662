//! Stop strings in a stream of text.

/// Finds the first stop string in a text that arrives piece by piece.
///
/// Text that may be the beginning of a stop string is held back until the next piece decides.
/// The stop string itself is never given out.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    /// With their places in the caller's list; empty strings match nothing and are left out.
    stops: Vec<(usize, String)>,
    held: String,
    matched: bool,
}

/// What [`StopMatcher::push`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that is certainly before any stop string.
    pub text: String,
    /// Which stop string ends the text here, as an index into the list given at the start.
    pub matched: Option<usize>,
}

impl StopMatcher {
    /// Watches for `stops`; with none, text passes through untouched.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops
            .iter()
            .cloned()
            .enumerate()
            .filter(|(_, stop)| !stop.is_empty());
        Self {
            stops: stops.collect(),
            held: String::new(),
            matched: false,
        }
    }

    /// Takes the next piece. The match that is complete first wins; of two that end together, the
    /// longer. Pieces after a match are swallowed.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.matched {
            return StopOutcome {
                text: String::new(),
                matched: None,
            };
        }
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|(index, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, *index))
        });
        match found.min() {
            Some((_, start, index)) => {
                self.matched = true;
                let mut text = std::mem::take(&mut self.held);
                text.truncate(start);
                StopOutcome {
                    text,
                    matched: Some(index),
                }
            }
            None => {
                let text = self.held.drain(..self.undecided_from()).collect();
                StopOutcome {
                    text,
                    matched: None,
                }
            }
        }
    }

    /// Ends the text and returns what was held back.
    pub fn finish(self) -> String {
        self.held
    }

    /// Returns the first place in the held text where a stop string may have begun that is not
    /// complete yet.
    fn undecided_from(&self) -> usize {
        let longest = self
            .stops
            .iter()
            .map(|(_, stop)| stop.len())
            .max()
            .unwrap_or(0);
        let held = self.held.as_str();
        held.char_indices()
            .map(|(at, _)| at)
            .filter(|&at| held.len() - at < longest)
            .find(|&at| {
                let tail = &held[at..];
                self.stops
                    .iter()
                    .any(|(_, stop)| stop.len() > tail.len() && stop.starts_with(tail))
            })
            .unwrap_or(held.len())
    }
}
