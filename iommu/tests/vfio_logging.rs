//! Device DMA logging (section G).

mod common;
mod vfio_support;

use iommu::vfio::dma_logging::{
    Control, DmaLogging, FeatureFlags, FeatureHeader, LoggingRange, MAX_RANGES, REPORT, Report,
    START, STOP,
};
use std::mem::{offset_of, size_of};
use vfio_bindings::bindings::vfio as c;
use vfio_support::*;

const RANGES: u64 = ARG + 0x1000;
const SET: u32 = FeatureFlags::SET.bits();
const GET: u32 = FeatureFlags::GET.bits();
const PROBE: u32 = FeatureFlags::PROBE.bits();

fn call(log: &mut DmaLogging<'_>, memory: &mut Memory, argsz: u32, flags: u32) -> i32 {
    memory.put(ARG, &FeatureHeader { argsz, flags });
    errno(log.feature(ARG, memory))
}

fn start_with(
    log: &mut DmaLogging<'_>,
    memory: &mut Memory,
    page_size: u64,
    ranges: &[(u64, u64)],
) -> i32 {
    for (index, &(iova, length)) in ranges.iter().enumerate().take(MAX_RANGES) {
        let at = RANGES + (index * size_of::<LoggingRange>()) as u64;
        memory.put(at, &LoggingRange { iova, length });
    }
    let control = Control {
        page_size,
        num_ranges: ranges.len() as u32,
        reserved: 0,
        ranges: RANGES,
    };
    memory.put(ARG + 8, &control);
    call(log, memory, 32, START | SET)
}

fn report(
    log: &mut DmaLogging<'_>,
    memory: &mut Memory,
    iova: u64,
    length: u64,
    page_size: u64,
) -> i32 {
    let report = Report {
        iova,
        length,
        page_size,
        bitmap: BITMAP,
    };
    memory.put(ARG + 8, &report);
    call(log, memory, 40, REPORT | GET)
}

fn with_log(test: impl FnOnce(&mut DmaLogging<'_>, &mut Memory)) {
    let mut words = [u64::MAX; 8];
    test(&mut DmaLogging::new(&mut words), &mut Memory::new());
}

#[test]
fn g01_start_checks_in_this_order() {
    with_log(|log, memory| {
        let last = u64::MAX - 0xfff;
        assert_eq!(start_with(log, memory, 0x1000, &[]), EINVAL);
        let many = vec![(1, 1); MAX_RANGES + 1];
        assert_eq!(start_with(log, memory, 0x1000, &many), E2BIG);
        for range in [(1, 0x1000), (0x1000, 1), (0x1000, 0)] {
            assert_eq!(start_with(log, memory, 0x1000, &[range]), EINVAL);
        }
        assert_eq!(start_with(log, memory, 0x2000, &[(0x1000, 0x2000)]), EINVAL);
        assert_eq!(start_with(log, memory, 0, &[(0x1000, 0x1000)]), EINVAL);
        assert_eq!(
            start_with(log, memory, 0x1000, &[(last, 0x2000)]),
            EOVERFLOW
        );
        for range in [(0x1000, 0x2000), (0x2000, 0x1000), (0, 0x8000)] {
            let ranges = [(0x1000, 0x2000), (0x9000, 0x1000), range];
            assert_eq!(start_with(log, memory, 0x1000, &ranges), EINVAL, "overlap");
        }
        assert_eq!(start_with(log, memory, 0x1000, &[(0, 0x20_1000)]), ENOMEM);
        memory.absent = Some(RANGES + 16..RANGES + 17);
        let ranges = [(0x1000, 0x1000), (0x3000, 0x1000)];
        // The second range lies where nothing is.
        let control: Control = memory.get(ARG + 8);
        memory.put(
            ARG + 8,
            &Control {
                num_ranges: 2,
                ..control
            },
        );
        assert_eq!(call(log, memory, 32, START | SET), EFAULT);
        memory.absent = None;
        assert!(!log.is_active());
        assert_eq!(start_with(log, memory, 0x1000, &ranges), OK);
        assert_eq!(start_with(log, memory, 0x1000, &ranges), EBUSY);
    });
}

#[test]
fn g01_an_answer_that_cannot_be_written_leaves_nothing_started() {
    with_log(|log, memory| {
        memory.read_only = Some(ARG + 8..ARG + 16);
        assert_eq!(start_with(log, memory, 0x2000, &[(0, 0x2000)]), EFAULT);
        assert!(!log.is_active());
        memory.read_only = None;
        assert_eq!(start_with(log, memory, 0x2000, &[(0, 0x2000)]), OK);
        assert_eq!(
            memory.get::<Control>(ARG + 8).page_size,
            0x1000,
            "what there is"
        );
    });
}

#[test]
fn g01_report_checks_its_page_size_and_range() {
    with_log(|log, memory| {
        assert_eq!(
            report(log, memory, 0, 0x1000, 0x1000),
            EINVAL,
            "not started"
        );
        assert_eq!(
            start_with(log, memory, 0x1000, &[(0x10_0000, 0x8_0000)]),
            OK
        );
        for page_size in [0, 0x800, 0x1800, 0x3000] {
            assert_eq!(report(log, memory, u64::MAX, 2, page_size), EINVAL);
        }
        assert_eq!(report(log, memory, u64::MAX, 2, 0x1000), EOVERFLOW);
        assert_eq!(report(log, memory, 0x10_0000, 0, 0x1000), OK);
    });
}

#[test]
fn g01_a_report_has_what_was_written_in_the_ranges_of_the_start_once() {
    with_log(|log, memory| {
        let ranges = [(0x10_0000, 0x8_0000), (0x1_0000_0000, 0x4000)];
        assert_eq!(start_with(log, memory, 0x1000, &ranges), OK);
        log.record(0xf_ffff, 2);
        log.record(0x10_2fff, 2);
        log.record(0x17_ffff, 0x1000);
        log.record(0x1_0000_3000, u64::MAX);
        log.record(0x50_0000, 0x1000);
        log.record(0x10_4000, 0);
        let fetch = |log: &mut DmaLogging<'_>, memory: &mut Memory, iova, length, page_size| {
            memory.put(BITMAP, &[1u64 << 63, 0, 0]);
            assert_eq!(report(log, memory, iova, length, page_size), OK);
            memory.words(BITMAP, 3)
        };
        let keeps = 1 << 63;
        memory.read_only = Some(BITMAP..BITMAP + 1);
        assert_eq!(report(log, memory, 0x10_0000, 0x8_0000, 0x1000), EFAULT);
        memory.read_only = None;
        // Nothing was lost by that, and bits that were set stay set.
        let words = fetch(log, memory, 0x10_0000, 0x8_0000, 0x1000);
        assert_eq!(words, [keeps | 0b1101, 1 << 63, 0]);
        let words = fetch(log, memory, 0x10_0000, 0x8_0000, 0x1000);
        assert_eq!(words, [keeps, 0, 0]);
        let words = fetch(log, memory, 0xffff_f000, 0x6000, 0x2000);
        assert_eq!(words, [keeps | 0b100, 0, 0]);
        assert_eq!(call(log, memory, 8, STOP | SET), OK);
        assert!(!log.is_active());
    });
}

