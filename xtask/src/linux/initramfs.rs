//! The initramfs of the stock guest: busybox, the kernel's NVMe driver, one program
//! that loads the disk, and one script.

use super::{Init, Sources};
use crate::cpio::Archive;
use crate::debian::Kernel;
use crate::shell::READY;

/// How often the script ticks, once a second, if there is no disk to wait for.
const IDLE_TICKS: u32 = 8;

/// Messages of the kernel of level 3, error, or worse.
const WORST: &str = "^<[0-3]>";
/// What no message of the kernel should have in it, beside those.
const BAD: &str = "nvme.*(I/O.*timeout|reset|abort|is down)|unstable|stall|lockup|hung";

/// The NVMe driver, each module after those it depends on. Some kernels have one or
/// the other built in.
const MODULES: [&str; 10] = [
    "crypto/crct10dif_common.ko",
    "crypto/crct10dif_generic.ko",
    "lib/crc-t10dif.ko",
    "lib/crc64.ko",
    "crypto/crc64_rocksoft_generic.ko",
    "lib/crc64-rocksoft.ko",
    "block/t10-pi.ko",
    "drivers/nvme/common/nvme-keyring.ko",
    "drivers/nvme/common/nvme-auth.ko",
    "drivers/nvme/host/nvme-core.ko",
];
/// The driver itself, whose name says which module is which in the guest.
const DRIVER: &str = "drivers/nvme/host/nvme.ko";

/// Builds it around a static busybox and the static program `load`, with modules of
/// `kernel`, which those of the guest's IOMMU are among.
pub(super) fn build(
    sources: &Sources,
    busybox: &[u8],
    load: &[u8],
    kernel: Option<&Kernel>,
) -> Vec<u8> {
    let mut archive = Archive::default();
    for name in ["bin", "dev", "proc", "sys", "modules"] {
        archive.directory(name);
    }
    archive.console("dev/console");
    archive.file("bin/busybox", busybox);
    archive.file("bin/load", load);
    // The IOMMU first: a device that has its driver before is not behind it.
    let modules = sources
        .viommu
        .modules()
        .iter()
        .chain(&MODULES)
        .chain([&DRIVER]);
    for (order, path) in modules.enumerate() {
        if let Some(module) = kernel.and_then(|kernel| kernel.module(path)) {
            archive.file(&format!("modules/{order:02}.ko"), &module);
        }
    }
    let script = match sources.init {
        Init::Account => script(),
        Init::Shell => shell_script(),
    };
    archive.file("init", script.as_bytes());
    archive.finish()
}

/// Each line for us starts with `linux: `. The kernel hands on what it does not know
/// of its command line: `operations` and `progress` (see [`super::Load`]).
///
/// Errors are kernel messages of level 3 or worse, and at any level what a disk, a
/// clock or a processor says that was left waiting: those of the boot name what this
/// platform lacks, and those that come later are failures. The machine is turned off at
/// the end, and the disk before, so that there is nothing to wait for then.
///
/// Of several CPUs each has the kernel ask all of them where they are, the others by an
/// NMI; what a CPU answers can have any word in it, so only the level counts then.
fn script() -> String {
    format!(
        "#!/bin/busybox sh
/bin/busybox --install /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
uptime() {{ read up idle < /proc/uptime; echo $up; }}
clocksource() {{ cat /sys/devices/system/clocksource/clocksource0/current_clocksource; }}
echo \"linux: init uptime=$(uptime) cycles=$(load cycles) clocksource=$(clocksource) cpus=$(nproc) kernel=$(uname -r)\"
errors() {{ dmesg -r -c | grep -iE \"$2\" | sed \"s/^/linux: $1 /\"; }}
errors boot-error '{WORST}|{BAD}'
if grep -q 0x010802 /sys/bus/pci/devices/*/class; then
    for module in /modules/*; do insmod $module; done
    tries=0
    while [ ! -b /dev/nvme0n1 ] && [ $tries -lt 20 ]; do sleep 0.1; tries=$((tries + 1)); done
    load=yes
    (load /dev/nvme0n1 ${{operations:-1000}} ${{progress:-100}}; touch /done) &
fi
n=0
works() {{ if [ -n \"$load\" ]; then [ ! -e /done ]; else [ $n -lt {IDLE_TICKS} ]; fi; }}
while works; do
    sleep 1
    n=$((n + 1))
    echo \"linux: tick uptime=$(uptime) n=$n\"
done
wait
remapped=$(grep -c IR- /proc/interrupts)
rmmod nvme 2>/dev/null
errors error '{WORST}|{BAD}'
cpu=0
while [ $(nproc) -gt 1 ] && [ $cpu -lt $(nproc) ]; do
    taskset $((1 << cpu)) sh -c 'echo l > /proc/sysrq-trigger'
    cpu=$((cpu + 1))
done
answers=$(dmesg | grep -c 'NMI backtrace for cpu')
errors error '{WORST}'
echo \"linux: end clocksource=$(clocksource) ticks=$n remapped=$remapped answers=$answers uptime=$(uptime)\"
poweroff -f
"
    )
}

/// A shell with job control, which the console has to be the terminal of.
fn shell_script() -> String {
    format!(
        "#!/bin/busybox sh
/bin/busybox --install /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo \"{READY}\"
setsid sh -c 'exec sh -i </dev/ttyS0 >/dev/ttyS0 2>&1'
poweroff -f
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_is_a_script_that_turns_the_machine_off() {
        for script in [script(), shell_script()] {
            assert!(script.starts_with("#!/bin/busybox sh\n"));
            assert!(script.ends_with("\npoweroff -f\n"));
        }
    }
}
