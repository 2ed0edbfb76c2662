//! Which part of every weight each rank holds.
//!
//! There is one rule for all weights: an [`Axis`] is divided over ranks in proportion to their shares, and a weight
//! follows its axis by rows, by columns, or not at all. Shares may be uneven and need not divide anything evenly.
//!
//! Key-value heads follow the query heads that read them, so one may be held by several ranks. Column slices are
//! widened to whole quantisation blocks; the columns a rank holds but does not own meet zeros in its input, so the sum
//! over ranks stays exact.

use std::ops::Range;

use shoal_fabric::Rank;

use crate::error::ModelError;
use crate::spec::{Axis, ModelSpec, Split, WeightSpec};

/// Weight of each rank in the split, each at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares(Vec<u32>);

impl Shares {
    /// Takes one weight for each rank.
    ///
    /// # Errors
    /// [`ModelError::Split`] when there is none, or one is zero.
    pub fn new(weights: Vec<u32>) -> Result<Self, ModelError> {
        if weights.is_empty() || weights.contains(&0) {
            return Err(ModelError::Split(
                "every node needs a share of at least 1, such as 3,1 for two nodes".to_owned(),
            ));
        }
        Ok(Self(weights))
    }

    /// Gives `world` ranks the same share.
    ///
    /// # Panics
    /// If `world` is zero.
    #[must_use]
    pub fn equal(world: usize) -> Self {
        assert!(world > 0, "a group has at least one rank");
        Self(vec![1; world])
    }

    /// Returns the number of ranks.
    #[must_use]
    pub fn world(&self) -> usize {
        self.0.len()
    }

    /// Returns the weights, in rank order.
    #[must_use]
    pub fn weights(&self) -> &[u32] {
        &self.0
    }
}

/// What every rank holds of every axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitPlan {
    head_dim: usize,
    heads: Vec<Range<usize>>,
    kv_heads: Vec<Range<usize>>,
    ffn: Vec<Range<usize>>,
    vocabulary: Vec<Range<usize>>,
    totals: [usize; 4],
}

/// The part of one weight that one rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Outputs held.
    pub rows: Range<usize>,
    /// Inputs held, in whole quantisation blocks.
    pub cols: Range<usize>,
    /// Columns held before the first one owned; their inputs are zero.
    pub lead: usize,
}

impl SplitPlan {
    /// Divides a model.
    ///
    /// # Errors
    /// [`ModelError::Split`] when there are more ranks than query heads.
    pub fn new(spec: &ModelSpec, shares: &Shares) -> Result<Self, ModelError> {
        let world = shares.world();
        if world > spec.heads {
            return Err(ModelError::Split(format!(
                "{world} nodes cannot share {} attention heads; use at most {} nodes",
                spec.heads, spec.heads
            )));
        }
        if world > spec.ffn_width.min(spec.vocabulary) {
            return Err(ModelError::Split(format!(
                "{world} nodes are too many for this model"
            )));
        }
        let heads = divide(spec.heads, 1, shares);
        let group = spec.heads / spec.kv_heads;
        let kv_heads = heads
            .iter()
            .map(|heads| heads.start / group..(heads.end - 1) / group + 1)
            .collect();
        Ok(Self {
            head_dim: spec.head_dim,
            kv_heads,
            heads,
            ffn: divide(spec.ffn_width, ffn_unit(spec, world), shares),
            vocabulary: divide(spec.vocabulary, 1, shares),
            totals: [spec.heads, spec.kv_heads, spec.ffn_width, spec.vocabulary],
        })
    }

    /// Returns the number of ranks.
    #[must_use]
    pub fn world(&self) -> usize {
        self.heads.len()
    }

    /// Returns a rank's part of an axis, in heads, columns or tokens.
    #[must_use]
    pub fn part(&self, axis: Axis, rank: usize) -> Range<usize> {
        match axis {
            Axis::Heads => self.heads[rank].clone(),
            Axis::KvHeads => self.kv_heads[rank].clone(),
            Axis::Ffn => self.ffn[rank].clone(),
            Axis::Vocabulary => self.vocabulary[rank].clone(),
        }
    }

    /// Returns the part of a weight that a rank holds.
    #[must_use]
    pub fn slice(&self, weight: &WeightSpec, rank: usize) -> Slice {
        let (mut rows, mut cols, mut lead) = (0..weight.rows, 0..weight.cols, 0);
        match weight.split {
            Split::Replicate => {}
            Split::Rows(axis) => rows = self.elements(axis, rank),
            Split::Columns(axis) => {
                let block = weight.dtype.block_len();
                let own = self.elements(axis, rank);
                cols = own.start / block * block..own.end.next_multiple_of(block);
                lead = own.start - cols.start;
            }
        }
        Slice { rows, cols, lead }
    }

