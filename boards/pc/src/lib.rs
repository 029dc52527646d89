//! strandline-pc
