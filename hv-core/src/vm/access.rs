//! Accesses to addresses where the guest has no memory: device registers.

use super::decode::{self, MAX_LENGTH, Operation, Place, sign_extend, truncate};
use super::oddity::Oddity;
use super::{Event, GuestError, MmioRegion, Vm, alu, walk};
use crate::Gpa;
use crate::memory::PhysMemory;
use crate::platform::IoEffect;
use crate::vcpu::{NestedFault, Vcpu};

impl<M: PhysMemory, V: Vcpu> Vm<'_, M, V> {
    /// Carries out an access to an address where the guest has no memory.
    pub(super) fn access(
        &mut self,
        cpu: usize,
        fault: NestedFault,
        regions: &mut [MmioRegion<'_>],
    ) -> Option<Event> {
        let (gpa, rip) = (fault.gpa, self.cpus[cpu].state.rip);
        if fault.fetch || fault.table_walk || fault.in_delivery {
            return Some(Event::Fatal(GuestError::CpuOutsideMemory { gpa }));
        }
        let Some(access) = self.decode_current(cpu) else {
            return Some(Event::Fatal(GuestError::Instruction { rip, gpa }));
        };
        let width = access.width;
        let mut region = regions
            .iter_mut()
            .find(|region| region.contains(gpa, width));
        let is_outside = region.is_some();
        if !is_outside && !self.platform.has_registers(cpu, gpa) {
            self.oddities.note(Oddity::Nowhere(gpa));
        }
        let mut effect = IoEffect::None;
        match access.operation {
            Operation::Read { to, is_signed } => {
                let value = self.read_bus(cpu, region, gpa, width);
                let value = if is_signed {
                    sign_extend(value, width)
                } else {
                    value
                };
                to.set(&mut self.cpus[cpu].state, value);
            }
            Operation::Write(from) => {
                // A move within the device does not exist.
                let value = self.value_of(cpu, from).unwrap_or_default();
                effect = self.write_bus(cpu, region, gpa, width, value);
            }
            Operation::Exchange(register) => {
                let value = self.read_bus(cpu, region.as_deref_mut(), gpa, width);
                let new = register.get(&self.cpus[cpu].state);
                effect = self.write_bus(cpu, region, gpa, width, new);
                register.set(&mut self.cpus[cpu].state, value);
            }
            Operation::Compute { op, to, from } => {
                let device = self.read_bus(cpu, region.as_deref_mut(), gpa, width);
                let left = self.value_of(cpu, to).unwrap_or(device);
                let right = self.value_of(cpu, from).unwrap_or(device);
                let (result, rflags) =
                    alu::compute(op, left, right, width, self.cpus[cpu].state.rflags);
                self.cpus[cpu].state.rflags = rflags;
                match (to, result) {
                    (Place::Device, Some(value)) => {
                        effect = self.write_bus(cpu, region, gpa, width, value);
                    }
                    (Place::Register(to), Some(value)) => to.set(&mut self.cpus[cpu].state, value),
                    _ => {}
                }
            }
        }
        self.cpus[cpu]
            .state
            .advance_to(rip.wrapping_add(access.length));
        if is_outside {
            return Some(Event::MmioDone);
        }
        Event::of(effect)
    }

    /// The value in a place on the CPU's side.
    fn value_of(&self, cpu: usize, place: Place) -> Option<u64> {
        match place {
            Place::Device => None,
            Place::Register(register) => Some(register.get(&self.cpus[cpu].state)),
            Place::Immediate(value) => Some(value),
        }
    }

    /// Reads from a region of the image, or else from the platform.
    fn read_bus(
        &mut self,
        cpu: usize,
        region: Option<&mut MmioRegion<'_>>,
        gpa: Gpa,
        width: u8,
    ) -> u64 {
        let value = match region {
            Some(region) => region.device.read(gpa.raw() - region.gpa.raw(), width),
            None => {
                let now = self.now();
                self.platform.read_memory(cpu, gpa, width, now)
            }
        };
        truncate(value, width)
    }

    /// Writes likewise, and says what the image has to do.
    fn write_bus(
        &mut self,
        cpu: usize,
        region: Option<&mut MmioRegion<'_>>,
        gpa: Gpa,
        width: u8,
        value: u64,
    ) -> IoEffect {
        let value = truncate(value, width);
        match region {
            Some(region) => {
                let offset = gpa.raw() - region.gpa.raw();
                region.device.write(offset, width, value);
                IoEffect::None
            }
            None => {
                let now = self.now();
                self.platform.write_memory(cpu, gpa, width, value, now)
            }
        }
    }

    /// The access at RIP, in 64-bit code.
    fn decode_current(&self, cpu: usize) -> Option<decode::Access> {
        let state = &self.cpus[cpu].state;
        if !state.is_64_bit() {
            return None;
        }
        let mut bytes = [0; MAX_LENGTH];
        let count = walk::fetch(self.memory, state, state.rip, &mut bytes);
        decode::decode(bytes.get(..count)?)
    }
}
