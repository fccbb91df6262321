//! What tuning found is found again, and whatever happens to its file costs a search and nothing else.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use allotrope_runtime::TuningCache;
use allotrope_runtime::tuning_cache::{LONGEST_KEY, MOST_PARAMETERS};
use proptest::prelude::*;

const FINGERPRINT: &str = "a processor";

type Entries = BTreeMap<String, Vec<u32>>;

fn keep(folder: &Path, entries: &Entries) {
    let mut cache = TuningCache::open(Some(folder), FINGERPRINT);
    entries.iter().for_each(|(key, parameters)| cache.set(key.clone(), parameters));
    cache.save();
}

/// What a cache knows of some keys.
fn known<'a>(folder: &Path, keys: impl IntoIterator<Item = &'a String>) -> Entries {
    let cache = TuningCache::open(Some(folder), FINGERPRINT);
    keys.into_iter().filter_map(|key| Some((key.clone(), cache.get(key)?.to_vec()))).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn only_file(folder: &Path) -> PathBuf {
    let files = files(folder);
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

fn sample() -> Entries {
    let entry = |number: u32| (format!("linear {number}x2048 bf16, 2 threads"), vec![number, 7, u32::MAX]);
    (0..5).map(entry).collect()
}

fn entries() -> impl Strategy<Value = Entries> {
    let parameters = prop::collection::vec(any::<u32>(), 0..=MOST_PARAMETERS);
    prop::collection::btree_map(any::<String>().prop_filter("short", |key| key.len() <= LONGEST_KEY), parameters, 0..20)
}

proptest! {
    #[test]
    fn what_was_set_is_found_again(entries in entries()) {
        let folder = tempfile::tempdir().unwrap();
        keep(folder.path(), &entries);
        prop_assert_eq!(known(folder.path(), entries.keys()), entries);
    }

    #[test]
    fn a_damaged_file_is_not_believed_and_is_mended(entries in entries(), at in any::<prop::sample::Index>(), bit in 0..8u32, cut in any::<bool>()) {
        prop_assume!(!entries.is_empty());
        let folder = tempfile::tempdir().unwrap();
        keep(folder.path(), &entries);
        let path = only_file(folder.path());
        let whole = fs::read(&path).unwrap();
        let at = at.index(whole.len());
        let mut damaged = whole.clone();
        if cut { damaged.truncate(at) } else { damaged[at] ^= 1 << bit }
        fs::write(&path, &damaged).unwrap();
        prop_assert_eq!(known(folder.path(), entries.keys()), Entries::new());
        keep(folder.path(), &entries);
        prop_assert_eq!(fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn any_bytes_are_a_file_without_entries(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let folder = tempfile::tempdir().unwrap();
        keep(folder.path(), &sample());
        fs::write(only_file(folder.path()), bytes).unwrap();
        prop_assert_eq!(known(folder.path(), sample().keys()), Entries::new());
    }
}

#[test]
fn another_fingerprint_is_another_file_and_a_renamed_file_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    keep(folder.path(), &sample());
    let of_one = only_file(folder.path());
    let mut other = TuningCache::open(Some(folder.path()), "another processor");
    let key = sample().into_keys().next().unwrap();
    assert_eq!(other.get(&key), None);
    other.set(key.clone(), &[1]);
    other.save();
    assert_eq!(known(folder.path(), sample().keys()), sample());
    let of_other = files(folder.path()).into_iter().find(|path| *path != of_one).unwrap();
    fs::copy(of_one, of_other).unwrap();
    assert_eq!(TuningCache::open(Some(folder.path()), "another processor").get(&key), None);
}

#[test]
fn what_processes_keep_one_after_the_other_is_kept_together() {
    let folder = tempfile::tempdir().unwrap();
    let open = || TuningCache::open(Some(folder.path()), FINGERPRINT);
    let (mut one, mut two) = (open(), open());
    one.set("a", &[1]);
    one.set("both", &[1]);
    two.set("b", &[2]);
    two.set("both", &[2]);
    one.save();
    two.save();
    let all = open();
    assert_eq!(["a", "b", "both"].map(|key| all.get(key).unwrap().to_vec()), [[1], [2], [2]], "the last wins");
    assert_eq!(two.get("a"), Some(&[1][..]), "who keeps something sees what others have kept");
}

#[test]
fn many_write_at_once_and_nobody_sees_a_part() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..6_u32 {
            let folder = folder.path();
            scope.spawn(move || {
                for round in 0..10 {
                    let mut cache = TuningCache::open(Some(folder), FINGERPRINT);
                    if let Some(parameters) = cache.get("shared") {
                        assert_eq!(parameters.len(), 20);
                        assert!(parameters.iter().all(|parameter| *parameter == parameters[0]), "{parameters:?}");
                    }
                    cache.set("shared", &[writer * 100 + round; 20]);
                    cache.save();
                    if round % 4 == 3 {
                        // Some take it away meanwhile.
                        files(folder).first().map(fs::remove_file);
                    }
                }
            });
        }
    });
    keep(folder.path(), &sample());
    assert!(only_file(folder.path()).extension().unwrap() == "tuning", "nothing unfinished is left over");
    assert_eq!(known(folder.path(), sample().keys()), sample());
}

