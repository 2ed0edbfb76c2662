use std::alloc::{self, Layout};

use half::f16;

use crate::machine;

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
}

/// Keys and values of past tokens, half precision, in pages.
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
    data: Vec<u16>,
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
const ELEMENTS_PER_MIB: u128 = (1 << 20) / size_of::<u16>() as u128;

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
        let run = product(&[shape.head_dim, token_stride])
            .saturating_add(product(&[shape.page_tokens, head_stride]));
        let elements = product(&[shape.layers, shape.pages, shape.kv_heads]).saturating_mul(run);
        let data = usize::try_from(elements).ok().and_then(zeroed);
        Ok(Self {
            shape,
            token_stride,
            head_stride,
            data: data.ok_or(KvCacheError {
                size_mib: u64::try_from(elements / ELEMENTS_PER_MIB).unwrap_or(u64::MAX),
            })?,
        })
    }

    /// Returns its dimensions.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Returns the memory it takes once every page is in use.
    pub fn bytes(&self) -> usize {
        self.data.len() * 2
    }

    /// Writes the keys and values of consecutive positions from `start` on, each
    /// `tokens × kv_heads × head_dim`. Position `p` lives in `pages[p / page_tokens]`.
    ///
    /// Values beyond the range of half precision become infinite.
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
            let slot = position % page_tokens;
            let run = self.run(layer, pages[position / page_tokens], head);
            let (keys, values) = self.data[run].split_at_mut(head_dim * self.token_stride);
            for (column, &x) in keys.chunks_exact_mut(self.token_stride).zip(key) {
                column[slot] = f16::from_f32(x).to_bits();
            }
            for (to, &x) in values[slot * self.head_stride..].iter_mut().zip(value) {
                *to = f16::from_f32(x).to_bits();
            }
        }
    }

    /// Returns the keys (`head_dim × token_stride`) and values (`page_tokens × head_stride`) of a head in a page.
    pub(crate) fn head(&self, layer: usize, page: u32, head: usize) -> (&[u16], &[u16]) {
        self.data[self.run(layer, page, head)].split_at(self.shape.head_dim * self.token_stride)
    }

    /// Returns the padded `page_tokens`.
    pub(crate) fn token_stride(&self) -> usize {
        self.token_stride
    }

    /// Returns the padded `head_dim`.
    pub(crate) fn head_stride(&self) -> usize {
        self.head_stride
    }

    fn run(&self, layer: usize, page: u32, head: usize) -> std::ops::Range<usize> {
        let KvShape {
            layers,
            pages,
            page_tokens,
            kv_heads,
            head_dim,
        } = self.shape;
        let page = page as usize;
        assert!(layer < layers && page < pages && head < kv_heads);
        let len = head_dim * self.token_stride + page_tokens * self.head_stride;
        let start = ((page * layers + layer) * kv_heads + head) * len;
        start..start + len
    }
}

/// Reserves zeros that take no memory before they are used; `None` when the system refuses them.
fn zeroed(elements: usize) -> Option<Vec<u16>> {
    if elements == 0 {
        return Some(Vec::new());
    }
    let layout = Layout::array::<u16>(elements).ok()?;
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc::alloc_zeroed(layout) };
    if start.is_null() {
        return None;
    }
    machine::advise_huge_pages(start, layout.size());
    // SAFETY:
    // - `start` comes from the global allocator, with the layout of a vector of this capacity
    // - every element is initialised: all zeros are a number
    Some(unsafe { Vec::from_raw_parts(start.cast(), elements, elements) })
}
