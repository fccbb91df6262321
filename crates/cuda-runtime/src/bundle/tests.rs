//! Bundles that were written well, and bundles that were not.

#![allow(clippy::unwrap_used)]

use super::*;

/// PTX says what it is for; machine code is a byte that does.
fn output(source: &str, kind: Kind, architecture: &str) -> Output {
    let content = format!("{kind} {source} {architecture} {}", "x".repeat(300)).into_bytes();
    Output { source: source.into(), kind, architecture: architecture.parse().unwrap(), content }
}

/// A source for everything, and a template.
fn outputs() -> Vec<Output> {
    let cubins = ["80", "86", "89", "90a", "100a", "120"];
    let mut outputs: Vec<Output> = cubins.map(|architecture| output("add", Kind::Cubin, architecture)).to_vec();
    for source in ["add", "slots"] {
        outputs.extend(["80", "90a"].map(|architecture| output(source, Kind::Ptx, architecture)));
    }
    outputs
}

fn bundle() -> Bundle {
    Bundle::read(write(&outputs()).unwrap()).unwrap()
}

/// The architecture that an output says it is for.
fn architecture_of(content: &[u8]) -> String {
    std::str::from_utf8(content).unwrap().split(' ').nth(2).unwrap().to_owned()
}

#[test]
fn what_was_written_is_read() {
    let (bundle, outputs) = (bundle(), outputs());
    assert_eq!(bundle.entries().len(), outputs.len());
    for (entry, output) in bundle.entries().iter().zip(&outputs) {
        assert_eq!((&entry.source, entry.kind, entry.architecture), (&output.source, output.kind, output.architecture));
        assert_eq!(bundle.content(entry).unwrap(), output.content);
        assert!(entry.stored_bytes() < entry.size, "{entry:?}");
    }
    assert_eq!(write(&outputs).unwrap(), write(&outputs).unwrap());
    assert!(Bundle::read(write(&[]).unwrap()).unwrap().entries().is_empty());
}

#[test]
fn the_nearest_machine_code_that_runs_there_is_chosen() {
    let cases = [
        ((7, 5), None),
        ((8, 0), Some("80")),
        ((8, 6), Some("86")),
        ((8, 7), Some("86")),
        ((8, 9), Some("89")),
        ((9, 0), Some("90a")),
        ((10, 0), Some("100a")),
        ((10, 3), None),
        ((11, 0), None),
        ((12, 0), Some("120")),
        ((12, 1), Some("120")),
        ((13, 0), None),
        ((8, u32::MAX), Some("89")),
        ((u32::MAX, 0), None),
    ];
    for (capability, expected) in cases {
        let cubin = bundle().cubin("add", capability).unwrap();
        assert_eq!(cubin.as_deref().map(architecture_of).as_deref(), expected, "{capability:?}");
        assert_eq!(bundle().cubin("slots", capability).unwrap(), None);
    }
    let older: Vec<Output> = outputs().into_iter().filter(|output| output.architecture.minor == 0).collect();
    let older = Bundle::read(write(&older).unwrap()).unwrap();
    for capability in [(8, 6), (8, 9)] {
        assert_eq!(architecture_of(&older.cubin("add", capability).unwrap().unwrap()), "80");
    }
}

#[test]
fn specific_ptx_is_for_its_own_architecture_alone() {
    let cases = [((8, 0), "80"), ((8, 9), "80"), ((9, 0), "90a"), ((10, 0), "80"), ((12, 0), "80"), ((13, 7), "80")];
    for (capability, expected) in cases {
        for source in ["add", "slots"] {
            let ptx = bundle().ptx(source, capability).unwrap();
            assert_eq!(architecture_of(ptx.as_bytes()), expected, "{source} on {capability:?}");
        }
    }
}

