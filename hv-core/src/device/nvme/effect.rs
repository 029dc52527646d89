//! What a command on the admin queue changes of a controller, as far as another one
//! must be told.

use super::NvmeError;
use super::command::{Command, admin, feature};
use super::state::{CompletionQueue, Feature, MAX_QUEUES, SubmissionQueue};
use crate::PAGE_SIZE;

/// What a command on the admin queue changes when it succeeds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    CreateSubmission(usize, SubmissionQueue),
    CreateCompletion(usize, CompletionQueue),
    DeleteSubmission(usize),
    DeleteCompletion(usize),
    Set(Feature),
    /// The Host Behavior Support that was offered last.
    SetBehavior,
    /// An event request, which waits for as long as there is no event.
    Event,
}

impl Effect {
    /// What a command changes, if anything that matters.
    pub(super) fn of(command: &Command) -> Result<Option<Self>, NvmeError> {
        let [word10, word11, ..] = command.words;
        let number = usize::from(word10 as u16);
        Ok(Some(match command.opcode {
            admin::CREATE_SUBMISSION => {
                let queue = SubmissionQueue {
                    base: command.data[0],
                    entries: (word10 >> 16) + 1,
                    completion: (word11 >> 16) as u16,
                    priority: (word11 >> 1 & 3) as u16,
                    ..SubmissionQueue::default()
                };
                check_queue(number, word11, queue.base)?;
                Self::CreateSubmission(number, queue)
            }
            admin::CREATE_COMPLETION => {
                let queue = CompletionQueue {
                    base: command.data[0],
                    entries: (word10 >> 16) + 1,
                    phase: 1,
                    vector: (word11 >> 16) as u16,
                    interrupts: (word11 >> 1 & 1) as u16,
                    ..CompletionQueue::default()
                };
                check_queue(number, word11, queue.base)?;
                Self::CreateCompletion(number, queue)
            }
            admin::DELETE_SUBMISSION => Self::DeleteSubmission(number),
            admin::DELETE_COMPLETION => Self::DeleteCompletion(number),
            admin::EVENT_REQUEST => Self::Event,
            admin::SET_FEATURES => match word10 as u8 {
                // Lost on the way, and nobody suffers.
                feature::AUTONOMOUS_POWER | feature::TIMESTAMP => return Ok(None),
                feature::LBA_RANGE | feature::HOST_MEMORY | feature::HOST_IDENTIFIER => {
                    return Err(NvmeError::FeatureWithData(word10 as u8));
                }
                feature::HOST_BEHAVIOR => Self::SetBehavior,
                _ => Self::Set(Feature {
                    namespace: command.namespace,
                    words: command.words,
                }),
            },
            _ => return Ok(None),
        }))
    }
}

/// Whether an I/O queue can be carried across: it has a number that fits, and lies
/// in one piece (PC) from the start of a page on.
fn check_queue(number: usize, word11: u32, base: u64) -> Result<(), NvmeError> {
    if !(1..MAX_QUEUES).contains(&number) {
        return Err(NvmeError::TooMuch);
    }
    let is_contiguous = word11 & 1 != 0;
    (is_contiguous && base.is_multiple_of(PAGE_SIZE))
        .then_some(())
        .ok_or(NvmeError::ScatteredQueue)
}
