use std::fmt;
use std::ops::Range;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use serde::{Deserialize, Serialize};

use crate::zeroed::Zeroed;

/// What a [`KvCache`] keeps its numbers as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvFormat {
    /// Half precision.
    #[default]
    F16,
    /// Integers of 8 bits, with a scale for the key and one for the value of each position and head: 53 % of the memory where
    /// heads are 64 wide, 52 % where they are 128. A number is off by at most the largest of its head ÷ 254.
    Q8,
}

impl KvFormat {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::F16, Self::Q8];

    /// Returns the format of a name, such as `q8`.
    pub fn from_name(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|format| format.to_string() == name)
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Q8 => "q8",
        })
    }
}

/// Dimensions of a [`KvCache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Layers of the model.
    pub layers: usize,
    /// Pages, shared by all sequences.
    pub pages: usize,
    /// Positions in a page.
    pub page_tokens: usize,
    /// Key-value heads held here.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// What numbers are kept as.
    pub format: KvFormat,
}

/// Keys and values of past tokens, in pages.
///
/// For each page, layer and head there is one run of keys, `head_dim × page_tokens` (so that one
/// vector holds the same dimension of neighbouring positions and scores need no sums across
/// lanes), and one of values, `page_tokens × head_dim`. The inner dimension of both is padded to
/// 16 elements so that kernels read whole vectors. Memory comes zeroed from the system, in huge pages where it has them,
/// and is not touched before it is used, so pages never written cost none: all layers of a page are neighbours because a
/// position is written in all of them.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    token_stride: usize,
    head_stride: usize,
    store: Store,
}

#[derive(Debug)]
enum Store {
    /// Bits of half-precision numbers.
    F16(Zeroed<u16>),
    /// Integers, and what one of them counts: for each run the scales of its keys, then of its values, `token_stride` of both.
    Q8(Zeroed<i8>, Zeroed<f32>),
}

/// The system refuses the memory of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system refuses {size_mib} MiB for a KV cache; ask for fewer or shorter sequences")]
pub struct KvCacheError {
    /// What was asked for.
    pub size_mib: u64,
}

/// Lanes of the widest vector.
pub(crate) const ALIGN: usize = 16;

impl KvCache {
    /// Reserves a cache.
    ///
    /// # Errors
    /// [`KvCacheError`] when the system refuses the memory.
    pub fn new(shape: KvShape) -> Result<Self, KvCacheError> {
        let token_stride = shape.page_tokens.div_ceil(ALIGN).saturating_mul(ALIGN);
        let head_stride = shape.head_dim.div_ceil(ALIGN).saturating_mul(ALIGN);
        let product = |of: &[usize]| {
            of.iter()
                .fold(1_u128, |product, &n| product.saturating_mul(n as u128))
        };
        let runs = product(&[shape.layers, shape.pages, shape.kv_heads]);
        let run = product(&[shape.head_dim, token_stride])
            .saturating_add(product(&[shape.page_tokens, head_stride]));
        let numbers = runs.saturating_mul(run);
        let scales = runs.saturating_mul(product(&[2, token_stride]));
        let (store, bytes) = match shape.format {
            KvFormat::F16 => (
                Zeroed::new(numbers).map(Store::F16),
                numbers.saturating_mul(size_of::<u16>() as u128),
            ),
            KvFormat::Q8 => (
                Zeroed::new(numbers)
                    .and_then(|numbers| Some(Store::Q8(numbers, Zeroed::new(scales)?))),
                numbers.saturating_add(scales.saturating_mul(size_of::<f32>() as u128)),
            ),
        };
        Ok(Self {
            shape,
            token_stride,
            head_stride,
            store: store.ok_or(KvCacheError {
                size_mib: u64::try_from(bytes >> 20).unwrap_or(u64::MAX),
            })?,
        })
    }

    /// Returns its dimensions.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Returns the memory it takes once every page is in use.
    pub fn bytes(&self) -> usize {
        match &self.store {
            Store::F16(numbers) => size_of_val(&numbers[..]),
            Store::Q8(numbers, scales) => size_of_val(&numbers[..]) + size_of_val(&scales[..]),
        }
    }

