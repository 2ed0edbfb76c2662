//! What rank 0 tells the other ranks to do next.

use shoal_model::{LoadConfig, Model, Span};

use crate::bytes::{DecodeError, Put, Reader};

/// One step, as it is broadcast. Every rank does the same in it.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Computes the spans.
    Run(Vec<Span>),
    /// Does nothing but meet the others at a barrier, so that a rank that is gone is noticed while nothing runs.
    Idle,
    /// Gathers every rank's report.
    Report,
    /// Ends every rank.
    Shutdown,
}

/// What a span may hold, as every rank knows it from its own model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepBounds {
    /// Tokens the model knows.
    pub vocabulary: usize,
    /// Longest sequence, in tokens.
    pub context: u32,
    /// Pages of the KV cache.
    pub kv_pages: u32,
    /// Positions in a page.
    pub page_tokens: u32,
    /// Tokens in one step.
    pub batch_tokens_max: usize,
}

impl Step {
    /// Replaces `out` by the bytes of this step.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            Self::Run(spans) => {
                out.put_u8(0);
                out.put_len(spans.len());
                for span in spans {
                    out.put_u32(span.start);
                    out.put_u8(u8::from(span.wants_logits));
                    out.put_tokens(&span.tokens);
                    out.put_tokens(&span.pages);
                }
            }
            Self::Idle => out.put_u8(1),
            Self::Report => out.put_u8(2),
            Self::Shutdown => out.put_u8(3),
        }
    }

    /// Decodes a step and checks that the model can compute it: a bad step is an error here, never a wrong page.
    ///
    /// # Errors
    /// [`DecodeError`] for bytes that are no step, or one outside `bounds`.
    pub fn decode(bytes: &[u8], bounds: &StepBounds) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let step = match from.u8()? {
            0 => Self::Run(from.list(SPAN_BYTES_MIN, span)?),
            1 => Self::Idle,
            2 => Self::Report,
            3 => Self::Shutdown,
            tag => return Err(DecodeError::Unknown { what: "step", tag }),
        };
        from.end()?;
        if let Self::Run(spans) = &step {
            bounds.check(spans)?;
        }
        Ok(step)
    }
}

impl StepBounds {
    /// Returns the bounds of a loaded model.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        let LoadConfig {
            context,
            kv_pages,
            page_tokens,
            batch_tokens_max,
        } = model.config();
        let vocabulary = model.spec().vocabulary();
        Self {
            vocabulary,
            context,
            kv_pages,
            page_tokens,
            batch_tokens_max,
        }
    }

    fn check(&self, spans: &[Span]) -> Result<(), DecodeError> {
        let batch: usize = spans.iter().map(|span| span.tokens.len()).sum();
        if batch == 0 || batch > self.batch_tokens_max {
            return Err(DecodeError::Bad("number of tokens in a step"));
        }
        for span in spans {
            let end = u64::from(span.start) + span.tokens.len() as u64;
            if span.tokens.is_empty() || end > u64::from(self.context) {
                return Err(DecodeError::Bad("positions in a step"));
            }
            if span
                .tokens
                .iter()
                .any(|&token| token as usize >= self.vocabulary)
            {
                return Err(DecodeError::Bad("token in a step"));
            }
            let pages_hold = span.pages.len() as u64 * u64::from(self.page_tokens) >= end;
            if !pages_hold || span.pages.iter().any(|&page| page >= self.kv_pages) {
                return Err(DecodeError::Bad("page in a step"));
            }
        }
        Ok(())
    }
}

fn span(from: &mut Reader<'_>) -> Result<Span, DecodeError> {
    Ok(Span {
        start: from.u32()?,
        wants_logits: from.u8()? != 0,
        tokens: from.tokens()?,
        pages: from.tokens()?,
    })
}

/// The fields of a span with empty lists.
const SPAN_BYTES_MIN: usize = 4 + 1 + 4 + 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: StepBounds = StepBounds {
        vocabulary: 10,
        context: 12,
        kv_pages: 4,
        page_tokens: 4,
        batch_tokens_max: 6,
    };

    fn span_of(tokens: &[u32], start: u32, pages: &[u32]) -> Span {
        Span {
            tokens: tokens.to_vec(),
            start,
            pages: pages.to_vec(),
            wants_logits: true,
        }
    }

    fn decoded(step: &Step) -> Result<Step, DecodeError> {
        let mut bytes = vec![1, 2, 3];
        step.encode(&mut bytes);
        Step::decode(&bytes, &BOUNDS)
    }

    #[test]
    fn steps_come_back_as_they_went() {
        let run = Step::Run(vec![
            span_of(&[1, 2, 3], 4, &[3, 0]),
            span_of(&[9], 11, &[1, 2, 0]),
        ]);
        for step in [run, Step::Idle, Step::Report, Step::Shutdown] {
            assert_eq!(decoded(&step), Ok(step));
        }
    }

    #[test]
    fn a_step_the_model_cannot_compute_is_refused() {
        let cases = [
            (span_of(&[], 0, &[0]), "number of tokens in a step"),
            (span_of(&[1; 7], 0, &[0, 1]), "number of tokens in a step"),
            (span_of(&[1, 1], 11, &[0, 1, 2, 3]), "positions in a step"),
            (span_of(&[1], u32::MAX, &[0]), "positions in a step"),
            (span_of(&[10], 0, &[0]), "token in a step"),
            (span_of(&[1], 4, &[0]), "page in a step"),
            (span_of(&[1], 0, &[4]), "page in a step"),
        ];
        for (span, what) in cases {
            assert_eq!(decoded(&Step::Run(vec![span])), Err(DecodeError::Bad(what)));
        }
    }

    proptest! {
        #[test]
        fn decoding_never_panics(tag in 0..5_u8, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Step::decode(&[&[tag], &bytes[..]].concat(), &BOUNDS);
        }
    }
}
