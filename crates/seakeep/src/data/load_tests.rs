use super::*;
use crate::data::tokenize::tests::tokenizer;
use crate::data::{
    PromptMismatch, TokenizedPair, TruncatedCompletion, add_mismatched, read_pairs, tokenize_pairs,
};
use crate::progress::Silent;
use serde_json::json;

/// What is told, and how far it came.
#[derive(Default)]
struct Told {
    notes: Vec<String>,
    done: u64,
}

impl Progress for Told {
    fn start(&mut self, _: &str, _: u64) {}
    fn advance(&mut self, by: u64, _: &str) {
        self.done += by;
    }
    fn finish(&mut self) {}
    fn note(&mut self, line: &str) {
        self.notes.push(line.into());
    }
}

fn line(i: usize) -> String {
    let prompt = format!("p{} ", i % 7);
    format!("{}\n", json!({"prompt": prompt, "chosen": "ab".repeat(i % 40 + 1), "rejected": format!("r{i}")}))
}

fn all(rows: &Rows) -> Vec<TokenizedPair> {
    rows.iter().map(Result::unwrap).collect()
}

struct Place {
    directory: tempfile::TempDir,
    tokenizer: (tempfile::TempDir, Tokenizer),
    options: TokenizeOptions,
}

impl Place {
    /// Two files of more rows than a piece has.
    fn new() -> Place {
        let place = Place {
            directory: tempfile::tempdir().unwrap(),
            tokenizer: tokenizer(None, true),
            options: TokenizeOptions {
                max_length: Some(30),
                truncated_completion: TruncatedCompletion::Drop,
                ..TokenizeOptions::default()
            },
        };
        std::fs::create_dir(place.directory.path().join("data")).unwrap();
        place.write("a.jsonl", &(0..700).map(line).collect::<String>());
        place.write("b.jsonl", &format!("\n{}", (700..1300).map(line).collect::<String>()));
        place
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join("data").join(name), text).unwrap();
    }

    fn spec(&self) -> String {
        self.directory.path().join("data").to_string_lossy().into_owned()
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    fn load(
        &self,
        split: &str,
        kto: bool,
        cache: Option<&Path>,
        told: &mut dyn Progress,
    ) -> Result<(Rows, bool)> {
        let pairs = |pair: Pair| Ok(vec![pair]);
        let apart = |pair: Pair| pair.unpair();
        let loading = Loading {
            spec: &self.spec(),
            split,
            text_field: None,
            fit: if kto { &apart } else { &pairs },
            fit_name: format!("{kto}"),
            mismatched: kto,
            tokenizer: &self.tokenizer.1,
            options: &self.options,
            cache,
            keep: true,
        };
        loading.run(told)
    }
}

#[test]
fn a_few_at_a_time_gives_what_all_at_once_gives() {
    let place = Place::new();
    for kto in [false, true] {
        let mut pairs = read_pairs(&place.spec()).unwrap();
        for (split, range) in [("train", 0..1300), ("train[650:720]", 650..720), ("train[-5:]", 1295..1300)] {
            let mut rows = pairs[range.clone()].to_vec();
            if kto {
                rows = rows.iter().flat_map(|pair| pair.unpair().unwrap()).collect();
            }
            let (mut slow, report) = tokenize_pairs(&rows, &place.tokenizer.1, &place.options).unwrap();
            if kto {
                add_mismatched(&mut slow, &place.options).unwrap();
            }
            let mut told = Told::default();
            for cache in [None, Some(place.cache())] {
                let (fast, _) = place.load(split, kto, cache.as_deref(), &mut told).unwrap();
                assert_eq!(all(&fast), slow, "{split}");
                assert_eq!(*fast.report(), report);
            }
            assert_eq!((told.done, told.notes.len()), (2 * range.len() as u64, 0));
        }
        pairs.clear();
    }
}

#[test]
fn what_was_made_is_used_again_until_something_differs() {
    let mut place = Place::new();
    let known = |place: &Place| {
        let (rows, known) = place.load("train", false, Some(&place.cache()), &mut Silent).unwrap();
        (known, rows.len())
    };
    assert_eq!((known(&place), known(&place)), ((false, 1300), (true, 1300)));
    // Another limit is another file; the first is still there.
    place.options.max_length = Some(20);
    assert!(!known(&place).0 && known(&place).0);
    place.options.max_length = Some(30);
    assert!(known(&place).0);
    // The same size, with the time of its last change restored: on Unix still noticed.
    let file = place.directory.path().join("data/a.jsonl");
    let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("r5", "x5", 1)).unwrap();
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
    if cfg!(unix) {
        assert_eq!((known(&place), known(&place)), ((false, 1300), (true, 1300)));
    }
    // A file more, and one fewer.
    place.write("c.jsonl", &line(5));
    assert_eq!((known(&place), known(&place)), ((false, 1301), (true, 1301)));
    std::fs::remove_file(place.directory.path().join("data/c.jsonl")).unwrap();
    assert_eq!(known(&place), (false, 1300));
    // Replaced, not beside each other.
    assert_eq!(std::fs::read_dir(place.cache()).unwrap().count(), 2);
}