    /// Writes the keys and values of consecutive positions from `start` on, each
    /// `tokens × kv_heads × head_dim`. Position `p` lives in `pages[p / page_tokens]`.
    ///
    /// In half precision, numbers beyond its range become infinite. Among integers, one number that is not finite
    /// leaves none finite in its key or value.
    ///
    /// # Panics
    /// If the shapes differ or a position has no page.
    pub fn write(&mut self, layer: usize, pages: &[u32], start: u32, k: &[f32], v: &[f32]) {
        let KvShape {
            page_tokens,
            kv_heads,
            head_dim,
            ..
        } = self.shape;
        assert_eq!(k.len(), v.len(), "as many keys as values");
        assert_eq!(k.len() % (kv_heads * head_dim), 0, "whole tokens");
        let rows = k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim));
        for (i, (key, value)) in rows.enumerate() {
            let (token, head) = (i / kv_heads, i % kv_heads);
            let position = start as usize + token;
            let run = self.run(layer, pages[position / page_tokens], head);
            let place = Place {
                numbers: self.numbers_of(run),
                slot: position % page_tokens,
                strides: [self.token_stride, self.head_stride],
            };
            match &mut self.store {
                Store::F16(numbers) => {
                    let encode = |row: &[f32], to: &mut [u16]| {
                        to.reinterpret_cast_mut::<f16>().convert_from_f32_slice(row);
                    };
                    place.put(numbers, [key, value], [encode; 2]);
                }
                Store::Q8(numbers, scales) => {
                    let units = [key, value].map(|row| largest(row) / 127.0);
                    place.put(numbers, [key, value], units.map(count));
                    let scales = &mut scales[2 * run * self.token_stride..];
                    scales[place.slot] = units[0];
                    scales[self.token_stride + place.slot] = units[1];
                }
            }
        }
    }

    /// Returns what is kept.
    pub(crate) fn kept(&self) -> Kept<'_> {
        match &self.store {
            Store::F16(numbers) => Kept::F16(Numbers {
                cache: self,
                numbers,
                scales: None,
            }),
            Store::Q8(numbers, scales) => Kept::Q8(Numbers {
                cache: self,
                numbers,
                scales: Some(scales),
            }),
        }
    }

    /// Returns the padded `page_tokens`.
    pub(crate) fn token_stride(&self) -> usize {
        self.token_stride
    }

    /// Returns the padded `head_dim`.
    pub(crate) fn head_stride(&self) -> usize {
        self.head_stride
    }

    /// Returns which run a head in a page is.
    #[inline(always)]
    fn run(&self, layer: usize, page: u32, head: usize) -> usize {
        let KvShape {
            layers,
            pages,
            kv_heads,
            ..
        } = self.shape;
        let page = page as usize;
        assert!(layer < layers && page < pages && head < kv_heads);
        (page * layers + layer) * kv_heads + head
    }

    #[inline(always)]
    fn numbers_of(&self, run: usize) -> Range<usize> {
        let keys = self.shape.head_dim * self.token_stride;
        let len = keys + self.shape.page_tokens * self.head_stride;
        run * len..(run + 1) * len
    }
}

/// The contents of a cache, by format.
pub(crate) enum Kept<'a> {
    F16(Numbers<'a, u16>),
    Q8(Numbers<'a, i8>),
}

/// The contents of a cache in one format.
#[derive(Clone, Copy)]
pub(crate) struct Numbers<'a, E> {
    pub(crate) cache: &'a KvCache,
    numbers: &'a [E],
    scales: Option<&'a [f32]>,
}

impl<'a, E> Numbers<'a, E> {
    /// Returns the keys of a head in a page, `head_dim × token_stride`, and the values, `page_tokens × head_stride`.
    #[inline(always)]
    pub(crate) fn head(&self, layer: usize, page: u32, head: usize) -> (&'a [E], &'a [E]) {
        let cache = self.cache;
        let numbers = &self.numbers[cache.numbers_of(cache.run(layer, page, head))];
        numbers.split_at(cache.shape.head_dim * cache.token_stride)
    }

    /// Returns what a number counts in the key and in the value of each position, `token_stride` of both, where that differs.
    #[inline(always)]
    pub(crate) fn scales(
        &self,
        layer: usize,
        page: u32,
        head: usize,
    ) -> Option<(&'a [f32], &'a [f32])> {
        let stride = self.cache.token_stride;
        self.scales.map(|scales| {
            let run = self.cache.run(layer, page, head);
            scales[2 * run * stride..][..2 * stride].split_at(stride)
        })
    }
}

