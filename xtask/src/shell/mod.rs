//! A person at the console of a running Linux guest, which moves when they say so.
//!
//! ```text
//!  standard input -> keys -> the console of the machine that has the guest
//!                      \---> Ctrl-] m: a second machine, and the guest goes there
//!  both consoles  -> standard output
//! ```
//!
//! Nothing that is typed gets lost: it waits while the guest is on its way, and until
//! its shell is there.

mod keys;
mod line;
mod terminal;

use crate::events::Event;
use crate::machine::{MIGRATE, Machine, Role, Sockets};
use crate::site::Site;
use anyhow::{Context, Result};
use keys::{HELP, Key, Keys};
use line::Line;
use std::collections::VecDeque;
use std::io::{Read, Write, stdin, stdout};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;
use terminal::Raw;

/// What the guest's init says when its shell starts.
pub(crate) const READY: &str = "linux: shell";
/// How long typing is waited for before the machines are looked after.
const TURN: Duration = Duration::from_millis(20);
/// Ctrl-D: the end of input, to a terminal.
const END_OF_INPUT: u8 = 0x04;

/// Boots the source's guest and connects it with the terminal until the guest ends or
/// the person leaves. Returns whether the guest ended well, or was left.
///
/// # Errors
/// A machine cannot be started or watched.
pub fn serve(site: &Site<'_>) -> Result<bool> {
    let sockets = tempfile::tempdir().context("cannot create a directory for sockets")?;
    let terminal = Raw::enter();
    let mut shell = Shell {
        site,
        sockets: sockets.path(),
        home: Place::start(site, Role::Source, sockets.path())?,
        next: None,
        typed: VecDeque::new(),
        waiting: VecDeque::new(),
        said: String::new(),
        is_ready: false,
    };
    say("booting a Linux guest");
    say(HELP);
    shell.run(&typed(), terminal.is_terminal())
}

/// A machine and the console of its guest.
struct Place {
    machine: Machine,
    console: Line,
    control: Line,
}

impl Place {
    fn start(site: &Site<'_>, role: Role, directory: &Path) -> Result<Self> {
        let machine = site.start(role, Some(directory))?;
        let sockets = Sockets::new(directory, role);
        Ok(Self {
            machine,
            console: Line::connect(&sockets.console)?,
            control: Line::connect(&sockets.control)?,
        })
    }
}

struct Shell<'s> {
    site: &'s Site<'s>,
    sockets: &'s Path,
    /// Where the guest is.
    home: Place,
    /// Where it is going to.
    next: Option<Place>,
    /// What was typed and not looked at.
    typed: VecDeque<Key>,
    /// What is on its way to the guest.
    waiting: VecDeque<u8>,
    /// What the guest said until it was ready.
    said: String,
    is_ready: bool,
}

impl Shell<'_> {
    fn run(&mut self, typed: &Receiver<Vec<u8>>, is_terminal: bool) -> Result<bool> {
        let mut keys = Keys::default();
        let mut input_ended = false;
        loop {
            match typed.recv_timeout(TURN) {
                Ok(bytes) => {
                    for key in bytes.into_iter().map(|byte| keys.take(byte)) {
                        match key {
                            Key::Quit => return Ok(true),
                            Key::Help => say(HELP),
                            Key::Nothing => {}
                            key => self.typed.push_back(key),
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    // A script's end is the shell's; a terminal that is gone is nobody.
                    if is_terminal {
                        return Ok(true);
                    }
                    // What was asked for comes first, a migration to its end.
                    let is_done = self.typed.is_empty() && self.next.is_none() && self.is_ready;
                    if is_done && !std::mem::replace(&mut input_ended, true) {
                        self.typed.push_back(Key::Byte(END_OF_INPUT));
                    }
                    thread::sleep(TURN);
                }
            }
            self.show()?;
            self.follow()?;
            if self.is_ready {
                self.obey()?;
            }
            if self.home.machine.seen.has_ended() {
                self.show()?;
                return Ok(self.home.machine.seen.guest_exit == Some(0));
            }
        }
    }

    /// Does what was typed, in its order, as far as that can be done now.
    fn obey(&mut self) -> Result<()> {
        while !self.is_moving() {
            self.home.console.send(&mut self.waiting)?;
            match self.typed.pop_front() {
                Some(Key::Byte(byte)) => self.waiting.push_back(byte),
                Some(Key::Migrate) => self.migrate()?,
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }

    /// Whether the guest has stopped here and not started there.
    fn is_moving(&self) -> bool {
        self.next.is_some() && self.home.machine.seen.switchover
    }

    fn migrate(&mut self) -> Result<()> {
        if self.home.machine.role == Role::Destination {
            say("the guest has moved already, and a destination is no source");
        } else if self.next.is_none() {
            say("migrating");
            self.next = Some(Place::start(self.site, Role::Destination, self.sockets)?);
            self.home.control.send(&mut VecDeque::from([MIGRATE]))?;
        }
        Ok(())
    }

    /// Shows what the guest said.
    fn show(&mut self) -> Result<()> {
        let places = [Some(&mut self.home), self.next.as_mut()];
        for place in places.into_iter().flatten() {
            // What the hypervisor says is in the machine's file too, but has to be taken
            // here as well, or it waits for that.
            place.control.received()?;
            let bytes = place.console.received()?;
            stdout().write_all(&bytes)?;
            stdout().flush()?;
            if !self.is_ready {
                self.said.push_str(&String::from_utf8_lossy(&bytes));
                self.is_ready = self.said.contains(READY);
            }
        }
        Ok(())
    }

    /// Looks after the machines: the guest arrives, or does not.
    fn follow(&mut self) -> Result<()> {
        for event in self.home.machine.poll()? {
            match event {
                Event::Refused { reason } => say(&format!("refused: {reason}")),
                Event::Migrated(migrated) => {
                    say(&format!("migrated, downtime {} us", migrated.downtime_us));
                }
                Event::MigrationFailed { reason } => {
                    say(&format!("not migrated: {reason}"));
                    self.next = None;
                }
                _ => {}
            }
        }
        if let Some(mut next) = self.next.take() {
            next.machine.poll()?;
            if next.machine.seen.resumed {
                self.show()?;
                self.home = next;
            } else {
                self.next = Some(next);
            }
        }
        Ok(())
    }
}

/// Reads standard input until it ends, which closes the channel.
fn typed() -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(count) = stdin().read(&mut buffer) {
            if count == 0 || send.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    receive
}

/// Says something between the guest's own lines, on a terminal that may be raw.
fn say(text: &str) {
    eprint!("\r\n[{text}]\r\n");
}