    /// Tells a rank's part in words, for logs and reports.
    ///
    /// # Panics
    /// If there is no such rank.
    #[must_use]
    pub fn describe(&self, rank: Rank) -> String {
        let rank = usize::from(rank.0);
        let [heads, kv_heads, ffn, vocabulary] = self.totals;
        let part = |what, parts: &[Range<usize>], total| {
            format!(
                "{what} {}..{} of {total}",
                parts[rank].start, parts[rank].end
            )
        };
        [
            part("heads", &self.heads, heads),
            part("kv heads", &self.kv_heads, kv_heads),
            part("ffn", &self.ffn, ffn),
            part("vocabulary", &self.vocabulary, vocabulary),
        ]
        .join(", ")
    }

    fn elements(&self, axis: Axis, rank: usize) -> Range<usize> {
        let part = self.part(axis, rank);
        match axis {
            Axis::Heads | Axis::KvHeads => part.start * self.head_dim..part.end * self.head_dim,
            Axis::Ffn | Axis::Vocabulary => part,
        }
    }
}

/// Feed-forward columns move between ranks in whole blocks where that leaves enough of them to follow the shares;
/// smaller units cost a little, since slices are then widened. Floats have blocks of 32 as well: tiles multiply so many
/// at a time.
fn ffn_unit(spec: &ModelSpec, world: usize) -> usize {
    let block = spec
        .blocks
        .iter()
        .map(|block| block.down.dtype.block_len())
        .max()
        .unwrap_or(1);
    [block.max(32), 32]
        .into_iter()
        .find(|unit| spec.ffn_width.is_multiple_of(*unit) && spec.ffn_width / unit >= 4 * world)
        .unwrap_or(1)
}

