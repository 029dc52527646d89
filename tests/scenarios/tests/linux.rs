//! A stock Linux kernel as the guest.

use scenarios::explain;
use xtask::linux::{self, Console, Expect, Sources};
use xtask::qemu;
use xtask::run::Run;
use xtask::units::{Size, Span};

// A test may panic, in its helpers too.
#[allow(clippy::expect_used)]
#[test]
fn a_linux_guest_with_two_cpus_moves_while_it_waits() {
    let run = Run {
        memory: Size::mib(256),
        vcpus: 2,
        max_bandwidth: None,
        downtime_limit: None,
        migrate_after: Some(Span::seconds(12)),
        guest_line: Some("console=ttyS0 quiet intel_iommu=on iommu.strict=1".into()),
        timeout: Span::seconds(300),
        ..Run::new("linux-two-cpus")
    };
    let qemu = qemu::find().expect("QEMU is needed");
    let images = linux::images(&Sources::default()).expect("the images must build");
    let outcome = run
        .execute_with(&qemu, &images, &mut |_, _| {})
        .expect("the run must take place");
    let console = Console::read(&outcome).expect("the console must be there");
    let expect = Expect {
        migrates: true,
        disk: false,
        cpus: 2,
    };
    let verdict = linux::judge(&outcome, &console, expect);
    assert!(verdict.is_pass(), "{}", explain(&run, &outcome, &verdict));
    // What this kernel complains of, a faithful platform would have.
    assert_eq!(console.boot_errors, Vec::<String>::new());
    assert_eq!(outcome.destination.guest_exit_way, "power-off");
}