#[test]
fn what_can_not_be_had_is_said() {
    let error = bundle().ptx("add", (7, 5)).unwrap_err();
    assert_eq!(error, BundleError::TooOld { name: "add".into(), capability: (7, 5) });
    assert!(error.to_string().contains("capability 7.5; they need 8.0"), "{error}");
    let unknown = BundleError::UnknownSource("sub".into());
    assert_eq!(bundle().ptx("sub", (9, 0)).unwrap_err(), unknown);
    assert_eq!(bundle().cubin("sub", (9, 0)).unwrap_err(), unknown);
}

#[test]
fn outputs_that_the_format_has_no_place_for_are_refused() {
    for name in ["", "Add", "a/b", "ä", "a b", &"a".repeat(256)] {
        let error = write(&[output(name, Kind::Ptx, "80")]).unwrap_err();
        assert!(error.to_string().contains("is no name for a source"), "{error}");
    }
    let twice = [output("add", Kind::Ptx, "80"), output("add", Kind::Ptx, "80")];
    assert!(write(&twice).unwrap_err().to_string().contains("is there twice"));
}

#[test]
fn architectures_are_named_as_nvcc_names_them() {
    for (text, major, minor, specific) in [("80", 8, 0, false), ("90a", 9, 0, true), ("103a", 10, 3, true)] {
        let architecture: Architecture = text.parse().unwrap();
        assert_eq!(architecture, Architecture { major, minor, specific });
        assert_eq!(architecture.to_string(), text);
    }
    for text in ["", "a", "8", "8a", "sm_80", "90b", "99990", "8é"] {
        assert!(text.parse::<Architecture>().is_err(), "{text}");
    }
}

