//! The registers of a controller (NVM Express Base Specification 2.0, section
//! 3.1.3 "Controller Properties"; doorbells: NVMe over PCIe Transport
//! Specification 1.0, section 3.1.2).

/// CAP, 64 bits: see [`capabilities`].
pub(super) const CAP: u64 = 0x00;
/// CC, 32 bits: see [`configuration`].
pub(super) const CC: u64 = 0x14;
/// CSTS, 32 bits: see [`status`].
pub(super) const CSTS: u64 = 0x1c;
/// AQA, 32 bits: entries of the admin submission queue in bits 11:0, of the admin
/// completion queue in bits 27:16, each less one.
pub(super) const AQA: u64 = 0x24;
/// ASQ, 64 bits: where the admin submission queue is.
pub(super) const ASQ: u64 = 0x28;
/// ACQ, 64 bits: where the admin completion queue is.
pub(super) const ACQ: u64 = 0x30;
/// CMBLOC and CMBSZ, 32 bits each: the controller memory buffer, which a guest is
/// not shown: what lies in it would be lost on the way.
pub(super) const CMBLOC: u64 = 0x38;
/// The register behind CMBSZ.
pub(super) const AFTER_CMBSZ: u64 = 0x40;
/// The first doorbell. For queue `q` with stride `s`: its submission queue's tail
/// at `DOORBELLS + 2 q s`, its completion queue's head `s` bytes further.
pub(super) const DOORBELLS: u64 = 0x1000;

/// Fields of CAP.
pub(super) mod capabilities {
    /// MQES: the most entries of a queue, less one.
    pub(in super::super) const fn max_entries(cap: u64) -> u32 {
        (cap & 0xffff) as u32 + 1
    }
    /// DSTRD: bytes from one doorbell to the next.
    pub(in super::super) const fn doorbell_stride(cap: u64) -> u64 {
        4 << (cap >> 32 & 0xf)
    }
}

/// Fields of CC.
pub(super) mod configuration {
    /// EN: the controller works.
    pub(in super::super) const ENABLE: u32 = 1;
}

/// Fields of CSTS.
pub(super) mod status {
    /// RDY: it follows CC.EN.
    pub(in super::super) const READY: u32 = 1;
    /// CFS: the controller failed.
    pub(in super::super) const FATAL: u32 = 2;
}
