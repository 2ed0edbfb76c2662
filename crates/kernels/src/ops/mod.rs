//! The kernels, one operation a module, each written once over `arch::Simd`.

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod linear;
pub(crate) mod rotary;
