//! Cells as their front sees them.

mod losses;
mod serving;
mod support;
