//! What an init process has to do: mounts, modules, the device, and the end.
#![allow(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::ptr;

/// Where the initial file system has the modules, named so that they sort in the
/// order in which they depend on each other.
const MODULES: &str = "/modules";
/// QEMU's `edu`.
const VENDOR: &str = "0x1234";
const DEVICE: &str = "0x11e8";

/// Mounts what the rest needs.
pub(crate) fn mount() -> Result<()> {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        let [name, place] = [kind, at].map(CString::new);
        let (name, place) = (name?, place?);
        // SAFETY: three strings that end in zero, and no data.
        let result =
            unsafe { libc::mount(name.as_ptr(), place.as_ptr(), name.as_ptr(), 0, ptr::null()) };
        // Some kernels mount /dev before they start init.
        let error = std::io::Error::last_os_error();
        if result != 0 && error.raw_os_error() != Some(libc::EBUSY) {
            bail!("cannot mount {at}: {error}");
        }
    }
    Ok(())
}

/// Loads every module.
pub(crate) fn load_modules() -> Result<()> {
    let mut modules: Vec<PathBuf> = fs::read_dir(MODULES)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    modules.sort();
    for path in modules {
        let file = fs::File::open(&path)?;
        // SAFETY: a file descriptor and an empty string; the call reads no other
        // memory of this process.
        let result =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        let error = std::io::Error::last_os_error();
        ensure!(result == 0, "cannot load {}: {error}", path.display());
    }
    Ok(())
}

/// Lets VFIO work without interrupt remapping, which the machine does not have.
pub(crate) fn allow_unsafe_interrupts() -> Result<()> {
    const FILE: &str = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    fs::write(FILE, "Y").context(FILE)
}

/// Gives the device to vfio-pci and returns the number of its group.
pub(crate) fn bind_device() -> Result<u32> {
    for entry in fs::read_dir("/sys/bus/pci/devices")? {
        let path = entry?.path();
        let is = |file: &str, value: &str| {
            fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim() == value)
        };
        if is("vendor", VENDOR) && is("device", DEVICE) {
            let id = format!("{} {}", &VENDOR[2..], &DEVICE[2..]);
            fs::write("/sys/bus/pci/drivers/vfio-pci/new_id", id)?;
            return group_of(&path);
        }
    }
    bail!("there is no edu device")
}

fn group_of(device: &Path) -> Result<u32> {
    let link = fs::read_link(device.join("iommu_group"))
        .context("the device has no IOMMU group: is the IOMMU on?")?;
    let name = link.file_name().context("an IOMMU group without a name")?;
    Ok(name.to_string_lossy().parse()?)
}

/// Sets huge pages aside.
pub(crate) fn reserve_huge_pages(count: usize) -> Result<()> {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";
    fs::write(FILE, count.to_string())?;
    let there: usize = fs::read_to_string(FILE)?.trim().parse()?;
    ensure!(there >= count, "only {there} of {count} huge pages");
    Ok(())
}

/// Ends the machine through QEMU's debug-exit device, with the codes that the
/// images use.
pub(crate) fn exit(success: bool) -> ! {
    const PORT: u16 = 0xf4;
    let code: u32 = if success { 0x10 } else { 0x11 };
    // SAFETY: the process is root, and the port belongs to the exit device or to
    // nothing.
    unsafe {
        libc::ioperm(PORT.into(), 4, 1);
        std::arch::asm!("out dx, eax", in("dx") PORT, in("eax") code);
    }
    // Without the device: an init process that ends takes the kernel with it.
    std::process::exit(i32::from(!success))
}
