use super::*;
use crate::{Isa, KvFormat, KvShape};

/// One sequence, of which each call attends to a part.
struct Case {
    cache: KvCache,
    pages: Vec<u32>,
    q: Vec<f32>,
    heads: HeadMap,
}

impl Case {
    /// One key-value head of four vectors of 16 and one more, not whole.
    fn new(format: KvFormat, page_tokens: usize, group: usize, positions: usize) -> Self {
        let heads = HeadMap {
            heads: group,
            group,
            phase: 0,
        };
        Self::of(format, page_tokens, heads, 72, positions)
    }

    fn of(
        format: KvFormat,
        page_tokens: usize,
        heads: HeadMap,
        head_dim: usize,
        positions: usize,
    ) -> Self {
        let kv_heads = heads.kv_heads();
        let pages: Vec<u32> = (0..positions.div_ceil(page_tokens) as u32).rev().collect();
        let shape = KvShape {
            layers: 1,
            pages: pages.len(),
            page_tokens,
            kv_heads,
            head_dim,
            format,
        };
        let mut cache = KvCache::new(shape).unwrap();
        let numbers = |count: usize, by: f32| -> Vec<f32> {
            (0..count).map(|i| (i as f32 * by).sin()).collect()
        };
        let [k, v] = [0.37, 0.73].map(|by| numbers(positions * kv_heads * head_dim, by));
        cache.write(0, &pages, 0, &k, &v);
        let q = numbers(positions * heads.heads * head_dim, 0.11);
        Self {
            cache,
            pages,
            q,
            heads,
        }
    }

    /// Makes the key and the value of a position NaN.
    fn spoil(&mut self, position: usize) {
        // Rounding could take such a NaN for a number.
        let row = vec![f32::from_bits(0x7fff_ffff); self.cache.shape().head_dim];
        self.cache
            .write(0, &self.pages, position as u32, &row, &row);
    }

    /// Returns the outputs of `tokens` positions from `start` on.
    fn outputs(&self, token: Token, in_pairs: bool, start: usize, tokens: usize) -> Vec<f32> {
        let (pool, scratch) = (Pool::caller(), Scratch::new(1));
        self.outputs_of(&[[start, tokens]], token, in_pairs, &pool, &scratch)
    }