#[test]
fn g01_the_feature_call_checks_its_flags() {
    with_log(|log, memory| {
        assert_eq!(call(log, memory, 7, START | SET), EINVAL);
        for flags in [
            START,
            START | GET,
            REPORT | SET,
            START | 1 << 19,
            START | GET | SET,
        ] {
            assert_eq!(call(log, memory, 64, flags), EINVAL, "{flags:x}");
        }
        assert_eq!(call(log, memory, 64, 5 | SET), ENOTTY);
        for flags in [START | SET, STOP | SET, REPORT | GET] {
            assert_eq!(call(log, memory, 8, flags | PROBE), OK);
        }
        assert_eq!(call(log, memory, 31, START | SET), EINVAL);
        assert_eq!(call(log, memory, 39, REPORT | GET), EINVAL);
    });
}

#[test]
fn g01_structures_and_numbers_are_those_of_the_headers() {
    assert_eq!(START, c::VFIO_DEVICE_FEATURE_DMA_LOGGING_START);
    assert_eq!(STOP, c::VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP);
    assert_eq!(REPORT, c::VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT);
    assert_eq!(SET, c::VFIO_DEVICE_FEATURE_SET);
    assert_eq!(GET, c::VFIO_DEVICE_FEATURE_GET);
    assert_eq!(PROBE, c::VFIO_DEVICE_FEATURE_PROBE);
    assert_eq!(
        size_of::<FeatureHeader>(),
        size_of::<c::vfio_device_feature>()
    );
    type TheirControl = c::vfio_device_feature_dma_logging_control;
    assert_eq!(size_of::<Control>(), size_of::<TheirControl>());
    assert_eq!(
        offset_of!(Control, ranges),
        offset_of!(TheirControl, ranges)
    );
    type TheirReport = c::vfio_device_feature_dma_logging_report;
    assert_eq!(size_of::<Report>(), size_of::<TheirReport>());
    assert_eq!(offset_of!(Report, bitmap), offset_of!(TheirReport, bitmap));
    type TheirRange = c::vfio_device_feature_dma_logging_range;
    assert_eq!(size_of::<LoggingRange>(), size_of::<TheirRange>());
}
