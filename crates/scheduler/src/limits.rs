//! The bounds a scheduler works within.

/// Every bound of a cell's queue, batch and cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that may wait beside those that have a place.
    pub waiting_max: usize,
    /// Requests that are worked on at once.
    pub running_max: usize,
    /// Tokens in one step.
    pub batch_tokens_max: usize,
    /// Pages of the KV cache.
    pub kv_pages: u32,
    /// Positions in a page.
    pub page_tokens: u32,
    /// Longest prompt and reply together, in tokens.
    pub context: u32,
}

impl Limits {
    /// Returns how many requests may be open, waiting or worked on.
    #[must_use]
    pub fn open_max(&self) -> usize {
        self.waiting_max.saturating_add(self.running_max)
    }

    /// Returns the longest sequence that fits both the context and the cache, in tokens.
    #[must_use]
    pub fn sequence_max(&self) -> u64 {
        u64::from(self.context).min(u64::from(self.kv_pages) * u64::from(self.page_tokens))
    }
}
