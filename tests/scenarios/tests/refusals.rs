//! Machines and command lines that cannot do: the image says what is missing and
//! ends, and nothing was started.

// A test may panic, in its helpers too.
#![allow(clippy::expect_used)]

use std::process::Command;
use xtask::images::Images;
use xtask::qemu;

/// A machine, less what a test takes away.
struct Pc {
    cpu: &'static str,
    iommu: bool,
    device: bool,
    memory: &'static str,
    options: &'static str,
    /// The guest's image, if it has one.
    guest: Option<&'static [u8]>,
}

const WHOLE: Pc = Pc {
    cpu: "EPYC-v4,+svm,+npt",
    iommu: true,
    device: true,
    memory: "320M",
    options: "role=source memory=64M",
    guest: None,
};

/// Boots the image on the machine, which must end with the failure status, and
/// returns what it logged.
fn refusal(pc: &Pc) -> String {
    let qemu = qemu::find().expect("QEMU is needed");
    let images = Images::ordinary().expect("the image must build");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (log, link) = (directory.path().join("log"), directory.path().join("link"));
    let mut command = Command::new("timeout");
    command.arg("60").arg(qemu);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-no-reboot", "-machine", "q35", "-accel", "tcg"]);
    command.args(["-icount", "shift=0,sleep=off"]);
    command.args(["-cpu", pc.cpu, "-m", pc.memory]);
    if pc.iommu {
        command.args(["-device", "intel-iommu,intremap=off"]);
    }
    if pc.device {
        command.args(["-device", "edu"]);
    }
    command.arg("-object").arg(format!(
        "memory-backend-file,id=link,share=on,size=4M,mem-path={}",
        link.display()
    ));
    command.args(["-device", "ivshmem-plain,memdev=link"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command
        .arg("-serial")
        .arg(format!("file:{}", log.display()));
    command.arg("-kernel").arg(&images.hypervisor);
    command.args(["-append", pc.options]);
    if let Some(guest) = pc.guest {
        let file = directory.path().join("guest");
        std::fs::write(&file, guest).expect("a file in it");
        command.arg("-initrd").arg(file);
    }
    let output = command.output().expect("QEMU must start");
    let said = std::fs::read_to_string(&log).expect("the image must have logged");
    // The debug-exit device turns 0x11, failure, into 35.
    assert_eq!(output.status.code(), Some(35), "{said}\n{output:?}");
    said
}

#[track_caller]
fn refuses(pc: &Pc, because: &str) {
    let said = refusal(pc);
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("error: ") && last.contains(because),
        "`{because}` is not the last line's reason:\n{said}"
    );
}

#[test]
fn a_machine_without_an_iommu_is_refused() {
    refuses(
        &Pc {
            iommu: false,
            ..WHOLE
        },
        "no DMA remapping unit",
    );
}

#[test]
fn a_machine_without_svm_is_refused() {
    refuses(
        &Pc {
            cpu: "EPYC-v4,-svm",
            ..WHOLE
        },
        "SVM",
    );
}

#[test]
fn a_machine_without_nested_paging_is_refused() {
    refuses(
        &Pc {
            cpu: "EPYC-v4,+svm,-npt",
            ..WHOLE
        },
        "nested paging",
    );
}

#[test]
fn a_machine_without_the_device_is_refused() {
    refuses(
        &Pc {
            device: false,
            ..WHOLE
        },
        "1234:11e8",
    );
}

#[test]
fn too_little_memory_is_refused_with_what_is_needed() {
    refuses(
        &Pc {
            memory: "64M",
            ..WHOLE
        },
        "a guest of 65536 KiB needs",
    );
}

#[test]
fn a_source_without_a_guest_is_refused() {
    refuses(&WHOLE, "the guest's image is missing");
}

#[test]
fn an_unknown_option_is_named_with_those_there_are() {
    refuses(
        &Pc {
            options: "role=source colour=red",
            ..WHOLE
        },
        "\"colour\"; allowed are role, memory",
    );
}

#[test]
fn a_guest_that_is_no_kernel_is_refused() {
    refuses(
        &Pc {
            guest: Some(b"#!/bin/sh\necho no kernel\n"),
            ..WHOLE
        },
        "neither a Linux kernel nor",
    );
}

#[test]
fn a_guest_whose_file_is_cut_off_is_refused() {
    refuses(
        &Pc {
            guest: Some(b"\x7fELF\x02\x01\x01"),
            ..WHOLE
        },
        "the guest",
    );
}
