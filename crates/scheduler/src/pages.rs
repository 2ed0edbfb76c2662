//! The pages of the KV cache that nobody holds.

/// A stack of free pages: the page freed last is taken first, while it is still warm.
#[derive(Debug)]
pub(crate) struct FreePages {
    free: Vec<u32>,
    page_tokens: u32,
}

impl FreePages {
    pub(crate) fn new(pages: u32, page_tokens: u32) -> Self {
        Self {
            free: (0..pages).rev().collect(),
            page_tokens,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.free.len()
    }

    /// Takes pages for `tokens` positions, in the order of the positions; `None` if there are too few.
    pub(crate) fn take(&mut self, tokens: u64) -> Option<Vec<u32>> {
        let wanted = usize::try_from(tokens.div_ceil(u64::from(self.page_tokens))).ok()?;
        let rest = self.free.len().checked_sub(wanted)?;
        let mut pages = self.free.split_off(rest);
        pages.reverse();
        Some(pages)
    }

    pub(crate) fn give_back(&mut self, pages: Vec<u32>) {
        self.free.extend(pages.into_iter().rev());
    }
}
