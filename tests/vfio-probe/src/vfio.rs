//! VFIO's container, as far as it is measured (Linux, `include/uapi/linux/vfio.h`).
#![allow(unsafe_code)]

use anyhow::{Context, Result, ensure};
use std::ffi::{c_int, c_ulong, c_void};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd};

/// `_IO(VFIO_TYPE, VFIO_BASE)`.
pub(crate) const BASE: c_ulong = (b';' as c_ulong) << 8 | 100;
const GET_API_VERSION: c_ulong = BASE;
const SET_IOMMU: c_ulong = BASE + 2;
const GROUP_SET_CONTAINER: c_ulong = BASE + 4;
const GROUP_GET_DEVICE_FD: c_ulong = BASE + 6;
const MAP_DMA: c_ulong = BASE + 13;
const UNMAP_DMA: c_ulong = BASE + 14;
const DIRTY_PAGES: c_ulong = BASE + 17;

/// VFIO_TYPE1v2_IOMMU.
const TYPE1V2: c_ulong = 3;
/// VFIO_DMA_MAP_FLAG_READ and _WRITE.
const MAP_READ: u32 = 1 << 0;
const MAP_WRITE: u32 = 1 << 1;
/// VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP.
const UNMAP_GET_DIRTY_BITMAP: u32 = 1 << 0;
/// VFIO_IOMMU_DIRTY_PAGES_FLAG_START and _GET_BITMAP.
const DIRTY_START: u32 = 1 << 0;
const DIRTY_GET_BITMAP: u32 = 1 << 2;

/// The only page size asked for.
pub(crate) const PAGE: u64 = 4096;

/// `struct vfio_iommu_type1_dma_map`.
#[repr(C)]
struct Map {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

/// `struct vfio_bitmap`.
#[repr(C)]
struct Bitmap {
    pgsize: u64,
    size: u64,
    data: *mut u64,
}

/// `struct vfio_iommu_type1_dma_unmap` with a bitmap behind it.
#[repr(C)]
struct Unmap {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
    bitmap: Bitmap,
}

/// `struct vfio_iommu_type1_dirty_bitmap` with `..._dirty_bitmap_get` behind it.
#[repr(C)]
struct DirtyGet {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
    bitmap: Bitmap,
}

/// A container with one group and dirty tracking on. The device stays open as long
/// as it exists.
pub(crate) struct Container {
    container: File,
    _group: File,
    device: File,
}

impl Container {
    /// Opens the group and its device.
    pub(crate) fn open(group: u32) -> Result<Self> {
        let open = |path: &str| {
            let file = OpenOptions::new().read(true).write(true).open(path);
            file.with_context(|| format!("cannot open {path}"))
        };
        let container = open("/dev/vfio/vfio")?;
        let group = open(&format!("/dev/vfio/{group}"))?;
        let fd: c_int = container.as_raw_fd();
        call(
            &group,
            GROUP_SET_CONTAINER,
            (&raw const fd).cast_mut().cast(),
        )?;
        call(&container, SET_IOMMU, TYPE1V2 as *mut c_void)?;
        let name = device_name()?;
        let device = call(&group, GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut().cast())?;
        // SAFETY: a descriptor that the kernel has just made for us.
        let device = unsafe { File::from_raw_fd(device) };
        let mut start = [8u32, DIRTY_START];
        call(&container, DIRTY_PAGES, start.as_mut_ptr().cast())?;
        Ok(Self {
            container,
            _group: group,
            device,
        })
    }

    /// The device.
    pub(crate) fn device(&self) -> &File {
        &self.device
    }

    /// The cheapest call there is.
    pub(crate) fn nothing(&self) -> Result<()> {
        call(&self.container, GET_API_VERSION, std::ptr::null_mut())?;
        Ok(())
    }

    /// Maps `bytes` of this process from `address` on, for reads and, if `writable`,
    /// writes.
    pub(crate) fn map(&self, iova: u64, address: u64, bytes: u64, writable: bool) -> Result<()> {
        let mut map = Map {
            argsz: size_of::<Map>() as u32,
            flags: if writable {
                MAP_READ | MAP_WRITE
            } else {
                MAP_READ
            },
            vaddr: address,
            iova,
            size: bytes,
        };
        call(&self.container, MAP_DMA, (&raw mut map).cast()).context("MAP_DMA")?;
        Ok(())
    }

    /// Unmaps what lies in the range and has the dirty bitmap filled.
    pub(crate) fn unmap(&self, iova: u64, bytes: u64, bitmap: &mut [u64]) -> Result<()> {
        let mut unmap = Unmap {
            argsz: size_of::<Unmap>() as u32,
            flags: UNMAP_GET_DIRTY_BITMAP,
            iova,
            size: bytes,
            bitmap: for_pages(bytes, bitmap),
        };
        call(&self.container, UNMAP_DMA, (&raw mut unmap).cast()).context("UNMAP_DMA")?;
        ensure!(unmap.size == bytes, "only {} bytes were mapped", unmap.size);
        Ok(())
    }

    /// Has the dirty bitmap of a mapping filled.
    pub(crate) fn dirty(&self, iova: u64, bytes: u64, bitmap: &mut [u64]) -> Result<()> {
        let mut get = DirtyGet {
            argsz: size_of::<DirtyGet>() as u32,
            flags: DIRTY_GET_BITMAP,
            iova,
            size: bytes,
            bitmap: for_pages(bytes, bitmap),
        };
        call(&self.container, DIRTY_PAGES, (&raw mut get).cast()).context("DIRTY_PAGES")?;
        Ok(())
    }
}

/// The part of the bitmap that a range needs: the kernel wants no more.
fn for_pages(bytes: u64, bitmap: &mut [u64]) -> Bitmap {
    let words = (bytes / PAGE).div_ceil(64);
    assert!(words <= bitmap.len() as u64, "the bitmap is too small");
    Bitmap {
        pgsize: PAGE,
        size: words * 8,
        data: bitmap.as_mut_ptr(),
    }
}

/// The name of the one device that vfio-pci has.
fn device_name() -> Result<std::ffi::CString> {
    for entry in std::fs::read_dir("/sys/bus/pci/drivers/vfio-pci")? {
        let name = entry?.file_name().into_encoded_bytes();
        if name.starts_with(b"0000:") {
            return Ok(std::ffi::CString::new(name)?);
        }
    }
    anyhow::bail!("vfio-pci has taken no device")
}

#[inline(never)]
pub(crate) fn call(file: &File, request: c_ulong, argument: *mut c_void) -> Result<c_int> {
    // SAFETY: the structures above are those of the requests, with their sizes in
    // them, and a bitmap that is as long as it says (see `for_pages`).
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    let error = std::io::Error::last_os_error();
    ensure!(result >= 0, "request {request:#x}: {error}");
    Ok(result)
}