#[test]
fn a_folder_that_goes_away_or_cannot_be_written_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("below").join("it");
    let mut cache = TuningCache::open(Some(&below), FINGERPRINT);
    for _ in 0..2 {
        cache.set("a", &[1]);
        cache.save();
        assert_eq!(TuningCache::open(Some(&below), FINGERPRINT).get("a"), Some(&[1][..]));
        fs::remove_dir_all(folder.path().join("below")).unwrap();
        assert_eq!(cache.get("a"), Some(&[1][..]));
    }
    let file = folder.path().join("file");
    fs::write(&file, "is no folder").unwrap();
    let mut cache = TuningCache::open(Some(&file.join("cache")), FINGERPRINT);
    cache.set("a", &[1]);
    cache.save();
    assert_eq!(cache.get("a"), Some(&[1][..]));
    assert_eq!(fs::read_to_string(file).unwrap(), "is no folder");
}

#[test]
fn what_is_no_file_or_too_large_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    keep(folder.path(), &sample());
    let path = only_file(folder.path());
    // As long as a disk, but not on it.
    fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(known(folder.path(), sample().keys()), Entries::new());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(known(folder.path(), sample().keys()), Entries::new());
    keep(folder.path(), &sample());
    assert!(path.is_dir());
}

#[test]
fn what_is_too_large_to_keep_is_known_until_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (long, many) = ("k".repeat(LONGEST_KEY + 1), vec![1; MOST_PARAMETERS + 1]);
    let mut cache = TuningCache::open(Some(folder.path()), FINGERPRINT);
    cache.set(long.clone(), &[1]);
    cache.set("many", &many);
    cache.set("fits", &[2]);
    cache.save();
    assert_eq!((cache.get(&long), cache.get("many")), (Some(&[1][..]), Some(many.as_slice())));
    let again = TuningCache::open(Some(folder.path()), FINGERPRINT);
    assert_eq!((again.get(&long), again.get("many"), again.get("fits")), (None, None, Some(&[2][..])));
}

#[test]
fn what_others_kept_gives_way_where_all_together_is_too_large() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str| -> Entries {
        let entry = |number: u32| (format!("{name} {number} {}", "k".repeat(LONGEST_KEY - 40)), vec![number]);
        (0..700).map(entry).collect()
    };
    let (first, second) = (of("first"), of("second"));
    keep(folder.path(), &first);
    assert_eq!(known(folder.path(), first.keys()), first);
    keep(folder.path(), &second);
    assert_eq!(known(folder.path(), second.keys()), second);
    assert!(fs::metadata(only_file(folder.path())).unwrap().len() <= (1 << 20) + 1000);
}
