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
    fn new(format: KvFormat, page_tokens: usize, group: usize, positions: usize) -> Self {
        let (kv_heads, head_dim) = (2, 24);
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
        let heads = HeadMap {
            heads: kv_heads * group,
            group,
            phase: 0,
        };
        let q = numbers(positions * heads.heads * head_dim, 0.11);
        Self {
            cache,
            pages,
            q,
            heads,
        }
    }

    /// Returns the outputs of `tokens` positions from `start` on.
    fn outputs(&self, token: Token, in_pairs: bool, start: usize, tokens: usize) -> Vec<f32> {
        let width = self.heads.heads * self.cache.shape().head_dim;
        let span = AttentionSpan {
            pages: &self.pages,
            start: start as u32,
            tokens,
        };
        let attention = Attention {
            q: &self.q[start * width..][..tokens * width],
            cache: &self.cache,
            layer: 0,
            spans: &[span],
            heads: &self.heads,
            scale: 0.3,
            in_pairs,
        };
        let mut out = vec![0.0; tokens * width];
        attention.run(&Pool::caller(), token, &Scratch::new(1), &mut out);
        out
    }
}

/// Pages in pairs, alone, and partly used, at the end of a block and within one. A token's outputs are the same bits whichever
/// tokens are computed with it: what it does not see yet adds nothing.
#[test]
fn pages_read_in_pairs_agree_with_single_ones_and_do_not_depend_on_the_span() {
    for (format, page_tokens, group) in [
        (KvFormat::F16, 32, 4),
        (KvFormat::F16, 20, 1),
        (KvFormat::Q8, 16, 7),
        (KvFormat::Q8, 48, 3),
    ] {
        let positions = 128 + 3 * page_tokens + 5;
        let case = Case::new(format, page_tokens, group, positions);
        for token in Isa::ALL.into_iter().filter_map(Token::new) {
            let [alone, in_pairs] = [false, true].map(|in_pairs| {
                let all = case.outputs(token, in_pairs, 0, positions);
                let width = all.len() / positions;
                for (i, expected) in all.chunks_exact(width).enumerate() {
                    let one = case.outputs(token, in_pairs, i, 1);
                    assert_eq!(one, expected, "{format}, position {i}, pairs: {in_pairs}");
                }
                all
            });
            for (alone, in_pairs) in alone.iter().zip(in_pairs) {
                assert!((alone - in_pairs).abs() < 2e-6, "{alone} {in_pairs}");
            }
        }
    }
}
