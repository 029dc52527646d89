//! Builds Strandline, runs it in QEMU and judges the runs.
//!
//! The binary `cargo xtask` and the whole-machine tests in `tests/scenarios` are
//! both thin layers over this library:
//!
//! ```text
//!  image, images -> the ELF files     run -> two QEMU processes, watched
//!  qemu, gdb     -> the programs      events, ledger -> what they said (observation)
//!                                     verdict -> whether that is a success
//!                                     report  -> the table and the JSON
//!  linux         -> a stock kernel as the guest (debian -> its packages)
//!  bench         -> what operations cost, here and on Linux
//!  shell         -> a person at the console of a guest
//! ```

pub mod bench;
pub mod cpio;
pub mod debian;
pub mod events;
pub mod exits;
pub mod gdb;
pub mod image;
pub mod images;
pub mod iommu;
pub mod ledger;
pub mod linux;
pub mod machine;
pub mod observation;
pub mod program;
pub mod progress;
pub mod qemu;
pub mod report;
pub mod rules;
pub mod run;
pub mod sabotage;
pub mod shell;
pub mod site;
mod system;
pub mod tail;
pub mod units;
pub mod verdict;
pub mod viommu;
pub mod workspace;
