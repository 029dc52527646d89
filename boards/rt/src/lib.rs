//! strandline-rt
