use std::ops::Range;
use std::slice::ChunksExact;

use crate::arch::Simd;
use crate::kv_cache::Numbers;

/// The pages of a sequence, of which one head in one layer is read, up to `P` pages side by side.
pub(super) struct HeadPages<'a, E, const P: usize> {
    pub(super) kept: Numbers<'a, E>,
    pub(super) layer: usize,
    pub(super) head: usize,
    pub(super) pages: &'a [u32],
    /// Positions that are used; the last of them is in the last page.
    pub(super) positions: usize,
    /// What is read after a page and meanwhile asked for: this head of the page so many further on.
    pub(super) next_head: usize,
    pub(super) ahead: usize,
}

impl<E: Element, const P: usize> HeadPages<'_, E, P> {
    /// `scores[q, p] = Σ queries[d, q] × keys[d, p]` for all places of some pages, used or not, of which each takes `token_stride`
    /// of a row. `V` vectors of each page are under way at once.
    #[inline(always)]
    pub(super) fn score<S: Simd, const Q: usize, const V: usize>(
        &self,
        s: S,
        pages: Range<usize>,
        queries: &[f32],
        scores: &mut [f32],
        row: usize,
    ) {
        let stride = self.kept.cache.token_stride();
        let grouped = pages.len() / P * P;
        for i in (0..grouped).step_by(P) {
            let keys = self.keys::<P>(pages.start + i);
            keys.score::<S, Q, V>(s, queries, &mut scores[i * stride..], row);
        }
        for i in grouped..pages.len() {
            let keys = self.keys::<1>(pages.start + i);
            keys.score::<S, Q, V>(s, queries, &mut scores[i * stride..], row);
        }
    }

    /// `sums[q, d] += Σ weights[q, p] × values[p, d]` for the used places of some pages; weights lie as scores do. `V` vectors are
    /// under way at once.
    ///
    /// The order of a sum of finite values is the same whether a later position is used, with weight 0, or not used yet.
    #[inline(always)]
    pub(super) fn add<S: Simd, const Q: usize, const V: usize>(
        &self,
        s: S,
        pages: Range<usize>,
        weights: &[f32],
        row: usize,
        sums: &mut [f32],
    ) {
        let stride = self.kept.cache.token_stride();
        let page_tokens = self.kept.cache.shape().page_tokens;
        let used = |i: usize| page_tokens.min(self.positions - (pages.start + i) * page_tokens);
        let grouped = pages.len() / P * P;
        for i in (0..grouped).step_by(P) {
            let values = self.values::<P>(pages.start + i);
            let positions = 0..used(i + P - 1);
            values.add::<S, Q, V>(s, positions, &weights[i * stride..], [row, stride], sums);
        }
        const { assert!(P <= 2, "one page at most is left alone") };
        let last = pages.len() - 1;
        let alone = if grouped < pages.len() {
            Some((last, 0..used(last)))
        } else if P == 2 && used(last) < page_tokens {
            // The rest of a full page beside a partly used one.
            Some((last - 1, used(last)..page_tokens))
        } else {
            None
        };
        if let Some((i, positions)) = alone {
            let values = self.values::<1>(pages.start + i);
            values.add::<S, Q, V>(s, positions, &weights[i * stride..], [row, stride], sums);
        }
    }

    /// Asks for the first quarter of the values of the page that takes this one's place in the next block. Between
    /// [`score`](Self::score) and [`add`](Self::add), which ask as they read, memory would have nothing to do. `add` asks for
    /// these again, which is cheaper than to leave them out there.
    #[inline(always)]
    pub(super) fn ask<S: Simd>(&self, s: S, page: usize) {
        let (_, values) = self.next(page);
        let len = self.kept.cache.shape().page_tokens / 4 * self.kept.cache.head_stride();
        for i in (0..len).step_by(LINE_BYTES / size_of::<E>()) {
            s.prefetch(values.as_ptr().wrapping_add(i).cast());
        }
    }

    /// Returns the keys and the values of what is read after a page, or those of the next head after the last.
    #[inline(always)]
    fn next(&self, page: usize) -> (&[E], &[E]) {
        let later = page + self.ahead;
        let page = if later < self.pages.len() {
            later
        } else {
            page
        };
        self.kept.head(self.layer, self.pages[page], self.next_head)
    }

    /// Returns the keys and the values of a page.
    #[inline(always)]
    pub(super) fn page(&self, page: usize) -> (&[E], &[E]) {
        self.kept.head(self.layer, self.pages[page], self.head)
    }

    /// Returns what a number counts in the keys and in the values of a page, where that differs.
    #[inline(always)]
    pub(super) fn scales(&self, page: usize) -> Option<(&[f32], &[f32])> {
        self.kept.scales(self.layer, self.pages[page], self.head)
    }

    #[inline(always)]
    fn keys<const N: usize>(&self, first: usize) -> Rows<'_, E, N> {
        let stride = self.kept.cache.token_stride();
        self.rows(first, stride, |(keys, _)| keys)
    }

    #[inline(always)]
    fn values<const N: usize>(&self, first: usize) -> Rows<'_, E, N> {
        let stride = self.kept.cache.head_stride();
        self.rows(first, stride, |(_, values)| values)
    }

    /// Returns the keys or the values of `N` pages from `first` on.
    #[inline(always)]
    fn rows<'a, const N: usize>(
        &'a self,
        first: usize,
        stride: usize,
        of: impl Fn((&'a [E], &'a [E])) -> &'a [E],
    ) -> Rows<'a, E, N> {
        let mut rows: [&[E]; N] = [&[]; N];
        let mut next = [std::ptr::null(); N];
        for i in 0..N {
            rows[i] = of(self.page(first + i));
            next[i] = of(self.next(first + i)).as_ptr();
        }
        Rows { rows, next, stride }
    }
}

