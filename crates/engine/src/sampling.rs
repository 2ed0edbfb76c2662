//! Choosing the next token: a pure function of logits, parameters, the tokens so far and the position.

use std::collections::HashMap;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::request::Sampling;

/// Which tokens a sequence holds so far, for the penalties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// How often each token was generated; 0 for those that are only in the prompt.
    generated: HashMap<u32, u32>,
    generated_tokens: u32,
}

impl History {
    /// Returns the history of a sequence of which nothing has been generated.
    #[must_use]
    pub fn new(prompt: &[u32]) -> Self {
        Self {
            generated: prompt.iter().map(|&token| (token, 0)).collect(),
            generated_tokens: 0,
        }
    }

    /// Appends a generated token.
    pub fn push(&mut self, token: u32) {
        *self.generated.entry(token).or_default() += 1;
        self.generated_tokens += 1;
    }

    /// Returns how many tokens were generated, which is the position of the next one in the reply.
    #[must_use]
    pub fn generated_tokens(&self) -> u32 {
        self.generated_tokens
    }
}

/// Returns the next token, or `None` if no logit is a number above negative infinity.
///
/// The steps are those of vLLM, in its order: the repetition penalty over prompt and reply, the frequency and presence
/// penalties over the reply, the temperature, `min_p`, `top_k`, `top_p`, the draw. Temperature 0 takes the largest logit
/// after the penalties. Among equals the lowest id comes first. A logit that is not a number counts as negative infinity.
///
/// The draw depends on `sampling.seed` and on how many tokens were generated and on nothing else, so a reply can be
/// taken up again from its tokens alone. `logits` is used as scratch.
pub fn sample(logits: &mut [f32], sampling: &Sampling, history: &History) -> Option<u32> {
    penalise(logits, sampling, history);
    for logit in logits.iter_mut() {
        // NaN is no maximum of anything; infinity would make differences of two of them NaN.
        *logit = if logit.is_nan() {
            f32::NEG_INFINITY
        } else {
            logit.min(f32::MAX)
        };
    }
    let largest = argmax(logits)?;
    if sampling.temperature.is_nan() || sampling.temperature <= 0.0 {
        return Some(largest.token);
    }
    let candidates = candidates(logits, sampling, largest.weight);
    Some(draw(
        &candidates,
        uniform(sampling.seed, history.generated_tokens),
    ))
}

/// A token and what speaks for it: its logit, later its probability relative to that of the most likely token.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    token: u32,
    weight: f32,
}

fn penalise(logits: &mut [f32], sampling: &Sampling, history: &History) {
    let Sampling {
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        ..
    } = *sampling;
    if repetition_penalty == 1.0 && presence_penalty == 0.0 && frequency_penalty == 0.0 {
        return;
    }
    for (&token, &times) in &history.generated {
        let Some(logit) = logits.get_mut(token as usize) else {
            continue;
        };
        *logit = if *logit > 0.0 {
            *logit / repetition_penalty
        } else {
            *logit * repetition_penalty
        };
        *logit -= frequency_penalty * times as f32;
        if times > 0 {
            *logit -= presence_penalty;
        }
    }
}

fn argmax(logits: &[f32]) -> Option<Candidate> {
    let mut largest = Candidate {
        token: 0,
        weight: f32::NEG_INFINITY,
    };
    for (token, &weight) in (0..).zip(logits) {
        if weight > largest.weight {
            largest = Candidate { token, weight };
        }
    }
    (largest.weight > f32::NEG_INFINITY).then_some(largest)
}

/// Returns the tokens to draw from with their relative probabilities, the most likely one having 1.
fn candidates(logits: &[f32], sampling: &Sampling, largest: f32) -> Vec<Candidate> {
    let Sampling {
        temperature,
        top_p,
        min_p,
        ..
    } = *sampling;
    let relative = |logit: f32| ((logit - largest) / temperature).exp();
    // Never the most likely token itself, whatever `min_p` asks for.
    let floor = min_p.min(1.0);
    let mut kept: Vec<Candidate> = (0..)
        .zip(logits)
        .map(|(token, &logit)| Candidate {
            token,
            weight: relative(logit),
        })
        .filter(|it| it.weight > 0.0 && it.weight >= floor)
        .collect();

    let top_k = sampling.top_k as usize;
    if (1..kept.len()).contains(&top_k) {
        kept.select_nth_unstable_by(top_k - 1, likeliest_first);
        kept.truncate(top_k);
    }
    if top_p < 1.0 {
        keep_top_p(&mut kept, top_p);
    }
    // One order for the draw, however the tokens were chosen.
    kept.sort_unstable_by_key(|it| it.token);
    kept
}

