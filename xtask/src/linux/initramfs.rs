//! The initramfs of the stock guest: busybox and one script.

use crate::cpio::Archive;

/// How often the script ticks, once a second.
pub(super) const TICKS: u32 = 8;

/// Builds it around a static busybox.
pub(super) fn build(busybox: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    for name in ["bin", "dev", "proc", "sys"] {
        archive.directory(name);
    }
    archive.console("dev/console");
    archive.file("bin/busybox", busybox);
    archive.file("init", script().as_bytes());
    archive.finish()
}

/// Each line for us starts with `linux: `. Errors are kernel messages of level 3
/// or worse: those of the boot name what this platform lacks, such as an RTC, and
/// those that come later are failures. The write to port F4h ends the machine: 10h is content.
fn script() -> String {
    format!(
        "#!/bin/busybox sh
/bin/busybox --install /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
uptime() {{ read up idle < /proc/uptime; echo $up; }}
clocksource() {{ cat /sys/devices/system/clocksource/clocksource0/current_clocksource; }}
echo \"linux: init uptime=$(uptime) clocksource=$(clocksource)\"
errors() {{ dmesg -r -c | grep '^<[0-3]>' | sed \"s/^/linux: $1 /\"; }}
errors boot-error
n=0
while [ $n -lt {TICKS} ]; do
    sleep 1
    n=$((n + 1))
    echo \"linux: tick n=$n uptime=$(uptime)\"
done
errors error
echo \"linux: end uptime=$(uptime) clocksource=$(clocksource)\"
printf '\\020' | dd of=/dev/port bs=1 seek=244 2>/dev/null
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_is_a_script_that_ends_the_machine_content() {
        assert!(script().starts_with("#!/bin/busybox sh\n"));
        assert!(script().contains("printf '\\020' | dd of=/dev/port bs=1 seek=244"));
    }
}
