//! `cargo xtask debug`: gdb is attached, knows the symbols and stops where it is told.

// A test may panic, in its helpers too.
#![allow(clippy::expect_used)]

use std::net::TcpListener;
use xtask::workspace;

/// A TCP port that is free now.
fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a TCP port");
    let address = listener.local_addr().expect("its address");
    address.port().to_string()
}

/// What gdb says when it has stopped at the main function of `what` and is then given
/// these commands.
fn debug(what: &str, commands: &[&str]) -> String {
    let mut debug = workspace::cargo();
    debug.args(["xtask", "debug", what, "--port", &free_port()]);
    debug.args(["--", "-batch"]);
    for command in commands {
        debug.args(["-ex", command]);
    }
    let output = debug.output().expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{output:?}");
    said
}

#[test]
fn the_hypervisor_stops_at_a_breakpoint_with_its_symbols() {
    let said = debug("hypervisor", &["backtrace"]);
    assert!(
        said.contains("Breakpoint 1, image_main () at boards/rt/src/lib.rs:"),
        "{said}"
    );
    assert!(
        said.contains("in start () at boards/rt/src/entry.rs:"),
        "{said}"
    );
}

/// The guest's program is elsewhere than the hypervisor's, so a stop at this address
/// is one of the guest. It goes on from there, to its end: it is content.
#[test]
fn the_guest_stops_at_a_breakpoint_with_its_symbols_and_goes_on_from_it() {
    let said = debug("guest", &["info symbol $pc", "continue"]);
    assert!(
        said.contains("Breakpoint 1, image_main () at boards/rt/src/lib.rs:"),
        "{said}"
    );
    assert!(said.contains("image_main + "), "{said}");
    assert!(said.contains("exited with code 041"), "{said}");
}