/// Keys or values in `N` pages, which are read side by side.
struct Rows<'a, E, const N: usize> {
    rows: [&'a [E]; N],
    /// Those of the pages that take these ones' places in the next block. Pages are anywhere in memory, which the processor
    /// cannot foresee: it is told.
    next: [*const E; N],
    /// Width of a row.
    stride: usize,
}

/// What numbers are kept as.
pub(super) trait Element: Copy {
    /// Loads a vector of them.
    fn load<S: Simd>(s: S, from: &[Self]) -> S::F32;
}

/// The bits of a number in half precision.
impl Element for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self]) -> S::F32 {
        s.load_f16(from)
    }
}

impl Element for i8 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self]) -> S::F32 {
        s.load_i8(from)
    }
}

/// What the processor fetches at once.
const LINE_BYTES: usize = 64;

impl<E: Element, const N: usize> Rows<'_, E, N> {
    /// `scores[q, p] = Σ queries[d, q] × keys[d, p]` for all places of the pages.
    #[inline(always)]
    fn score<S: Simd, const Q: usize, const V: usize>(
        &self,
        s: S,
        queries: &[f32],
        scores: &mut [f32],
        row: usize,
    ) {
        let mut p = 0;
        while p + V * S::LANES <= self.stride {
            self.score_vectors::<S, Q, V>(s, queries, p, scores, row);
            p += V * S::LANES;
        }
        while p < self.stride {
            self.score_vectors::<S, Q, 1>(s, queries, p, scores, row);
            p += S::LANES;
        }
    }

    /// Does so for places from `p` on.
    #[inline(always)]
    fn score_vectors<S: Simd, const Q: usize, const V: usize>(
        &self,
        s: S,
        queries: &[f32],
        p: usize,
        scores: &mut [f32],
        row: usize,
    ) {
        let mut dots = [[[s.splat(0.0); V]; N]; Q];
        let mut rows = self.rows.map(|rows| rows.chunks_exact(self.stride));
        for (d, queries) in queries.as_chunks::<Q>().0.iter().enumerate() {
            let keys = self.load::<S, V>(s, &mut rows, d, p);
            for q in 0..Q {
                let query = s.splat(queries[q]);
                for i in 0..N {
                    for v in 0..V {
                        dots[q][i][v] = s.mul_add(query, keys[i][v], dots[q][i][v]);
                    }
                }
            }
        }
        for (q, dots) in dots.iter().enumerate() {
            for (i, dots) in dots.iter().enumerate() {
                for (v, &dot) in dots.iter().enumerate() {
                    let place = i * self.stride + p + v * S::LANES;
                    s.store(dot, &mut scores[q * row + place..]);
                }
            }
        }
    }

    /// `sums[q, d] += Σ weights[q, p] × values[p, d]` for `positions` of the pages, which take turns. The weights of a query are
    /// `row` apart from those of the next, and within them those of a page `page`.
    #[inline(always)]
    fn add<S: Simd, const Q: usize, const V: usize>(
        &self,
        s: S,
        positions: Range<usize>,
        weights: &[f32],
        [row, page]: [usize; 2],
        sums: &mut [f32],
    ) {
        let mut own = [[weights; N]; Q];
        for (q, own) in own.iter_mut().enumerate() {
            for (i, own) in own.iter_mut().enumerate() {
                // As long as the loop in `add_vectors` counts, so that it checks no weight's index: that cost the sums their
                // registers.
                *own = &weights[q * row + i * page..][positions.clone()];
            }
        }
        let mut d = 0;
        while d + V * S::LANES <= self.stride {
            self.add_vectors::<S, Q, V>(s, positions.clone(), &own, d, sums);
            d += V * S::LANES;
        }
        while d < self.stride {
            self.add_vectors::<S, Q, 1>(s, positions.clone(), &own, d, sums);
            d += S::LANES;
        }
    }

    /// Does so from dimension `d` on.
    #[inline(always)]
    fn add_vectors<S: Simd, const Q: usize, const V: usize>(
        &self,
        s: S,
        positions: Range<usize>,
        weights: &[[&[f32]; N]; Q],
        d: usize,
        sums: &mut [f32],
    ) {
        let mut parts = [[s.splat(0.0); V]; Q];
        for (q, parts) in parts.iter_mut().enumerate() {
            for (v, part) in parts.iter_mut().enumerate() {
                *part = s.load(&sums[q * self.stride + d + v * S::LANES..]);
            }
        }
        let start = positions.start * self.stride;
        let mut rows = self
            .rows
            .map(|rows| rows[start..].chunks_exact(self.stride));
        for (p, position) in (0..weights[0][0].len()).zip(positions) {
            let values = self.load::<S, V>(s, &mut rows, position, d);
            for i in 0..N {
                for q in 0..Q {
                    let weight = s.splat(weights[q][i][p]);
                    for v in 0..V {
                        parts[q][v] = s.mul_add(weight, values[i][v], parts[q][v]);
                    }
                }
            }
        }
        for (q, parts) in parts.iter().enumerate() {
            for (v, &part) in parts.iter().enumerate() {
                s.store(part, &mut sums[q * self.stride + d + v * S::LANES..]);
            }
        }
    }

    /// Loads `V` vectors from `place` on of the next of `rows`, row `i` of each page, and asks for those at the same place of the
    /// pages to come.
    #[inline(always)]
    fn load<S: Simd, const V: usize>(
        &self,
        s: S,
        rows: &mut [ChunksExact<'_, E>; N],
        i: usize,
        place: usize,
    ) -> [[S::F32; V]; N] {
        let mut vectors = [[s.splat(0.0); V]; N];
        for ((vectors, rows), next) in vectors.iter_mut().zip(rows).zip(self.next) {
            let row = rows.next().expect("no more are asked for than there are");
            let from = &row[place..][..V * S::LANES];
            for line in (0..V * S::LANES).step_by(LINE_BYTES / size_of::<E>()) {
                s.prefetch(next.wrapping_add(i * self.stride + place + line).cast());
            }
            for (v, vector) in vectors.iter_mut().enumerate() {
                *vector = E::load(s, &from[v * S::LANES..]);
            }
        }
        vectors
    }
}