/// Keeps the shortest run of the most likely tokens that reaches `top_p` of the whole, and one token at least.
fn keep_top_p(kept: &mut Vec<Candidate>, top_p: f32) {
    let whole = total(kept);
    let wanted = whole * f64::from(top_p);
    // Tokens of at most `(1 - top_p) / count` each hold at most `1 - top_p` together, so those above reach `top_p`
    // without them. This leaves little of a large vocabulary to sort.
    let negligible = (whole - wanted) / kept.len() as f64;
    kept.retain(|it| f64::from(it.weight) > negligible || it.weight == 1.0);
    kept.sort_unstable_by(likeliest_first);
    let mut sum = 0.0;
    let reached = kept.iter().position(|it| {
        sum += f64::from(it.weight);
        sum >= wanted
    });
    kept.truncate(reached.map_or(kept.len(), |last| last + 1));
}

fn likeliest_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|it| f64::from(it.weight)).sum()
}

/// Returns the token at `point` of the way, in 0..1, through the summed weights.
fn draw(candidates: &[Candidate], point: f64) -> u32 {
    let mut left = point * total(candidates);
    for candidate in candidates {
        left -= f64::from(candidate.weight);
        if left < 0.0 {
            return candidate.token;
        }
    }
    // Rounding may leave a hair at the end.
    candidates
        .last()
        .expect("the most likely token is always a candidate")
        .token
}

