use super::*;
use serde_json::json;

fn pair(columns: Value) -> Result<Pair> {
    let Value::Object(columns) = columns else { panic!("an object") };
    Pair::from_columns(Arc::from(Path::new("d.jsonl")), 7, columns)
}

fn refused(columns: Value, key: &str, part: &str) {
    match pair(columns).and_then(|pair| pair.split()) {
        Err(Error::Row { row: 7, key: found, what, .. }) => {
            assert_eq!(found.as_deref(), Some(key), "{what}");
            assert!(what.contains(part), "{what}");
        }
        other => panic!("{other:?}"),
    }
}

fn cut(chosen: &str, rejected: &str) -> (String, String, String) {
    let split = pair(json!({"chosen": chosen, "rejected": rejected})).unwrap().split().unwrap();
    assert!(split.implicit);
    let text = |text: &Text| match text {
        Text::Standard(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    (text(&split.prompt.unwrap()), text(&split.completions[0].text), text(&split.completions[1].text))
}

/// Each line is what `trl.extract_prompt` (1.16) gives.
#[test]
fn implicit_prompts_are_trls() {
    let s = |a: &str, b: &str, c: &str| (a.to_string(), b.to_string(), c.to_string());
    assert_eq!(cut("the sky is blue", "the sky is green"), s("the sky is", " blue", " green"));
    assert_eq!(cut("the sky is blue", "the sky is black"), s("the sky is bl", "ue", "ack"));
    // No difference before one ends: one character is left to the shorter.
    assert_eq!(cut("abc", "abcdef"), s("ab", "c", "cdef"));
    // Characters, not bytes; a difference within the same leading byte.
    assert_eq!(cut("è é", "è ê"), s("è", " é", " ê"));
    assert_eq!(cut("日本語", "日本人"), s("日本", "語", "人"));
    assert_eq!(cut("👍🏽a", "👍🏾a"), s("👍", "🏽a", "🏾a"));
    assert_eq!(cut("xa", "ya"), s("", "xa", "ya"));
}

#[test]
fn implicit_conversations_share_their_first_messages() {
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let chosen = json!([turn("user", "hi"), turn("assistant", "hello")]);
    let rejected = json!([turn("user", "hi"), turn("assistant", "go away")]);
    let split = pair(json!({"chosen": chosen, "rejected": rejected})).unwrap().split().unwrap();
    assert_eq!(split.prompt, Some(Text::Chat(vec![Message::new("user", "hi")])));
    assert_eq!(split.completions[1].text, Text::Chat(vec![Message::new("assistant", "go away")]));
    // A string prompt that repeats the first message is ignored.
    let same =
        pair(json!({"prompt": "hi", "chosen": chosen, "rejected": rejected})).unwrap().split().unwrap();
    assert_eq!(same, split);
    let only = json!([turn("assistant", "hello")]);
    refused(json!({"chosen": only, "rejected": [turn("assistant", "no")]}), "chosen", "no first message");
}

#[test]
fn explicit_prompts_are_taken_as_they_are() {
    let row = json!({"prompt": "a ", "chosen": "b", "rejected": "b", "margin": 0.5});
    let pair = pair(row).unwrap();
    assert_eq!(pair.extra["margin"], 0.5);
    let split = pair.split().unwrap();
    assert!(!split.implicit);
    assert_eq!(split.prompt, Some(Text::Standard("a ".into())));
}

#[test]
fn messages_keep_their_other_keys_but_not_null_ones() {
    let message = json!({"role": "assistant", "content": "x", "name": "bo", "tool_calls": null});
    let row =
        json!({"prompt": [{"role": "user", "content": "q"}], "chosen": [message], "rejected": [message]});
    let Text::Chat(chosen) = &pair(row).unwrap().completions[0].text else { panic!() };
    assert_eq!(chosen[0].extra.keys().collect::<Vec<_>>(), ["name"]);
}

#[test]
fn rows_that_cannot_be_used() {
    refused(json!({"prompt": "p", "chosen": "c", "labels": 1}), "rejected", "`prompt`, `chosen`, `labels`");
    refused(json!({}), "chosen", "found: none");
    refused(json!({"chosen": null, "rejected": "r"}), "chosen", "missing or null");
    refused(json!({"chosen": 3, "rejected": "r"}), "chosen", "a number, expected a string");
    refused(json!({"chosen": "c", "rejected": {"text": "r"}}), "rejected", "an object");
    refused(json!({"chosen": "c", "rejected": []}), "rejected", "both must be the same");
    refused(json!({"chosen": [], "rejected": []}), "chosen", "empty completion");
    refused(json!({"prompt": "p", "chosen": "", "rejected": "r"}), "chosen", "empty completion");
    refused(json!({"chosen": "same", "rejected": "same"}), "rejected", "the same as `chosen`");
    let turn = |content: Value| json!([{"role": "assistant", "content": content}]);
    let user = json!([{"role": "user", "content": "q"}]);
    refused(
        json!({"prompt": user, "chosen": turn(json!("")), "rejected": turn(json!("r"))}),
        "chosen",
        "empty completion",
    );
    refused(
        json!({"prompt": [], "chosen": turn(json!("c")), "rejected": turn(json!("r"))}),
        "prompt",
        "empty list",
    );
    refused(json!({"prompt": user, "chosen": "c", "rejected": "r"}), "prompt", "all must be the same");
    refused(
        json!({"prompt": user, "chosen": turn(json!(5)), "rejected": turn(json!("r"))}),
        "chosen[0]",
        "`content` is a number",
    );
    refused(
        json!({"prompt": ["q"], "chosen": turn(json!("c")), "rejected": turn(json!("r"))}),
        "prompt[0]",
        "expected a message",
    );
    refused(
        json!({"prompt": [{"from": "human", "value": "q"}], "chosen": turn(json!("c")), "rejected": turn(json!("r"))}),
        "prompt[0]",
        "`from`, `value`",
    );
}

#[test]
fn several_rejected_completions_and_labelled_ones() {
    let roles = |row: Value| -> Vec<(String, Role)> {
        pair(row).unwrap().completions.into_iter().map(|c| (c.key, c.role)).collect()
    };
    let key = |key: &str, role| (key.to_string(), role);
    assert_eq!(
        roles(json!({"prompt": "p", "chosen": "c", "rejected": ["a", "b"]})),
        [key("chosen", Role::Chosen), key("rejected[0]", Role::Rejected), key("rejected[1]", Role::Rejected)]
    );
    assert_eq!(
        roles(json!({"prompt": "p", "completion": "c", "label": false})),
        [key("completion", Role::Rejected)]
    );
    let turn = |text: &str| json!([{"role": "assistant", "content": text}]);
    let user = json!([{"role": "user", "content": "q"}]);
    let row = json!({"prompt": user, "chosen": turn("c"), "rejected": [turn("a"), turn("b")]});
    assert_eq!(roles(row).len(), 3);
    assert_eq!(roles(json!({"prompt": "p", "completion": "c", "label": 1}))[0].1, Role::Chosen);
    // A column `label` beside a pair is just a column.
    let labelled = pair(json!({"prompt": "p", "chosen": "c", "rejected": "r", "label": 1})).unwrap();
    assert_eq!((labelled.completions.len(), &labelled.extra["label"]), (2, &json!(1)));
    let alone = labelled.unpair().unwrap();
    assert!(alone.iter().all(Pair::is_unpaired));
    assert_eq!(alone[1].completions[0].role, Role::Rejected);
    refused(
        json!({"chosen": "c", "rejected": ["a", "b"]}),
        "prompt",
        "only a row of one chosen and one rejected",
    );
    refused(json!({"completion": "c", "label": true}), "prompt", "missing or null");
    refused(json!({"prompt": "p", "completion": "c", "label": "yes"}), "label", "true (good) or false (bad)");
    refused(json!({"prompt": "p", "completion": "c"}), "label", "missing or null");
    refused(json!({"prompt": "p", "chosen": "c", "rejected": ["a", 3]}), "rejected[1]", "a number");
}