/// Divides `0..total` in units, in proportion to shares, by the method of the largest remainder; everyone gets one unit
/// at least. `total` is a multiple of `unit` and holds a unit for everyone.
fn divide(total: usize, unit: usize, shares: &Shares) -> Vec<Range<usize>> {
    let units = (total / unit) as u64;
    let sum: u64 = shares.0.iter().map(|share| u64::from(*share)).sum();
    let mut counts: Vec<u64> = shares
        .0
        .iter()
        .map(|share| units * u64::from(*share) / sum)
        .collect();
    let mut by_remainder: Vec<usize> = (0..counts.len()).collect();
    by_remainder.sort_by_key(|&rank| std::cmp::Reverse(units * u64::from(shares.0[rank]) % sum));
    let missing = units - counts.iter().sum::<u64>();
    for &rank in by_remainder.iter().take(missing as usize) {
        counts[rank] += 1;
    }
    while let Some(empty) = counts.iter().position(|count| *count == 0) {
        let largest = (0..counts.len())
            .max_by_key(|&rank| counts[rank])
            .expect("there are ranks");
        counts[largest] -= 1;
        counts[empty] += 1;
    }
    let mut start = 0;
    counts
        .into_iter()
        .map(|count| {
            let range = start..start + count as usize * unit;
            start = range.end;
            range
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use shoal_kernels::Dtype;
    use shoal_testkit::{TinyConfig, tiny_llama};

    use super::*;
    use crate::gguf::Gguf;

    fn spec(config: &TinyConfig) -> ModelSpec {
        let file = Gguf::parse(tiny_llama(config)).expect("a valid file");
        ModelSpec::from_gguf(&file).expect("a model")
    }

    fn plan(spec: &ModelSpec, shares: &[u32]) -> SplitPlan {
        let shares = Shares::new(shares.to_vec()).expect("shares");
        SplitPlan::new(spec, &shares).expect("a plan")
    }

    /// Every weight is owned exactly once, but for key-value heads, of which each rank has what its query heads read.
    fn check(spec: &ModelSpec, shares: &[u32]) {
        let plan = plan(spec, shares);
        for weight in spec.weights() {
            let block = weight.dtype.block_len();
            let mut owners = vec![0; weight.rows.max(weight.cols)];
            for rank in 0..plan.world() {
                let slice = plan.slice(weight, rank);
                assert!(!slice.rows.is_empty() && !slice.cols.is_empty());
                assert!(slice.rows.end <= weight.rows && slice.cols.end <= weight.cols);
                assert!(
                    [slice.cols.start, slice.cols.end]
                        .iter()
                        .all(|col| col.is_multiple_of(block))
                );
                let (split_axis, start) = match weight.split {
                    Split::Replicate => {
                        assert_eq!((slice.rows, slice.cols), (0..weight.rows, 0..weight.cols));
                        continue;
                    }
                    Split::Rows(axis) => (axis, slice.rows.start),
                    Split::Columns(axis) => {
                        assert!(slice.lead < block);
                        (axis, slice.cols.start + slice.lead)
                    }
                };
                let own = plan.elements(split_axis, rank);
                assert_eq!(own.start, start);
                owners[own].iter_mut().for_each(|owners| *owners += 1);
            }
            let split = match weight.split {
                Split::Replicate => continue,
                Split::Rows(_) => weight.rows,
                Split::Columns(_) => weight.cols,
            };
            let once = |count: &i32| match weight.split {
                Split::Rows(Axis::KvHeads) => *count >= 1,
                _ => *count == 1,
            };
            assert!(
                owners[..split].iter().all(once),
                "{}: {owners:?}",
                weight.name
            );
        }
        let group = spec.heads / spec.kv_heads;
        for rank in 0..plan.world() {
            let read = plan.part(Axis::Heads, rank).map(|head| head / group);
            let held = plan.part(Axis::KvHeads, rank);
            assert_eq!(
                (read.clone().min(), read.max()),
                (Some(held.start), Some(held.end - 1))
            );
        }
    }

    /// A model with widths of its own in every format that allows them, and one with even widths in all.
    static SPECS: LazyLock<Vec<ModelSpec>> = LazyLock::new(|| {
        let odd = Dtype::ALL.iter().filter(|dtype| dtype.block_len() <= 32);
        let odd = odd.map(|&dtype| TinyConfig {
            dtype,
            ..TinyConfig::default()
        });
        let configs = odd.chain(Dtype::ALL.map(TinyConfig::wide));
        configs.map(|config| spec(&config)).collect()
    });

    #[test]
    fn the_shares_that_people_give() {
        for shares in [
            &[1][..],
            &[1, 1],
            &[1, 1, 1],
            &[1, 1, 1, 1],
            &[3, 1],
            &[5, 1, 1, 2],
            &[1, 8],
        ] {
            SPECS.iter().for_each(|spec| check(spec, shares));
        }
    }

    #[test]
    fn floats_are_cut_in_whole_steps_of_tiles() {
        let spec = ModelSpec {
            ffn_width: 43 * 32,
            ..spec(&TinyConfig::wide(Dtype::F16))
        };
        let plan = plan(&spec, &[1, 1, 1]);
        let parts = [0, 1, 2].map(|rank| plan.part(Axis::Ffn, rank).len());
        assert_eq!(parts, [15 * 32, 14 * 32, 14 * 32]);
    }

    #[test]
    fn parts_follow_the_shares() {
        let spec = spec(&TinyConfig::default());
        let part = |axis, shares: &[u32]| {
            let plan = plan(&spec, shares);
            (0..shares.len())
                .map(|rank| plan.part(axis, rank).len())
                .collect::<Vec<_>>()
        };
        assert_eq!(part(Axis::Heads, &[1, 1]), [5, 4]);
        assert_eq!(part(Axis::Heads, &[3, 1]), [7, 2]);
        assert_eq!(part(Axis::Heads, &[5, 1, 1, 2]), [5, 1, 1, 2]);
        assert_eq!(part(Axis::Heads, &[1000, 1]), [8, 1]);
        // Heads 0..3, 3..5, 5..7 and 7..9 in groups of three.
        assert_eq!(part(Axis::KvHeads, &[1, 1, 1, 1]), [1, 1, 2, 1]);
        assert_eq!(part(Axis::Vocabulary, &[3, 1]), [384, 128]);
        assert_eq!(
            plan(&spec, &[3, 1]).describe(Rank(1)),
            "heads 7..9 of 9, kv heads 2..3 of 3, ffn 120..160 of 160, vocabulary 384..512 of 512"
        );
    }

    proptest! {
        #[test]
        fn every_weight_is_owned_once(
            shares in prop::collection::vec(1..1000_u32, 1..=9),
            spec in 0..SPECS.len(),
        ) {
            let spec = &SPECS[spec];
            check(spec, &shares[..shares.len().min(spec.heads)]);
        }
    }
}
