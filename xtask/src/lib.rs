//! xtask
pub mod image;
