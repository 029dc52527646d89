//! Intercepted instructions.

use super::oddity::Oddity;
use super::{Event, Outside, Vm};
use crate::memory::PhysMemory;
use crate::platform::cpuid::{self, Topology};
use crate::platform::msr::{self, MsrEffect};
use crate::vcpu::gpr::{RAX, RCX};
use crate::vcpu::{Intercepted, IoAccess, Pending, Vcpu};

impl<M: PhysMemory, V: Vcpu> Vm<'_, M, V> {
    /// Carries out one intercepted instruction.
    pub(super) fn execute(
        &mut self,
        cpu: usize,
        what: Intercepted,
        next_rip: u64,
        outside: &mut Outside<'_, '_>,
    ) -> Option<Event> {
        match what {
            Intercepted::Missing => self.cpus[cpu].state.pending = Pending::UD,
            Intercepted::Cpuid => {
                let topology = Topology {
                    id: cpu as u32,
                    count: self.cpus.len() as u32,
                };
                let host = self.platform.host_cpuid;
                cpuid::execute(&mut self.cpus[cpu].state, topology, host);
                self.cpus[cpu].state.advance_to(next_rip);
            }
            // Caches are coherent here, and nothing is written past them.
            Intercepted::WriteBack => self.cpus[cpu].state.advance_to(next_rip),
            Intercepted::Halt => {
                self.cpus[cpu].state.advance_to(next_rip);
                self.cpus[cpu].state.halted = 1;
            }
            Intercepted::ReadMsr => {
                let number = self.cpus[cpu].state.gpr32(RCX);
                let now = self.now();
                let apic = &self.platform.cpus.get(cpu).apic;
                match msr::read(&self.cpus[cpu].state, apic, number, now) {
                    Ok(value) => {
                        self.cpus[cpu].state.set_edx_eax(value);
                        self.cpus[cpu].state.advance_to(next_rip);
                    }
                    Err(_) => {
                        self.oddities.note(Oddity::Msr(number));
                        self.cpus[cpu].state.pending = Pending::GP;
                    }
                }
            }
            Intercepted::WriteMsr => self.write_msr(cpu, next_rip),
            // String forms would need the guest's segments and tables; no driver of
            // what is on this platform uses them.
            Intercepted::Io(access) if access.is_string => {
                self.oddities.note(Oddity::StringPort(access.port));
                self.cpus[cpu].state.pending = Pending::GP;
            }
            Intercepted::Io(access) => return self.port(cpu, access, next_rip, outside),
        }
        None
    }

    fn write_msr(&mut self, cpu: usize, next_rip: u64) {
        let now = self.now();
        let state = &mut self.cpus[cpu].state;
        let (number, value) = (state.gpr32(RCX), state.edx_eax());
        let apic = &mut self.platform.cpus.get(cpu).apic;
        match msr::write(state, apic, number, value, now) {
            Ok(effect) => {
                state.advance_to(next_rip);
                match effect {
                    MsrEffect::None => {}
                    MsrEffect::SetTsc(value) => self.set_tsc(cpu, value),
                    MsrEffect::Send(message) => self.platform.cpus.send(message, Some(cpu)),
                }
            }
            Err(_) => {
                state.pending = Pending::GP;
                self.oddities.note(Oddity::Msr(number));
            }
        }
    }

    /// The guest writes the counter of one of its CPUs. Its time follows the first
    /// one's, and goes on.
    fn set_tsc(&mut self, cpu: usize, value: u64) {
        let host = self.vcpu.host_tsc();
        let own = &mut self.cpus[cpu];
        if cpu == 0 {
            let before = host.wrapping_add(own.tsc_offset);
            self.platform.timeline.rebase(before, value);
        }
        own.tsc_offset = value.wrapping_sub(host);
    }

    fn port(
        &mut self,
        cpu: usize,
        access: IoAccess,
        next_rip: u64,
        outside: &mut Outside<'_, '_>,
    ) -> Option<Event> {
        self.cpus[cpu].state.advance_to(next_rip);
        let now = self.now();
        if access.is_in {
            let value = u64::from(self.platform.read_port(access, now));
            let rax = &mut self.cpus[cpu].state.gpr[RAX];
            *rax = match access.width {
                1 => *rax & !0xff | value,
                2 => *rax & !0xffff | value,
                _ => value,
            };
            return None;
        }
        let value = self.cpus[cpu].state.gpr32(RAX);
        let effect = self
            .platform
            .write_port(access, value, now, outside.console);
        Event::of(effect)
    }
}
