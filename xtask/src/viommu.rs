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

    /// What Debian's stock kernel needs to drive it that is not built in: modules by
    /// their paths below `kernel`, each after those it depends on.
    pub fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Vtd => &[],
            Self::Virtio => &[
                "drivers/virtio/virtio_mmio.ko",
                "drivers/iommu/virtio-iommu.ko",
            ],
        }
    }
}
