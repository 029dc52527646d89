//! `cargo xtask shell`, driven through a terminal as a person would.

// A test may panic, in its helpers too.
#![allow(clippy::expect_used, clippy::panic)]

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};
use xtask::workspace;

/// How long any one thing may take: the images are built and a kernel boots.
const PATIENCE: Duration = Duration::from_secs(400);

/// A terminal with the command in it.
struct Terminal {
    keyboard: File,
    /// The terminal's other end, as the command has it.
    line: File,
    shown: Receiver<Vec<u8>>,
    /// What was shown and not looked at yet.
    text: String,
    command: Child,
}

impl Terminal {
    fn run(arguments: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).expect("its other end");
        unlockpt(&master).expect("its other end");
        let name = ptsname(&master, Vec::new()).expect("its other end has a name");
        let line = OpenOptions::new()
            .read(true)
            .write(true)
            .open(Path::new(name.to_str().expect("a path")))
            .expect("the terminal opens");
        let end = || line.try_clone().expect("a file descriptor");
        let command = workspace::cargo()
            .args(["xtask", "shell"])
            .args(arguments)
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("cargo starts");
        let keyboard = File::from(master);
        let mut screen = keyboard.try_clone().expect("a file descriptor");
        let (send, shown) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = screen.read(&mut bytes) {
                if count == 0 || send.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            keyboard,
            line,
            shown,
            text: String::new(),
            command,
        }
    }

    fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("typing");
    }

    /// Waits until `text` is shown, after all that was waited for before.
    #[track_caller]
    fn shows(&mut self, text: &str) {
        let until = Instant::now() + PATIENCE;
        let end = loop {
            if let Some(at) = self.text.find(text) {
                break at + text.len();
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(why) => panic!("`{text}` is not shown ({why}) after:\n{}", self.text),
            }
        };
        self.text.drain(..end);
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.line).expect("a terminal").local_modes;
        !modes.contains(LocalModes::ICANON)
    }

    /// Waits for the command's end, which has to leave the terminal as it was.
    fn ends(mut self) -> ExitStatus {
        let status = self.command.wait().expect("the command ends");
        assert!(!self.is_raw(), "the terminal stayed raw");
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.command.kill().ok();
    }
}

/// The session is one and the same before and after: a shell variable and a command
/// that runs across the move are still there.
#[test]
fn a_person_migrates_the_guest_under_their_fingers() {
    let mut terminal = Terminal::run(&[]);
    terminal.shows("/ # ");
    assert!(terminal.is_raw(), "keys come one at a time");
    terminal.type_keys("kept=$((6 * 7)); echo kept=$kept\n");
    terminal.shows("kept=42");

    terminal.type_keys("sleep 5; echo still $kept\n");
    terminal.type_keys("\x1dm");
    terminal.shows("[migrating]");
    terminal.shows("[migrated, downtime");
    terminal.shows("still 42");

    terminal.type_keys("echo after $((kept + 1))\n");
    terminal.shows("after 43");
    terminal.type_keys("dmesg | grep -c 'clocksource.*unstable'\n");
    terminal.shows("\n0");
    terminal.type_keys("exit\n");
    assert!(terminal.ends().success());
}

#[test]
fn a_person_leaves_before_the_guest_is_up() {
    let mut terminal = Terminal::run(&[]);
    terminal.shows("booting a Linux guest");
    terminal.type_keys("\x1dq");
    assert!(terminal.ends().success());
}
