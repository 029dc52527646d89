//! The table for people.

use super::{Report, SHOWN};
use crate::events::Rebuilt;
use crate::units::human_bytes;
use std::fmt;

/// One row: a name, a value, and what the value is.
pub(crate) struct Row(&'static str, String, String);

/// Makes a row.
pub(crate) fn row(name: &'static str, value: impl ToString, note: impl ToString) -> Row {
    Row(name, value.to_string(), note.to_string())
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name, value, note) = self;
        let row = format!("  {name:<20} {value:>14}  {note}");
        f.write_str(row.trim_end())
    }
}

/// The table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.guest, &self.sabotage) {
            (Some(guest), _) => writeln!(f, "{} ({})", self.scenario, guest.kernel)?,
            (None, Some(name)) => {
                writeln!(f, "{} (seed {}, sabotage {name})", self.scenario, self.seed)?;
            }
            (None, None) => writeln!(f, "{} (seed {})", self.scenario, self.seed)?,
        }
        // A run that never got as far as a round has nothing to tell in figures.
        if self.rounds > 0 {
            write_rows(f, &self.migration_rows())?;
        }
        if let Some(Rebuilt { commands, us }) = self.device_rebuilt {
            let how = format!(
                "ms of the acknowledgement, by {} commands",
                grouped(commands)
            );
            writeln!(f, "{}", row("device rebuilt", ms(us), how))?;
        }
        match &self.guest {
            Some(guest) => write_rows(f, &guest.rows())?,
            None if self.rounds > 0 => write_rows(f, &self.ledger_rows())?,
            None => {}
        }
        write_rows(f, &self.exit_rows())?;
        self.write_lost(f)?;
        let seconds = self.elapsed_ms as f64 / 1000.0;
        writeln!(f, "{} in {seconds:.1} s", self.result.to_uppercase())?;
        self.failures
            .iter()
            .try_for_each(|line| writeln!(f, "  {line}"))
    }
}

impl Report {
    fn migration_rows(&self) -> Vec<Row> {
        let parts = &self.downtime;
        vec![
            row("rounds", grouped(self.rounds), ""),
            row("pages sent", grouped(self.pages_sent), ""),
            row(
                "device evidence",
                self.dirty_mode.clone(),
                &self.dirty_reason,
            ),
            row("dirty by CPU", grouped(self.pages_dirty_cpu), "pages"),
            row(
                "dirty, still mapped",
                grouped(self.pages_dirty_mapped),
                "pages still mapped, by this evidence",
            ),
            row(
                "dirty, unmap report",
                grouped(self.pages_dirty_unmap),
                "pages unmapped, by this evidence",
            ),
            row(
                "dirty by emulation",
                grouped(self.pages_dirty_emulation),
                "pages",
            ),
            row(
                "bytes sent",
                grouped(self.bytes_sent),
                human_bytes(self.bytes_sent),
            ),
            row("downtime", ms(self.downtime_us), "ms, of which"),
            row("  quiesce", ms(parts.quiesce_us), "ms"),
            row("  last harvest", ms(parts.harvest_us), "ms"),
            row("  last pages", ms(parts.pages_us), "ms"),
            row("  state", ms(parts.state_us), "ms"),
            row("  acknowledgement", ms(parts.ack_us), "ms"),
            row(
                "device faults",
                grouped(self.dma_faults),
                match self.dma_faults_reported {
                    true => "",
                    false => "refused DMA is not reported by this unit",
                },
            ),
            row(
                "mappings refused",
                grouped(self.mappings_refused),
                "pages the guest mapped for its device and could not have",
            ),
            row(
                "interrupt faults",
                grouped(self.interrupt_faults),
                match (self.interrupts_remapped, self.dma_faults_reported) {
                    (true, true) => "interrupts are remapped",
                    (true, false) => {
                        "interrupts are remapped; refused ones are not reported by this unit"
                    }
                    (false, _) => "interrupts are not remapped",
                },
            ),
        ]
    }

    /// What the guest with the ledger found.
    fn ledger_rows(&self) -> Vec<Row> {
        vec![
            row(
                "pages verified",
                grouped(self.pages_verified),
                "by the guest, at its end",
            ),
            row(
                "  device wrote last",
                grouped(self.pages_device_last),
                "the last writer was the device",
            ),
            row("pages lost", grouped(self.pages_lost), ""),
        ]
    }

    fn exit_rows(&self) -> Vec<Row> {
        let Some(rates) = &self.exits else {
            return Vec::new();
        };
        let mut rows = vec![
            row("exits a second", grouped(rates.run.total()), &rates.run),
            row(
                "  in the quietest",
                grouped(rates.idle.total()),
                &rates.idle,
            ),
        ];
        if let Some(shares) = &rates.command {
            let total = format!("{:.2}", shares.total());
            rows.push(row("  a disk command", total, shares));
        }
        rows
    }

    fn write_lost(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.lost.iter().map(|page| {
            let (gfn, last, operation) = (page.gfn, &page.last, page.operation);
            format!("frame {gfn:#x}: last written by {last} in operation {operation}")
        });
        let differing = self
            .mismatches
            .iter()
            .map(|gfn| format!("frame {gfn:#x}: differed from the source's at switchover"));
        for line in named.chain(differing).take(SHOWN) {
            writeln!(f, "    {line}")?;
        }
        match (self.lost.len() + self.mismatches.len()).saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "    and {more} more, all in the JSON"),
        }
    }
}

fn write_rows(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    rows.iter().try_for_each(|row| writeln!(f, "{row}"))
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds as milliseconds.
pub(crate) fn ms(us: u64) -> String {
    format!("{}.{:03}", grouped(us / 1000), us % 1000)
}