/// Returns a number in 0..1 that depends on nothing but its arguments.
fn uniform(seed: u64, position: u32) -> f64 {
    let mut generator = ChaCha12Rng::seed_from_u64(seed);
    generator.set_stream(position.into());
    // The 53 bits that a double holds exactly.
    (generator.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warm() -> Sampling {
        Sampling {
            temperature: 1.0,
            ..Sampling::greedy()
        }
    }

    fn logits_of(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    /// Which tokens may be drawn.
    fn kept(probabilities: &[f32], sampling: Sampling) -> Vec<u32> {
        let logits = logits_of(probabilities);
        let largest = argmax(&logits).expect("there is one").weight;
        candidates(&logits, &sampling, largest)
            .iter()
            .map(|it| it.token)
            .collect()
    }

    fn greedy(logits: &[f32], sampling: Sampling, history: &History) -> Option<u32> {
        sample(&mut logits.to_vec(), &sampling, history)
    }

    #[test]
    fn temperature_zero_takes_the_largest_and_the_lowest_id_of_equals() {
        let none = History::default();
        assert_eq!(
            greedy(&[0.0, 3.0, -1.0, 3.0], Sampling::greedy(), &none),
            Some(1)
        );
        assert_eq!(greedy(&[-5.0, -4.0], Sampling::greedy(), &none), Some(1));
    }

    #[test]
    fn logits_that_are_no_numbers_never_win_and_never_panic() {
        let (none, nan, inf) = (History::default(), f32::NAN, f32::INFINITY);
        for sampling in [
            Sampling::greedy(),
            warm(),
            Sampling {
                top_p: 0.5,
                top_k: 2,
                min_p: 0.1,
                ..warm()
            },
        ] {
            assert_eq!(greedy(&[nan, -3.0, nan, -inf], sampling, &none), Some(1));
            assert_eq!(greedy(&[nan, inf, 0.0], sampling, &none), Some(1));
            assert_eq!(greedy(&[nan, nan], sampling, &none), None);
            assert_eq!(greedy(&[-inf], sampling, &none), None);
            assert_eq!(greedy(&[], sampling, &none), None);
        }
        let strange = Sampling {
            temperature: nan,
            top_p: nan,
            min_p: nan,
            repetition_penalty: 0.0,
            ..warm()
        };
        let _ = greedy(&[1.0, 2.0], strange, &History::new(&[0, 1]));
        let tiny = Sampling {
            temperature: f32::MIN_POSITIVE,
            ..warm()
        };
        assert_eq!(greedy(&[1.0, 1.5, f32::MIN], tiny, &none), Some(1));
    }

    #[test]
    fn repetition_counts_the_prompt_and_the_others_only_the_reply() {
        let mut history = History::new(&[0]);
        history.push(1);
        history.push(1);
        let mut logits = [4.0, 4.0, -4.0, 4.0];
        let repetition_penalty = 2.0;
        penalise(
            &mut logits,
            &Sampling {
                repetition_penalty,
                ..warm()
            },
            &history,
        );
        assert_eq!(logits, [2.0, 2.0, -4.0, 4.0]);
        let (presence_penalty, frequency_penalty) = (0.5, 0.25);
        let mut logits = [4.0, 4.0, -4.0, 4.0];
        penalise(
            &mut logits,
            &Sampling {
                presence_penalty,
                frequency_penalty,
                ..warm()
            },
            &history,
        );
        assert_eq!(logits, [4.0, 3.0, -4.0, 4.0]);
        let mut logits = [-1.0];
        penalise(
            &mut logits,
            &Sampling {
                repetition_penalty,
                ..warm()
            },
            &history,
        );
        assert_eq!(logits, [-2.0], "below zero the penalty multiplies");
    }

    #[test]
    fn penalties_bear_on_greedy_choices_too() {
        let mut history = History::default();
        history.push(0);
        let sampling = Sampling {
            frequency_penalty: 1.0,
            ..Sampling::greedy()
        };
        assert_eq!(greedy(&[2.0, 1.5], sampling, &history), Some(1));
    }

    #[test]
    fn top_k_top_p_and_min_p_keep_what_they_say() {
        let p = [0.1, 0.4, 0.2, 0.3];
        assert_eq!(kept(&p, warm()), [0, 1, 2, 3]);
        assert_eq!(kept(&p, Sampling { top_k: 2, ..warm() }), [1, 3]);
        assert_eq!(kept(&p, Sampling { top_k: 9, ..warm() }), [0, 1, 2, 3]);
        assert_eq!(
            kept(
                &p,
                Sampling {
                    top_p: 0.65,
                    ..warm()
                }
            ),
            [1, 3]
        );
        assert_eq!(
            kept(
                &p,
                Sampling {
                    top_p: 0.75,
                    ..warm()
                }
            ),
            [1, 2, 3]
        );
        assert_eq!(
            kept(
                &p,
                Sampling {
                    top_p: 0.0,
                    ..warm()
                }
            ),
            [1]
        );
        assert_eq!(
            kept(
                &p,
                Sampling {
                    min_p: 0.6,
                    ..warm()
                }
            ),
            [1, 3]
        );
        assert_eq!(
            kept(
                &p,
                Sampling {
                    min_p: 2.0,
                    ..warm()
                }
            ),
            [1]
        );
        // 0.3 and 0.4 are 3/7 and 4/7 of what top_k leaves: top_p comes after it.
        assert_eq!(
            kept(
                &p,
                Sampling {
                    top_k: 2,
                    top_p: 0.56,
                    ..warm()
                }
            ),
            [1]
        );
        assert_eq!(
            kept(&[0.25; 4], Sampling { top_k: 2, ..warm() }),
            [0, 1],
            "the lowest ids of equals"
        );
        // min_p comes after the temperature, which evens these out.
        assert_eq!(
            kept(
                &p,
                Sampling {
                    min_p: 0.5,
                    temperature: 100.0,
                    ..warm()
                }
            ),
            [0, 1, 2, 3]
        );
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let p = [0.5, 0.05, 0.15, 0.3];
        let frequencies = |sampling: Sampling| {
            let mut counts = [0_u32; 4];
            for seed in 0..20_000 {
                let token = greedy(
                    &logits_of(&p),
                    Sampling { seed, ..sampling },
                    &History::default(),
                );
                counts[token.expect("finite logits") as usize] += 1;
            }
            counts.map(|count| f64::from(count) / 20_000.0)
        };
        let close = |got: [f64; 4], wanted: [f64; 4]| {
            // Four standard deviations of a frequency near one half.
            let near = got
                .iter()
                .zip(&wanted)
                .all(|(got, wanted)| (got - wanted).abs() < 0.0142);
            assert!(near, "{got:?} for {wanted:?}");
        };
        close(frequencies(warm()), [0.5, 0.05, 0.15, 0.3]);
        close(
            frequencies(Sampling { top_k: 2, ..warm() }),
            [0.625, 0.0, 0.0, 0.375],
        );
        // The squares 0.25, 0.0025, 0.0225, 0.09, over their sum.
        close(
            frequencies(Sampling {
                temperature: 0.5,
                ..warm()
            }),
            [0.6849, 0.0068, 0.0616, 0.2466],
        );
    }

    #[test]
    fn the_draw_depends_on_seed_and_position_alone() {
        let logits = logits_of(&[0.25; 4]);
        let reply = |seed| {
            let mut history = History::new(&[1, 2]);
            let mut next = || {
                let token =
                    greedy(&logits, Sampling { seed, ..warm() }, &history).expect("finite logits");
                history.push(token);
                token
            };
            (0..32).map(|_| next()).collect::<Vec<u32>>()
        };
        assert_eq!(reply(7), reply(7));
        assert_ne!(reply(7), reply(8));
        // A sequence taken up again in the middle draws what it would have drawn.
        let resumed = History {
            generated_tokens: 20,
            ..History::default()
        };
        let sampling = Sampling { seed: 7, ..warm() };
        let mut straight = History::default();
        (0..20).for_each(|_| straight.push(3));
        assert_eq!(
            greedy(&logits, sampling, &resumed),
            greedy(&logits, sampling, &straight)
        );
        // Fixed for ever: a change would change the replies to every seed.
        let first: Vec<u64> = (0..4).map(|at| (uniform(42, at) * 1e6) as u64).collect();
        assert_eq!(first, [526_557, 284_858, 772_336, 781_617]);
    }
}
