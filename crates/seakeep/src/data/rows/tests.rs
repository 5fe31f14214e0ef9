use super::*;
use crate::data::labels::Role;
use crate::data::tokenize::Branch;

fn branch(role: Role, completion: &[u32], prompt_skip: usize) -> Branch {
    Branch { role, completion: completion.to_vec(), prompt_skip, truncated: prompt_skip, cut: vec![] }
}

/// Rows with everything that a row can have.
fn pairs() -> Vec<TokenizedPair> {
    let row = |i: usize, prompt: &[u32], branches: Vec<Branch>, labels: Labels| TokenizedPair {
        file: Arc::from(Path::new(if i < 2 { "a.jsonl" } else { "b.jsonl" })),
        row: 10 + i,
        index: 2 * i,
        prompt: prompt.to_vec(),
        branches,
        labels,
        backed_off: i,
    };
    let group = |name: &str| Labels { group: Some(name.into()), ..Labels::default() };
    vec![
        row(
            0,
            &[1, 2, 3],
            vec![branch(Role::Chosen, &[4], 0), branch(Role::Rejected, &[5, 6], 2)],
            group("x"),
        ),
        row(1, &[], vec![branch(Role::Chosen, &[7, 8], 0)], Labels::default()),
        row(
            2,
            &[9],
            vec![
                branch(Role::Rejected, &[1], 1),
                branch(Role::Mismatched, &[2], 1),
                branch(Role::Prompt, &[3], 0),
            ],
            Labels { soft: Some(0.1 + 0.2), group: Some("y".into()), rewards: Some([-0.0, 1e-300]) },
        ),
        row(3, &[9], vec![branch(Role::Chosen, &[u32::MAX], 0)], group("x")),
    ]
}

fn written(mismatched: bool) -> Result<Vec<u8>> {
    let mut writer = RowsWriter::new(Vec::new(), Path::new("m"), "made", (Some(4), mismatched));
    pairs().iter().try_for_each(|pair| writer.push(pair))?;
    writer.finish(TokenizeReport { rows: 8, ..TokenizeReport::default() })
}

fn on_disk(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.rows");
    std::fs::write(&path, bytes).unwrap();
    (directory, path)
}

#[test]
fn rows_come_back_from_memory_and_from_a_file() {
    let (_directory, path) = on_disk(&written(false).unwrap());
    for rows in [Rows::of(&pairs()).unwrap(), Rows::open(&path).unwrap()] {
        let found: Vec<TokenizedPair> = rows.iter().map(Result::unwrap).collect();
        assert_eq!(found, pairs());
        let rewards = found[2].labels.rewards.unwrap();
        assert_eq!(rewards[0].to_bits(), (-0.0f64).to_bits());
        for (i, pair) in pairs().iter().enumerate() {
            assert_eq!(rows.name(i).unwrap(), pair.fingerprint().number());
            assert_eq!(rows.place(i), (&pair.file, pair.row));
            assert_eq!(rows.group(i), pair.labels.group.as_deref());
        }
        assert_eq!((rows.longest(0), rows.longest(1)), (4, 2));
        assert_eq!(rows.several(&[3, 0]).unwrap(), [pairs()[3].clone(), pairs()[0].clone()]);
    }
    let rows = Rows::open(&path).unwrap();
    assert_eq!((rows.made_from(), rows.report().rows), ("made", 8));
    assert!(Rows::of(&[]).unwrap().is_empty());
}

#[test]
fn the_fingerprint_knows_order_tokens_and_labels() {
    let of = |pairs: &[TokenizedPair]| Rows::of(pairs).unwrap().fingerprint().to_string();
    let (all, mut changed, mut labelled) = (pairs(), pairs(), pairs());
    changed[1].branches[0].completion[1] = 9;
    labelled[1].labels.group = Some("x".into());
    let mut turned = pairs();
    turned.swap(0, 1);
    assert_eq!(of(&all), of(&pairs()));
    for other in [&changed[..], &labelled, &turned, &all[..3]] {
        assert_ne!(of(&all), of(other));
    }
}

#[test]
fn partners_are_those_of_add_mismatched() {
    // Prompts by letter; the ring's seam lies within a run of the same, at its end, or between.
    for prompts in ["abc", "aab", "abb", "aabbaa", "abaab", "ba", "abcaa"] {
        let row = |(i, c): (usize, char)| TokenizedPair {
            prompt: vec![c as u32],
            branches: vec![Branch { cut: vec![102, 103], ..branch(Role::Chosen, &[i as u32, 100, 101], 0) }],
            ..pairs()[1].clone()
        };
        let mut slow: Vec<TokenizedPair> = prompts.chars().enumerate().map(row).collect();
        let mut writer = RowsWriter::new(Vec::new(), Path::new("m"), "", (Some(4), true));
        slow.iter().for_each(|pair| writer.push(pair).unwrap());
        let rows = Rows::in_memory(writer.finish(TokenizeReport::default()).unwrap()).unwrap();
        let options = crate::data::TokenizeOptions { max_length: Some(4), ..Default::default() };
        crate::data::add_mismatched(&mut slow, &options).unwrap();
        assert_eq!(rows.iter().map(Result::unwrap).collect::<Vec<_>>(), slow, "{prompts}");
        let names: Vec<u128> = slow.iter().map(|pair| pair.fingerprint().number()).collect();
        assert_eq!((0..rows.len()).map(|i| rows.name(i).unwrap()).collect::<Vec<_>>(), names);
    }
    let mut writer = RowsWriter::new(Vec::new(), Path::new("m"), "", (None, true));
    (0..3).for_each(|_| writer.push(&pairs()[1]).unwrap());
    let error = writer.finish(TokenizeReport::default()).unwrap_err().to_string();
    assert!(error.contains("a.jsonl") && error.contains("same prompt"), "{error}");
}

/// Opens and reads everything.
fn read(path: &Path) -> Result<Vec<TokenizedPair>> {
    Rows::open(path)?.iter().collect()
}

#[test]
fn every_changed_byte_and_every_cut_is_noticed() {
    let bytes = written(true).unwrap();
    let (_directory, path) = on_disk(&bytes);
    let whole = read(&path).unwrap();
    for i in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[i] ^= 0x10;
        std::fs::write(&path, &changed).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("r.rows"), "byte {i}: {error}");
        std::fs::write(&path, &bytes[..i]).unwrap();
        assert!(read(&path).is_err(), "cut at {i}");
    }
    // A record is looked at when it is visited, and then the row is named.
    let mut changed = bytes.clone();
    changed[0] ^= 1;
    std::fs::write(&path, &changed).unwrap();
    let rows = Rows::open(&path).unwrap();
    assert_eq!(rows.get(2).unwrap(), whole[2]);
    let error = rows.get(0).unwrap_err().to_string();
    assert!(error.contains("row 1 of") && error.contains("removed") && !path.exists(), "{error}");
    // Another version, and a size that no file has.
    for (at, with) in [(0, &b"SKROWS.9"[..]), (8, &[0xff; 8][..])] {
        let mut changed = bytes.clone();
        let at = bytes.len() - record::FOOT + at;
        changed[at..at + 8].copy_from_slice(with);
        std::fs::write(&path, &changed).unwrap();
        assert!(Rows::open(&path).is_err_and(|e| e.to_string().contains("not tokenised rows")));
    }
}