    /// Returns those of several spans, each a start and tokens.
    fn outputs_of(
        &self,
        spans: &[[usize; 2]],
        token: Token,
        in_pairs: bool,
        pool: &Pool,
        scratch: &Scratch,
    ) -> Vec<f32> {
        let width = self.heads.heads * self.cache.shape().head_dim;
        let queries = |&[start, tokens]: &[usize; 2]| &self.q[start * width..][..tokens * width];
        let q: Vec<f32> = spans.iter().flat_map(queries).copied().collect();
        let span = |&[start, tokens]: &[usize; 2]| AttentionSpan {
            pages: &self.pages,
            start: start as u32,
            tokens,
        };
        let attention = Attention {
            q: &q,
            cache: &self.cache,
            layer: 0,
            spans: &spans.iter().map(span).collect::<Vec<_>>(),
            heads: &self.heads,
            scale: 0.3,
            in_pairs,
        };
        let mut out = vec![0.0; q.len()];
        attention.run(pool, token, scratch, &mut out);
        out
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Pages in pairs (of vectors of 16 numbers only), alone, and partly used, at the end of a block and within one, in more than one
/// part. A token's outputs are the same bits whichever tokens are computed with it: what it does not see yet adds nothing. What
/// lies behind the last position, such as of another sequence, is not read.
#[test]
fn pages_read_in_pairs_agree_with_single_ones_and_do_not_depend_on_the_span() {
    for (format, page_tokens, group, positions) in [
        (KvFormat::F16, 32, 4, 128 + 3 * 32 + 5),
        (KvFormat::F16, 20, 1, PART_TOKENS + 47),
        (KvFormat::F16, 40, 2, 3 * 40 + 95),
        (KvFormat::Q8, 16, 7, 128 + 3 * 16 + 5),
        (KvFormat::Q8, 48, 3, 128 + 3 * 48 + 5),
    ] {
        let tokens = Isa::ALL.into_iter().filter_map(Token::new);
        for token in tokens.filter(|token| !token.has_tiles()) {
            let mut case = Case::new(format, page_tokens, group, positions);
            let all = [false, true].map(|in_pairs| case.outputs(token, in_pairs, 0, positions));
            for (alone, in_pairs) in all[0].iter().zip(&all[1]) {
                assert!((alone - in_pairs).abs() < 2e-6, "{alone} {in_pairs}");
            }
            let width = all[0].len() / positions;
            for i in (0..positions).rev() {
                // Around the ends of pages, and some between; all of them take minutes on an emulated processor.
                if (i + 1) % page_tokens < 2 || i % 29 == 0 {
                    for (in_pairs, all) in [false, true].into_iter().zip(&all) {
                        let one = bits(&case.outputs(token, in_pairs, i, 1));
                        let expected = bits(&all[i * width..][..width]);
                        assert_eq!(one, expected, "{format}, position {i}, pairs: {in_pairs}");
                    }
                }
                case.spoil(i);
            }
        }
    }
}

/// Queries of several squares and tiles, the last ones partly used; pages that do not fill 32 places, heads that do not fill 32
/// dimensions, and more than one part. A token's outputs are the same bits whichever tokens are computed with it, and what lies
/// behind the last position is not read.
#[cfg(target_arch = "x86_64")]
#[test]
fn tiles_agree_with_vectors_and_do_not_depend_on_the_span() {
    for (format, page_tokens, group, positions) in [
        (KvFormat::F16, 32, 4, 128 + 3 * 32 + 5),
        (KvFormat::F16, 20, 1, PART_TOKENS + 47),
        (KvFormat::F16, 7, 3, 101),
        (KvFormat::Q8, 16, 7, 128 + 3 * 16 + 5),
    ] {
        for token in Token::all_modelled()
            .into_iter()
            .chain(Token::new(Isa::Amx))
        {
            let mut case = Case::new(format, page_tokens, group, positions);
            let all = case.outputs(token, false, 0, positions);
            let vectors = case.outputs(Token::new(Isa::Scalar).unwrap(), false, 0, positions);
            for (tiled, expected) in all.iter().zip(&vectors) {
                assert!((tiled - expected).abs() < 1e-2, "{tiled} {expected}");
            }
            let width = all.len() / positions;
            let mut end = positions;
            while end >= prompt::TOKENS_MIN {
                for tokens in [prompt::TOKENS_MIN, end.min(50)] {
                    let start = end - tokens;
                    let some = bits(&case.outputs(token, false, start, tokens));
                    let expected = bits(&all[start * width..end * width]);
                    assert!(some == expected, "{format}, positions {start}..{end}");
                }
                let shorter = end - 37.min(end);
                (shorter..end).for_each(|i| case.spoil(i));
                end = shorter;
            }
            case.spoil(0);
            let spoilt = case.outputs(token, false, 0, prompt::TOKENS_MIN);
            assert!(spoilt.iter().all(|x| x.is_nan()), "all see the first");
        }
    }
}

/// Spans that are prompts and such that are not, in one call; heads of which this rank has a part, pages from one position to more
/// than a part; one thread, which reads all heads of a page, and so many that parts are computed side by side; and scratch memory
/// that has seen other shapes.
#[test]
fn prompts_beside_other_spans_do_not_depend_on_threads_or_calls_before() {
    let pools = [1, 3].map(|threads| Pool::new(threads, true, |_| {}).unwrap());
    let scratches = [1, 3].map(Scratch::new);
    let spans = [[610, 40], [0, 33], [530, 1], [90, 2]];
    let tokens = Isa::ALL.into_iter().filter_map(Token::new);
    for token in tokens.chain(Token::all_modelled()) {
        for (format, page_tokens, head_dim, [heads, group, phase]) in [
            (KvFormat::F16, 32, 64, [4, 3, 2]),
            (KvFormat::Q8, 600, 128, [4, 3, 2]),
            (KvFormat::F16, 1, 40, [14, 9, 4]),
        ] {
            let heads = HeadMap {
                heads,
                group,
                phase,
            };
            let case = Case::of(format, page_tokens, heads, head_dim, 650);
            let alone = spans.map(|[start, tokens]| case.outputs(token, false, start, tokens));
            let scalar = Token::new(Isa::Scalar).unwrap();
            for ([start, tokens], alone) in spans.into_iter().zip(&alone) {
                let expected = case.outputs(scalar, false, start, tokens);
                for (x, expected) in alone.iter().zip(&expected) {
                    assert!((x - expected).abs() < 1e-2, "{format}: {x} {expected}");
                }
            }
            for (pool, scratch) in pools.iter().zip(&scratches) {
                let together = case.outputs_of(&spans, token, false, pool, scratch);
                assert!(
                    bits(&together) == bits(&alone.concat()),
                    "{format}, {page_tokens}"
                );
            }
        }
    }
}
