//! The machine's other CPUs: which there are, and starting them.
//!
//! Intel SDM volume 3, section 9.4 (MP initialization): INIT, 10 ms, and two start-up
//! interrupts 200 us apart, which name a page below 1 MiB. The code there takes the
//! CPU from real mode to the image; see `trampoline`.

use crate::acpi::{AcpiError, Signature, Tables};
use crate::physical::ReadPhys;
use heapless::Vec;

/// The most CPUs that are used, the boot CPU included: as many have stacks.
pub const MAX_CPUS: usize = 2;

/// The multiple APIC description.
const MADT: Signature = Signature(*b"APIC");
/// The longest MADT that is read.
const MAX_MADT: usize = 4096;
/// Where its entries begin: behind the header, the APICs' address and flags.
const FIRST_ENTRY: usize = 44;
/// Of an entry's flags: the CPU can be used.
const ENABLED: u8 = 1;

/// Why no other CPU was started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartError {
    /// A table.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The machine has one CPU.
    #[error("the machine has one CPU, and the guest is to have two: give it another one")]
    NoOther,
    /// The page that the CPU starts in is not memory.
    #[error("there is no memory at {0:#x} for another CPU to start in")]
    NoLowMemory(u64),
    /// The CPU did not come.
    #[error("CPU with APIC id {0} does not start")]
    Silent(u32),
}

/// The APIC ids of the CPUs that can be used, in the order of the MADT (ACPI 6.5,
/// section 5.2.12), as far as there is room.
pub fn apic_ids<M: ReadPhys>(tables: &Tables<'_, M>) -> Result<Vec<u32, 16>, AcpiError> {
    let mut bytes = [0; MAX_MADT];
    let madt = tables.copy(MADT, &mut bytes)?;
    let mut rest = madt.get(FIRST_ENTRY..).unwrap_or_default();
    let mut ids = Vec::new();
    while let &[kind, length, ..] = rest {
        let Some((entry, behind)) = rest.split_at_checked(length.max(2).into()) else {
            return Err(AcpiError::Length(MADT));
        };
        let id = match (kind, entry) {
            // A local APIC.
            (0, &[_, _, _, id, flags, ..]) if flags & ENABLED != 0 => Some(u32::from(id)),
            // A local x2APIC.
            (9, &[_, _, _, _, a, b, c, d, flags, ..]) if flags & ENABLED != 0 => {
                Some(u32::from_le_bytes([a, b, c, d]))
            }
            _ => None,
        };
        if let Some(id) = id {
            // Those without room are not used.
            let _ = ids.push(id);
        }
        rest = behind;
    }
    Ok(ids)
}

#[cfg(strandline_image)]
pub use trampoline::start;

#[cfg(strandline_image)]
#[path = "trampoline.rs"]
mod trampoline;