/// All that a bundle lists; `None` if something is wrong with it, which is said to be damage.
fn contents(bytes: Vec<u8>) -> Option<Vec<Vec<u8>>> {
    let all = Bundle::read(bytes)
        .and_then(|bundle| bundle.entries().iter().map(|entry| bundle.content(entry)).collect::<Result<_, _>>());
    match all {
        Ok(contents) => Some(contents),
        Err(BundleError::Damaged(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn bundles_that_break_off_or_go_on_are_damaged() {
    let whole = write(&outputs()).unwrap();
    assert!(contents(whole.clone()).is_some());
    for length in 0..whole.len() {
        assert!(contents(whole[..length].to_vec()).is_none(), "{length} of {} bytes", whole.len());
    }
    assert!(contents([whole, vec![0]].concat()).is_none());
}

#[test]
fn no_changed_byte_gives_other_code() {
    let whole = write(&outputs()).unwrap();
    let written = contents(whole.clone());
    for position in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[position] ^= flip;
            let read = contents(bytes);
            assert!(read.is_none() || read == written, "byte {position} ^ {flip:#x}");
        }
    }
}

#[test]
fn sizes_that_lie_are_found_before_anything_is_allocated() {
    let one = write(&[output("add", Kind::Ptx, "80")]).unwrap();
    let (count, stored, inflated) = (MAGIC.len(), MAGIC.len() + 4 + 8, MAGIC.len() + 4 + 12);
    for (position, name) in [(count, "count"), (stored, "stored"), (inflated, "inflated")] {
        for lie in [0, 1, 299, 1 << 20, (MAXIMUM_OUTPUT + 1) as u32, u32::MAX - 1, u32::MAX] {
            let mut bytes = one.clone();
            let place: &mut [u8; 4] = (&mut bytes[position..position + 4]).try_into().unwrap();
            let truth = std::mem::replace(place, lie.to_le_bytes());
            assert!(truth == lie.to_le_bytes() || contents(bytes).is_none(), "{name} = {lie}");
        }
    }
}

#[test]
fn a_stream_that_inflates_to_more_than_it_says_is_stopped() {
    // 32 MiB of zeros take 32 KiB; the directory says that they are 100 bytes.
    let content = vec![0; 32 << 20];
    let output = Output { content, ..output("add", Kind::Cubin, "80") };
    let mut bytes = write(&[output]).unwrap();
    let size = MAGIC.len() + 4 + 12;
    bytes[size..size + 4].copy_from_slice(&100_u32.to_le_bytes());
    let error = Bundle::read(bytes).unwrap().cubin("add", (8, 0)).unwrap_err();
    assert!(error.to_string().contains("does not inflate to the 100 bytes"), "{error}");
}

#[test]
fn an_output_twice_is_refused() {
    let mut bytes = write(&[output("add", Kind::Ptx, "80"), output("bdd", Kind::Ptx, "80")]).unwrap();
    let second = MAGIC.len() + 4 + 1 + 3 + 4 + 8 + HASH_BYTES + 1;
    assert_eq!(bytes[second], b'b');
    bytes[second] = b'a';
    assert!(Bundle::read(bytes).unwrap_err().to_string().contains("ptx 80 of add is there twice"));
}

const MODULE: &str = r#"//
// Generated by a compiler; .entry of nothing {
.version 9.0
.target sm_90a, debug
.address_size 64
	// .globl	first
.extern .shared .align 16 .b8 dynamic[];
.const .align 4 .b8 table[8] = {1, 2, 3, 4,
 5, 6, 7, 8};
.global .align 1 .b8 name[4] = {125, 0}; /* } */
.file	1 "a;{.cu"
.func  (.param .b32 result) helper(.param .b32 x);
.func  (.param .b32 result) helper(
	.param .b32 x
)
{
	{ ret; }
}

.visible .entry first(
	.param .u64 first_param_0
)
.maxntid 256, 1, 1
{
	.pragma "nounroll }";
	// begin }
	//@rows %r1
	{ // nested
	ret;
	}
}
	// .globl	second
.weak .entry second ( ) { ret; }
.entry first_of_all { ret; }
.section .debug_str { .b8 1 }
"#;

#[test]
fn one_kernel_is_taken_out_with_all_that_is_not_a_kernel() {
    assert_eq!(entry_names(MODULE), ["first", "second", "first_of_all"]);
    let shared = [
        ".version 9.0",
        ".target sm_90a, debug",
        ".address_size 64",
        ".extern .shared .align 16 .b8 dynamic[];",
        ".const .align 4 .b8 table[8] = {1, 2, 3, 4,\n 5, 6, 7, 8};",
        ".global .align 1 .b8 name[4] = {125, 0};",
        ".file\t1 \"a;{.cu\"",
        ".func  (.param .b32 result) helper(.param .b32 x);",
        ".func  (.param .b32 result) helper(\n\t.param .b32 x\n)\n{\n\t{ ret; }\n}",
    ];
    let section = ".section .debug_str { .b8 1 }";
    let first = MODULE.split_once(".visible").unwrap().1.split_once("\n\t// .globl").unwrap().0;
    let first = format!(".visible{first}");
    for (name, body) in [
        ("first", first.as_str()),
        ("second", ".weak .entry second ( ) { ret; }"),
        ("first_of_all", ".entry first_of_all { ret; }"),
    ] {
        let expected = [shared.as_slice(), &[body, section]].concat().join("\n") + "\n";
        let found = entry(MODULE, name).unwrap();
        assert_eq!(found, expected, "{name}");
        assert_eq!(entry(&found, name).unwrap(), expected, "taken out twice");
    }
}

#[test]
fn kernels_that_are_not_there_or_break_off_are_none() {
    for name in ["", "third", "firs", "helper", ".entry"] {
        assert_eq!(entry(MODULE, name), None, "{name}");
    }
    for broken in ["", ".entry first(", ".entry first() {", ".entry first() { /* }", ".entry first() { \" }", "}", "é"]
    {
        assert_eq!(entry(broken, "first"), None, "{broken}");
        assert!(entry_names(broken).is_empty(), "{broken}");
    }
    for end in (0..MODULE.len()).filter(|end| MODULE.is_char_boundary(*end)) {
        let _ = entry(&MODULE[..end], "first");
    }
}
