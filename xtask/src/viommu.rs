//! The guest's IOMMU, as an option.

use clap::ValueEnum;

/// The kind of IOMMU that the guest is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Viommu {
    /// Intel VT-d in caching mode
    #[default]
    Vtd,
    /// virtio-iommu
    Virtio,
}

impl Viommu {
    /// The name on command lines, the hypervisor's too.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}
