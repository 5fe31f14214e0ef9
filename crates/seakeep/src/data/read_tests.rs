use std::io::Write;

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn write(folder: &Path, name: &str, content: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_string()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn message(spec: &str) -> String {
    read_pairs(spec).unwrap_err().to_string()
}

const ROW: &str = r#"{"prompt": "p", "chosen": "c", "rejected": "r"}"#;

#[test]
fn lines_arrays_and_gzip_hold_the_same_rows() {
    let folder = folder();
    let lines = format!("{ROW}\r\n\n  {ROW}");
    let array = format!(" \n[{ROW},\n{ROW}]");
    for (name, content, rows) in [
        ("a.jsonl", lines.clone().into_bytes(), [1, 3]),
        ("a.json", lines.clone().into_bytes(), [1, 3]),
        ("bom.jsonl", [b"\xef\xbb\xbf", lines.as_bytes()].concat(), [1, 3]),
        ("a.jsonl.gz", gzip(lines.as_bytes()), [1, 3]),
        // Several gzip members, as `cat a.gz b.gz` makes them.
        ("b.jsonl.gz", [gzip(format!("{ROW}\n\n").as_bytes()), gzip(ROW.as_bytes())].concat(), [1, 3]),
        ("b.json", array.clone().into_bytes(), [1, 2]),
        ("b.json.gz", gzip(array.as_bytes()), [1, 2]),
    ] {
        let pairs = read_pairs(&write(folder.path(), name, &content)).unwrap();
        assert_eq!(pairs.iter().map(|pair| pair.row).collect::<Vec<_>>(), rows, "{name}");
    }
}

#[test]
fn directories_and_patterns_take_files_in_order() {
    let folder = folder();
    for name in ["b.jsonl", "a.json", "notes.txt"] {
        write(folder.path(), name, ROW.as_bytes());
    }
    let directory = folder.path().to_str().unwrap().to_string();
    for spec in [directory.clone(), format!("{directory}/*.json*")] {
        let files: Vec<_> =
            read_pairs(&spec).unwrap().iter().map(|p| p.file.file_name().unwrap().to_owned()).collect();
        assert_eq!(files, ["a.json", "b.jsonl"]);
    }
    // And those below, as `datasets` finds them; neither hidden ones nor what is about the data.
    for (below, name) in [("data", "c.jsonl"), ("data/.cache", "d.jsonl"), (".", "dataset_infos.json")] {
        std::fs::create_dir_all(folder.path().join(below)).unwrap();
        write(&folder.path().join(below), name, if name == "c.jsonl" { ROW.as_bytes() } else { b"{}" });
    }
    let found = read_pairs(&directory).unwrap();
    let names: Vec<_> = found.iter().map(|pair| pair.file.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["a.json", "b.jsonl", "c.jsonl"]);
    assert!(message(&format!("{directory}/*.parquet")).contains("no file matches"));
    assert!(message(&format!("{directory}/[")).contains("not a glob pattern"));
    assert!(message(&format!("{directory}/none.jsonl")).contains("no such file"));
    let text = message(&write(folder.path(), "notes.md", ROW.as_bytes()));
    assert!(text.contains("notes.md") && text.contains(".jsonl"), "{text}");
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    assert!(message(&format!("{directory}/empty")).contains("no data file"));
}

#[test]
fn malformed_lines_name_file_and_row() {
    let folder = folder();
    let broken = |name: &str, content: &[u8], parts: &[&str]| {
        let text = message(&write(folder.path(), name, content));
        for part in [&[name], parts].concat() {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    };
    broken(
        "cut.jsonl",
        format!("{ROW}\n{{\"prompt\": \"p\", \"cho").as_bytes(),
        &["row 2", "not JSON", "column"],
    );
    broken(
        "pretty.jsonl",
        b"{\n  \"prompt\": \"p\"\n}\n",
        &["row 1", "not JSON", "a row stands on one line"],
    );
    broken("list.jsonl", b"[1, 2]", &["row 1", "not an object"]);
    broken(
        "missing.jsonl",
        br#"{"prompt": "p", "chosen": "c"}"#,
        &["row 1", "key `rejected`", "`prompt`, `chosen`"],
    );
    broken("utf8.jsonl", b"{\"chosen\": \"\xff\"}", &["row 1", "not JSON"]);
    broken("array.json", format!("[{ROW}, 3]").as_bytes(), &["row 2", "not an object"]);
    broken("cut.json", format!("[{ROW},\n{{").as_bytes(), &["row 2", "not JSON"]);
    broken("none.json", b"[]", &["no rows"]);
    broken("empty.jsonl", b"", &["no rows"]);
    broken("blank.jsonl", b"\n \n", &["no rows"]);
    let packed = gzip(ROW.repeat(50).as_bytes());
    broken("short.jsonl.gz", &packed[..packed.len() / 2], &["row 1", "cut short"]);
    broken("fake.jsonl.gz", b"not gzip at all", &["row 1"]);
    broken("fake.parquet", b"PAR1 not really PAR1", &["Parquet"]);
}

#[test]
fn a_line_without_end_is_refused() {
    let folder = folder();
    let packed = gzip(&vec![b' '; MAX_LINE_BYTES + 2]);
    let text = message(&write(folder.path(), "long.jsonl.gz", &packed));
    assert!(text.contains("longer than"), "{text}");
}

#[test]
fn parquet_holds_strings_and_nested_messages() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let plain = read_pairs(folder.join("standard.parquet").to_str().unwrap()).unwrap();
    assert_eq!(plain.len(), 2);
    assert_eq!(plain[1].row, 2);
    assert_eq!(plain[0].prompt, Some(super::super::Text::Standard("Say héllo.".into())));
    assert_eq!(plain[0].extra["score"], 0.5);
    let chat = read_pairs(folder.join("chat.parquet").to_str().unwrap()).unwrap();
    let super::super::Text::Chat(chosen) = &chat[0].completions[0].text else { panic!("messages") };
    assert_eq!(chosen[0], crate::formats::Message::new("assistant", "hello"));
    // Cut short anywhere, it is an error and not a panic.
    let bytes = std::fs::read(folder.join("chat.parquet")).unwrap();
    let temporary = self::folder();
    for len in (0..bytes.len()).step_by(97) {
        let text = message(&write(temporary.path(), "cut.parquet", &bytes[..len]));
        assert!(text.contains("cut.parquet"), "{text}");
    }
}
