//! Cells as their front sees them.

mod losses;
mod played;
mod serving;
mod support;
