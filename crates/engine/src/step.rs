//! What rank 0 tells the other ranks to do next.

use shoal_model::Span;

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

    /// Decodes a step. Whether the model can compute its spans [`Model::forward`](shoal_model::Model::forward) checks.
    ///
    /// # Errors
    /// [`DecodeError`] for bytes that are no step.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let step = match from.u8()? {
            0 => Self::Run(from.list(SPAN_BYTES_MIN, span)?),
            1 => Self::Idle,
            2 => Self::Report,
            3 => Self::Shutdown,
            tag => return Err(DecodeError::Unknown { what: "step", tag }),
        };
        from.end()?;
        Ok(step)
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
        Step::decode(&bytes)
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

    proptest! {
        #[test]
        fn decoding_never_panics(tag in 0..5_u8, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Step::decode(&[&[tag], &bytes[..]].concat());
        }
    }
}
