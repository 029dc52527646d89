//! `edu`, driven through vfio-pci (QEMU, `docs/specs/edu.rst`; Linux,
//! `include/uapi/linux/vfio.h`).
#![allow(unsafe_code)]

use crate::vfio::{self, PAGE};
use anyhow::{Result, ensure};
use std::ffi::c_ulong;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::Duration;

/// VFIO_DEVICE_GET_REGION_INFO.
const GET_REGION_INFO: c_ulong = vfio::BASE + 8;
/// VFIO_PCI_BAR0_REGION_INDEX and VFIO_PCI_CONFIG_REGION_INDEX.
const BAR0: u32 = 0;
const CONFIG: u32 = 7;

/// The command register in configuration space, and two bits of it: the function
/// answers memory accesses, and does DMA.
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 1 << 1 | 1 << 2;

const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
const RUN: u32 = 1 << 0;
const TO_MEMORY: u32 = 1 << 1;
/// Where the DMA engine sees the device's buffer, of one page.
const BUFFER: u32 = 0x4_0000;

/// How often a transfer is asked after, which takes 100 ms.
const LOOKS: u32 = 100;

/// `struct vfio_region_info`.
#[repr(C)]
#[derive(Default)]
struct RegionInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    size: u64,
    offset: u64,
}

/// The device behind a descriptor of vfio-pci.
pub(crate) struct Edu<'f> {
    device: &'f File,
    /// Where BAR 0 is in the file.
    registers: u64,
}

impl<'f> Edu<'f> {
    /// Lets it do DMA.
    pub(crate) fn new(device: &'f File) -> Result<Self> {
        let command = region(device, CONFIG)? + COMMAND;
        let mut value = [0; 2];
        device.read_exact_at(&mut value, command)?;
        let value = u16::from_le_bytes(value) | MEMORY_AND_MASTER;
        device.write_all_at(&value.to_le_bytes(), command)?;
        let registers = region(device, BAR0)?;
        Ok(Self { device, registers })
    }

    /// Copies its buffer to the page at `iova`.
    pub(crate) fn write_page(&self, iova: u64) -> Result<()> {
        self.transfer(BUFFER, u32::try_from(iova)?, RUN | TO_MEMORY)
    }

    /// Copies the page at `iova` to its buffer.
    pub(crate) fn read_page(&self, iova: u64) -> Result<()> {
        self.transfer(u32::try_from(iova)?, BUFFER, RUN)
    }

    fn transfer(&self, source: u32, destination: u32, command: u32) -> Result<()> {
        for (register, value) in [
            (DMA_SOURCE, source),
            (DMA_DESTINATION, destination),
            (DMA_COUNT, PAGE as u32),
            (DMA_COMMAND, command),
        ] {
            let at = self.registers + register;
            self.device.write_all_at(&value.to_le_bytes(), at)?;
        }
        for _ in 0..LOOKS {
            sleep(Duration::from_millis(10));
            let mut value = [0; 4];
            self.device
                .read_exact_at(&mut value, self.registers + DMA_COMMAND)?;
            if u32::from_le_bytes(value) & RUN == 0 {
                return Ok(());
            }
        }
        anyhow::bail!("the edu device stays busy")
    }
}

/// Where a region of the device begins in its file.
fn region(device: &File, index: u32) -> Result<u64> {
    let mut info = RegionInfo {
        argsz: size_of::<RegionInfo>() as u32,
        index,
        ..RegionInfo::default()
    };
    vfio::call(device, GET_REGION_INFO, (&raw mut info).cast())?;
    ensure!(info.size > 0, "vfio-pci has no region {index}");
    Ok(info.offset)
}