/// Where the key and the value of a position lie.
struct Place {
    /// Those of the page and head.
    numbers: Range<usize>,
    slot: usize,
    /// Of keys and of values.
    strides: [usize; 2],
}

impl Place {
    fn put<E: Copy + Default>(
        &self,
        all: &mut [E],
        rows: [&[f32]; 2],
        encode: [impl Fn(&[f32], &mut [E]); 2],
    ) {
        let [key, value] = rows;
        let [token_stride, head_stride] = self.strides;
        let [encode_key, encode_value] = encode;
        let (keys, values) = all[self.numbers.clone()].split_at_mut(key.len() * token_stride);
        let mut columns = keys.chunks_exact_mut(token_stride);
        for key in key.chunks(ENCODED_AT_ONCE) {
            let mut codes = [E::default(); ENCODED_AT_ONCE];
            let codes = &mut codes[..key.len()];
            encode_key(key, codes);
            for (code, column) in codes.iter().zip(&mut columns) {
                column[self.slot] = *code;
            }
        }
        encode_value(value, &mut values[self.slot * head_stride..][..value.len()]);
    }
}

/// Numbers of a key, of which each goes to another line of memory.
const ENCODED_AT_ONCE: usize = 64;

/// Returns the largest magnitude, or a NaN where there is one.
fn largest(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
    row.iter().fold(0.0, |largest, x| larger(largest, x.abs()))
}

/// Returns what says how many whole units numbers are; none if the unit is 0 or not finite.
fn count(unit: f32) -> impl Fn(&[f32], &mut [i8]) {
    move |row, to| {
        for (to, x) in to.iter_mut().zip(row) {
            let units = x / unit;
            // Conversion drops the fraction, saturates, and makes 0 of a NaN.
            *to = (units + 0.5_f32.copysign(units)) as i8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cache(head_dim: usize) -> KvCache {
        let shape = KvShape {
            layers: 2,
            pages: 2,
            page_tokens: 3,
            kv_heads: 1,
            head_dim,
            format: KvFormat::Q8,
        };
        KvCache::new(shape).expect("memory")
    }

    /// Returns the key and the value kept for position 1 of layer 1 in page 1, after they are written.
    fn round_trip(row: &[f32]) -> [Vec<f32>; 2] {
        let mut cache = cache(row.len());
        cache.write(1, &[1], 1, row, row);
        let (stride, head_stride) = (cache.token_stride(), cache.head_stride());
        let Kept::Q8(numbers) = cache.kept() else {
            panic!("asked for integers");
        };
        let (keys, values) = numbers.head(1, 1, 0);
        let (key_units, value_units) = numbers.scales(1, 1, 0).expect("integers count units");
        let key = keys.iter().skip(1).step_by(stride);
        let value = &values[head_stride..][..row.len()];
        [
            key.map(|&x| f32::from(x) * key_units[1]).collect(),
            value
                .iter()
                .map(|&x| f32::from(x) * value_units[1])
                .collect(),
        ]
    }

    proptest! {
        #[test]
        fn integers_are_as_near_as_promised(row in prop::collection::vec(-1e3_f32..1e3, 1..80), by in -30..30_i32) {
            let row: Vec<f32> = row.iter().map(|x| x * 2_f32.powi(by)).collect();
            for kept in round_trip(&row) {
                for (kept, x) in kept.iter().zip(&row) {
                    prop_assert!((kept - x).abs() <= largest(&row) / 253.99, "{kept} for {x}");
                }
            }
        }
    }

    #[test]
    fn what_has_no_unit_is_zero_or_not_finite() {
        for kept in round_trip(&[0.0, -0.0]) {
            assert_eq!(kept, [0.0; 2]);
        }
        for kept in round_trip(&[1e-45, -1e-44]) {
            assert!(kept.iter().all(|x| x.abs() <= 2e-44), "{kept:?}");
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for kept in round_trip(&[1.0, bad, -2.0]) {
                assert!(kept.iter().all(|x| !x.is_finite()), "{kept:?}");
            }
        }
    }

    #[test]
    fn integers_take_half_the_memory_and_their_scales() {
        let cache = cache(64);
        let numbers = 64 * cache.token_stride() + 3 * 64;
        assert_eq!(cache.bytes(), 2 * 2 * (numbers + 2 * 16 * 4));
    }
}
