//! The registers of a controller (NVM Express Base Specification 2.0, section
//! 3.1.3 "Controller Properties").

/// CMBLOC and CMBSZ, 32 bits each: the controller memory buffer, which a guest is
/// not shown: what lies in it would be lost on the way.
pub(super) const CMBLOC: u64 = 0x38;
/// The register behind CMBSZ.
pub(super) const AFTER_CMBSZ: u64 = 0x40;
