//! The machines' remapping units, as options.

use clap::ValueEnum;

/// The kind of remapping unit in both machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Iommu {
    /// Intel VT-d in legacy mode
    #[default]
    Vtd,
    /// Intel VT-d in scalable mode, with first-stage tables
    VtdFs,
    /// AMD-Vi
    Amd,
}

impl Iommu {
    /// QEMU's device, with its properties.
    pub fn device(self) -> &'static str {
        match self {
            Self::Vtd => "intel-iommu,intremap=on",
            // First-stage tables have four levels, so need all 48 address bits.
            Self::VtdFs => "intel-iommu,intremap=on,x-scalable-mode=on,x-flts=on,aw-bits=48",
            // Without pt=off QEMU 10.0 leaves devices untranslated.
            Self::Amd => "amd-iommu,pt=off,intremap=on",
        }
    }

    /// What the guest has to be told. QEMU 10.0's AMD-Vi unit never writes its
    /// event log, so nobody can tell the guest of the transfers that were refused.
    pub fn guest_options(self) -> &'static [&'static str] {
        match self {
            Self::Vtd | Self::VtdFs => &[],
            Self::Amd => &["faults=unreported"],
        }
    }

    /// The name on command lines.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}
