//! Panics: a defect of this program. It says where, and ends.

use crate::debug_exit::{Exit, exit};
use crate::logger;
use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    logger::rescue();
    log::error!("{info}");
    exit(Exit::Failure)
}
