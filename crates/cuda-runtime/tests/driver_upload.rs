//! Uploads through the ring of pinned memory.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use allotrope_cuda_runtime::driver::{Context, Fault};
use allotrope_cuda_runtime::upload::{Piece, Uploader};
use common::{Bench, outside};
use rand::RngExt;

fn bytes_of(bench: &Bench, buffer: &allotrope_cuda_runtime::driver::Buffer) -> Vec<u8> {
    let mut pinned = bench.context.allocate_pinned(buffer.bytes()).unwrap();
    bench.stream.copy_to_host(&mut pinned, 0, buffer, 0..buffer.bytes()).unwrap();
    pinned.as_slice().unwrap().to_vec()
}

#[test]
fn pieces_of_all_sizes_arrive() {
    if outside("pieces_of_all_sizes_arrive", &[]).is_some() {
        return;
    }
    let mut bench = Bench::new();
    for (threads, slot) in [(1, 1), (1, 100), (3, 1000), (4, 4096), (2, 1 << 20)] {
        let mut uploader = Uploader::with_slots(&bench.context, threads, slot).unwrap();
        for _ in 0..3 {
            let mut sizes = vec![0, 1, 15, 16, 17, slot.min(5000), slot.min(5000) + 1, 3 * slot.min(5000) + 5];
            sizes.extend((0..20).map(|_| bench.random.random_range(0..3000)));
            let sources: Vec<Vec<u8>> =
                sizes.iter().map(|size| (0..*size).map(|_| bench.random.random_range(0..=254)).collect()).collect();
            // One behind the other, with a gap that nothing may write.
            let total: usize = sizes.iter().map(|size| size + 3).sum();
            let buffer = bench.context.allocate(total).unwrap();
            bench.stream.fill(&buffer, 255).unwrap();
            bench.stream.synchronize().unwrap();
            let (mut pieces, mut expected) = (Vec::new(), Vec::new());
            for source in &sources {
                pieces.push(Piece { bytes: source, to: &buffer, offset: expected.len() });
                expected.extend(source);
                expected.extend([255; 3]);
            }
            let report = uploader.upload(&pieces).unwrap();
            assert_eq!(report.bytes as usize, sizes.iter().sum::<usize>());
            assert!(bytes_of(&bench, &buffer) == expected, "{threads} threads, slots of {slot} bytes");
        }
    }
}

#[test]
fn large_pieces_go_through_the_usual_ring() {
    if outside("large_pieces_go_through_the_usual_ring", &[]).is_some() {
        return;
    }
    let mut bench = Bench::new();
    let before = bench.context.memory().unwrap();
    let mut uploader = Uploader::new(&bench.context).unwrap();
    let mut source = vec![0u8; (40 << 20) + 7];
    source.iter_mut().step_by(5).for_each(|byte| *byte = bench.random.random());
    let (large, small) = (bench.context.allocate(source.len()).unwrap(), bench.context.allocate(100).unwrap());
    let pieces = [
        Piece { bytes: &source, to: &large, offset: 0 },
        Piece { bytes: &source[..60], to: &small, offset: 40 },
        Piece { bytes: &source[60..100], to: &small, offset: 0 },
    ];
    let report = uploader.upload(&pieces).unwrap();
    assert_eq!(report.bytes as usize, source.len() + 100);
    assert!(report.time.as_nanos() > 0);
    assert!(bytes_of(&bench, &large) == source);
    assert_eq!(bytes_of(&bench, &small), [&source[60..100], &source[..60]].concat());
    assert_eq!(uploader.upload(&[]).unwrap().bytes, 0);
    drop((large, small, uploader));
    assert_eq!(bench.context.memory().unwrap(), before);
}

#[test]
fn a_piece_that_does_not_fit_is_refused() {
    if outside("a_piece_that_does_not_fit_is_refused", &[]).is_some() {
        return;
    }
    let context = Context::open().unwrap();
    let buffer = context.allocate(100).unwrap();
    let mut uploader = Uploader::with_slots(&context, 2, 64).unwrap();
    for (length, offset) in [(101, 0), (1, 100), (60, 41), (1, usize::MAX)] {
        let source = vec![1; length];
        let error = uploader.upload(&[Piece { bytes: &source, to: &buffer, offset }]).unwrap_err();
        assert_eq!((error.fault(), error.code()), (&Fault::Program, None), "{error}");
    }
    uploader.upload(&[Piece { bytes: &[1; 100], to: &buffer, offset: 0 }]).unwrap();
}

#[test]
fn an_error_stops_all() {
    let failing = [("ALLOTROPE_EMULATOR_FAIL", "cuMemcpyHtoDAsync_v2:40:700,cuMemHostAlloc:9:2")];
    if outside("an_error_stops_all", &failing).is_some() {
        return;
    }
    let context = Context::open().unwrap();
    let buffer = context.allocate(1 << 20).unwrap();
    let mut uploader = Uploader::with_slots(&context, 4, 1024).unwrap();
    let source = vec![3; 1 << 20];
    let error = uploader.upload(&[Piece { bytes: &source, to: &buffer, offset: 0 }]).unwrap_err();
    assert_eq!(error.code().unwrap(), "CUDA_ERROR_ILLEGAL_ADDRESS");
    assert!(context.check().is_err());
    assert!(uploader.upload(&[]).is_err(), "and later uploads say so");
    drop((uploader, buffer, context));
    let context = Context::open().unwrap();
    let error = Uploader::with_slots(&context, 1, 1024).unwrap_err().to_string();
    assert!(error.contains("pinned memory of the host"), "{error}");
}
