use super::*;
use serde_json::{Value, json};

fn learnt(columns: Value) -> Result<Pair> {
    let Value::Object(columns) = columns else { panic!("an object") };
    Pair::learnt_from_columns(Arc::from(Path::new("d.jsonl")), 4, columns, "text")
}

fn turn(role: &str, text: &str) -> Value {
    json!([{"role": role, "content": text}])
}

#[test]
fn three_kinds_of_rows() {
    let kind = |columns: Value| {
        let pair = learnt(columns).unwrap();
        assert_eq!((pair.completions.len(), pair.completions[0].role), (1, Role::Chosen));
        (pair.completions[0].key.clone(), pair.said().join("|"), pair.prompt.is_some())
    };
    assert_eq!(kind(json!({"text": "a b", "label": 3})), ("text".into(), "a b".into(), false));
    assert_eq!(kind(json!({"messages": turn("user", "hi")})), ("messages".into(), "hi".into(), false));
    let row = json!({"prompt": "q", "messages": turn("user", "q"), "text": null});
    assert_eq!(kind(row), ("messages".into(), "q".into(), false));
    assert_eq!(kind(json!({"prompt": "a", "completion": " b"})), ("completion".into(), "a| b".into(), true));
    let row = json!({"prompt": turn("user", "q"), "completion": turn("assistant", "y")});
    assert_eq!(kind(row), ("completion".into(), "q|y".into(), true));
}

#[test]
fn what_is_no_text_names_row_and_key() {
    for (columns, key, part) in [
        (json!({}), "text", "found: none"),
        (json!({"content": "a"}), "text", "`prompt` and `completion`; found: `content`"),
        (json!({"text": null}), "text", "missing or null"),
        (json!({"text": 3}), "text", "a number"),
        (json!({"text": ""}), "text", "an empty text"),
        (json!({"text": turn("user", "a")}), "text", "called `messages`"),
        (json!({"messages": "a"}), "messages", "expected a list of messages"),
        (json!({"messages": []}), "messages", "an empty text"),
        (json!({"messages": [{"content": "a"}]}), "messages[0]", "`role` is missing"),
        (json!({"prompt": "a"}), "completion", "missing or null"),
        (json!({"prompt": "a", "chosen": "b", "rejected": "c"}), "completion", "found: `prompt`, `chosen`"),
        (json!({"completion": "a"}), "prompt", "called `text`"),
        (json!({"prompt": "a", "completion": ""}), "completion", "an empty text"),
        (json!({"prompt": "a", "completion": turn("assistant", "b")}), "prompt", "all must be the same"),
        (json!({"prompt": 1, "completion": "b"}), "prompt", "a number"),
        (json!({"prompt": "a", "completion": "b", "text": "c"}), "", "`completion` and `text`: which"),
    ] {
        match learnt(columns.clone()) {
            Err(Error::Row { row: 4, key: found, what, .. }) => {
                assert_eq!(found.unwrap_or_default(), key, "{columns}: {what}");
                assert!(what.contains(part), "{columns}: {what}");
            }
            other => panic!("{columns}: {other:?}"),
        }
    }
}

#[test]
fn lines_of_a_text_file_are_texts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.txt");
    std::fs::write(&path, "one two \r\n\n three\n").unwrap();
    let rows = read_texts(path.to_str().unwrap(), "text").unwrap();
    let said: Vec<_> = rows.iter().map(|r| (r.row, r.said()[0])).collect();
    assert_eq!(said, [(1, "one two "), (3, " three")]);
    // A README among data is not data.
    let error = read_texts(directory.path().to_str().unwrap(), "text").unwrap_err().to_string();
    assert!(error.contains("no data file"), "{error}");
    std::fs::write(&path, b"good\n\xff\xfe\n").unwrap();
    let error = read_texts(path.to_str().unwrap(), "text").unwrap_err().to_string();
    assert!(error.contains("a.txt, row 2") && error.contains("UTF-8"), "{error}");
}