#[test]
fn a_damaged_file_is_made_anew_and_an_unwritable_place_is_none() {
    let place = Place::new();
    let load = |cache: &Path| {
        let mut told = Told::default();
        let (rows, known) = place.load("train[:3]", false, Some(cache), &mut told).unwrap();
        (all(&rows), known, told.notes)
    };
    let (first, ..) = load(&place.cache());
    let path = std::fs::read_dir(place.cache()).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&path).unwrap();
    for content in [&bytes[..bytes.len() - 1], b""] {
        std::fs::write(&path, content).unwrap();
        let (rows, known, notes) = load(&place.cache());
        assert!(rows == first && !known && notes.len() == 1 && notes[0].contains("made anew"), "{notes:?}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
    let (rows, known, notes) = load(Path::new("/proc/nowhere"));
    assert!(rows == first && !known && notes[0].contains("kept in memory"), "{notes:?}");
}

#[test]
fn the_first_bad_row_in_the_files_order_is_named_and_nothing_is_kept() {
    let mut place = Place::new();
    let lines: Vec<String> = (0..1300).map(line).collect();
    let with = |bad: &[(usize, &str)]| {
        let mut lines = lines.clone();
        bad.iter().for_each(|(i, text)| lines[*i] = format!("{text}\n"));
        lines
    };
    let misfit = r#"{"prompt": "a", "chosen": "b", "rejected": "r"}"#;
    place.options.prompt_mismatch = PromptMismatch::Error;
    for (bad, row, what) in [
        (vec![(20, misfit), (3, "{")], 4, "not JSON"),
        (vec![(1200, "{"), (600, misfit)], 601, "prefix"),
        (vec![(1200, "{}")], 1201, "missing"),
    ] {
        std::fs::remove_file(place.directory.path().join("data/b.jsonl")).ok();
        place.write("a.jsonl", &with(&bad).concat());
        let error = place.load("train", false, Some(&place.cache()), &mut Silent).err().unwrap().to_string();
        assert!(error.contains(&format!("a.jsonl, row {row}")) && error.contains(what), "{error}");
        assert_eq!(std::fs::read_dir(place.cache()).unwrap().count(), 0);
        // What is not asked for is not looked at.
        let good = format!("train[:{}]", bad.iter().map(|b| b.0).min().unwrap());
        assert!(place.load(&good, false, None, &mut Silent).is_ok());
    }
    place.write("a.jsonl", "");
    let error = place.load("train", false, None, &mut Silent).err().unwrap().to_string();
    assert!(error.contains("the file is empty"), "{error}");
}

#[test]
fn tokens_that_nobody_asks_for_are_removed_when_others_are_added() {
    let place = Place::new();
    let load = |split: &str| place.load(split, false, Some(&place.cache()), &mut Silent).unwrap().1;
    let files = || {
        let names = std::fs::read_dir(place.cache()).unwrap().map(|e| e.unwrap().path());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let age = |path: &Path| {
        let long_ago = SystemTime::now() - UNUSED - Duration::from_secs(60);
        std::fs::File::options().append(true).open(path).unwrap().set_modified(long_ago).unwrap();
    };
    assert!(!load("train[:10]"));
    let first = files().pop_first().unwrap();
    assert!(!load("train[:20]"));
    files().iter().for_each(|path| age(path));
    for name in ["tokens-of-mine.txt", ".tokens-1.rows.2.0.tmp"] {
        std::fs::write(place.cache().join(name), "").unwrap();
        age(&place.cache().join(name));
    }
    // One is asked for again; the other is not.
    assert!(load("train[:10]"));
    assert!(!load("train[:30]"));
    let left = files();
    assert!(left.len() == 3 && left.contains(&first), "{left:?}");
    assert!(left.contains(&place.cache().join("tokens-of-mine.txt")));
    assert!(load("train[:10]") && load("train[:30]") && !load("train[:20]"));
}
