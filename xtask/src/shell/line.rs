//! One serial line of a machine, over a socket.

use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long QEMU may take to open its socket.
const PATIENCE: Duration = Duration::from_secs(10);

/// A line that is read and written without waiting.
pub(super) struct Line(UnixStream);

impl Line {
    /// Connects to the socket, which need not be there yet.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(5)),
                Err(error) => {
                    let socket = socket.display();
                    return Err(error).with_context(|| format!("QEMU does not open {socket}"));
                }
            }
        };
        stream.set_nonblocking(true)?;
        Ok(Self(stream))
    }

    /// What has arrived. Nothing more comes once the machine has ended.
    pub(super) fn received(&mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => return Ok(all),
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(error) if is_usual(error.kind()) => return Ok(all),
                Err(error) => return Err(error).context("cannot read a serial line"),
            }
        }
    }

    /// Sends what there is room for; the rest stays.
    pub(super) fn send(&mut self, bytes: &mut VecDeque<u8>) -> Result<()> {
        while !bytes.is_empty() {
            match self.0.write(bytes.make_contiguous()) {
                Ok(count) => drop(bytes.drain(..count)),
                Err(error) if is_usual(error.kind()) => break,
                Err(error) => return Err(error).context("cannot write to a serial line"),
            }
        }
        Ok(())
    }
}

/// Nothing now, or nothing any more.
fn is_usual(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock
            | ErrorKind::Interrupted
            | ErrorKind::ConnectionReset
            | ErrorKind::BrokenPipe
    )
}
