use super::*;
use crate::formats::Message;
use serde_json::{Value, json};

/// A tokenizer whose tokens can be read off the text: one per character, `ab` merged, specials.
pub(in crate::data) fn tokenizer(template: Option<&str>, bos: bool) -> (tempfile::TempDir, Tokenizer) {
    let folder = tempfile::tempdir().unwrap();
    let mut vocab = serde_json::Map::new();
    for token in
        ["<s>", "</s>", "<u>", "<a>", "ab"].into_iter().map(String::from).chain((' '..='~').map(String::from))
    {
        let id = vocab.len();
        vocab.insert(token, id.into());
    }
    let special = |id: usize, text: &str| json!({"id": id, "content": text, "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false});
    let added: Vec<_> =
        ["<s>", "</s>", "<u>", "<a>"].iter().enumerate().map(|(i, t)| special(i, t)).collect();
    let post = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}});
    let tokenizer = json!({"version": "1.0", "added_tokens": added, "post_processor": if bos { post } else { Value::Null },
        "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]}});
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    (folder, tokenizer)
}

const CHAT: &str = "{% for m in messages %}{{ '<u>' if m.role == 'user' else '<a>' }}{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}";

fn pair(row: usize, columns: Value) -> Pair {
    let Value::Object(columns) = columns else { panic!("an object") };
    Pair::from_columns(Arc::from(Path::new("d.jsonl")), row, columns).unwrap()
}

fn standard(prompt: &str, chosen: &str, rejected: &str) -> Pair {
    pair(1, json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}))
}

fn text(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect::<Vec<_>>().join("|")
}

fn run(tokenizer: &Tokenizer, pair: &Pair, options: TokenizeOptions) -> Result<Vec<TokenizedPair>> {
    tokenize_pairs(std::slice::from_ref(pair), tokenizer, &options).map(|(rows, _)| rows)
}

fn row_error(result: Result<Vec<TokenizedPair>>, row: usize, parts: &[&str]) {
    match result {
        Err(error @ Error::Row { .. }) => {
            let text = error.to_string();
            assert!(text.contains(&format!("d.jsonl, row {row}")), "{text}");
            parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} in {text}"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn strings_get_bos_from_the_tokenizer_and_eos_once() {
    let (_folder, tokenizer) = tokenizer(None, true);
    let rows = run(&tokenizer, &standard("xab", "ab", "c</s>"), TokenizeOptions::default()).unwrap();
    assert_eq!(text(&tokenizer, &rows[0].prompt), "<s>|x|ab");
    assert_eq!(text(&tokenizer, &rows[0].chosen().completion), "ab|</s>");
    assert_eq!(text(&tokenizer, &rows[0].rejected().completion), "c|</s>");
    assert_eq!((rows[0].index, rows[0].row, rows[0].backed_off), (0, 1, 0));
}

#[test]
fn conversations_go_through_the_template_alone() {
    let (_folder, tokenizer) = tokenizer(Some(CHAT), true);
    let turn = |role: &str, text: &str| json!([{"role": role, "content": text}]);
    let row = json!({"prompt": turn("user", "q"), "chosen": turn("assistant", "y"), "rejected": turn("assistant", "n")});
    let rows = run(&tokenizer, &pair(1, row), TokenizeOptions::default()).unwrap();
    assert_eq!(text(&tokenizer, &rows[0].prompt), "<u>|q|</s>|<a>");
    assert_eq!(text(&tokenizer, &rows[0].chosen().completion), "y|</s>");
}

#[test]
fn tools_and_template_arguments_reach_the_template() {
    let template = "{{ tools[0].name }}{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{% endif %}";
    let (_folder, tokenizer) = tokenizer(Some(template), false);
    let turn = |text: &str| json!([{"role": "user", "content": text}]);
    for tools in [json!([{"name": "T"}]), json!("[{\"name\": \"T\"}]")] {
        let row = json!({"prompt": turn("q"), "chosen": turn("y"), "rejected": turn("n"), "tools": tools, "chat_template_kwargs": {"mood": "M"}});
        let rows = run(&tokenizer, &pair(1, row), TokenizeOptions::default()).unwrap();
        assert_eq!(text(&tokenizer, &rows[0].prompt), "T|M|q");
    }
    let row = json!({"prompt": turn("q"), "chosen": turn("y"), "rejected": turn("n"), "tools": "[{"});
    row_error(run(&tokenizer, &pair(1, row), TokenizeOptions::default()), 1, &["key `tools`", "not JSON"]);
}

#[test]
fn a_prompt_that_is_no_prefix() {
    let (_folder, tokenizer) = tokenizer(None, false);
    // "xa" + "b" merges across the boundary for the chosen branch only.
    let split = standard("xa", "b", "c");
    let parts = ["key `prompt`", "not a prefix", "`chosen`", "\"a\"", "\"ab\"", "prompt_mismatch"];
    row_error(run(&tokenizer, &split, TokenizeOptions::default()), 1, &parts);

    let diverge = TokenizeOptions { prompt_mismatch: PromptMismatch::Diverge, ..Default::default() };
    let rows = run(&tokenizer, &split, diverge).unwrap();
    assert_eq!(text(&tokenizer, &rows[0].prompt), "x");
    assert_eq!(text(&tokenizer, &rows[0].chosen().completion), "ab|</s>");
    assert_eq!(text(&tokenizer, &rows[0].rejected().completion), "a|c|</s>");
    assert_eq!(rows[0].backed_off, 1);

    let drop = TokenizeOptions { prompt_mismatch: PromptMismatch::Drop, ..Default::default() };
    let (rows, report) = tokenize_pairs(&[split, standard("x", "b", "c")], &tokenizer, &drop).unwrap();
    assert_eq!((rows.len(), rows[0].index, report.dropped_mismatch, report.dropped()), (1, 1, 1, 1));

    // An implicit prompt's boundary is ours: TRL's rule, counted.
    let implicit = pair(1, json!({"chosen": "xab", "rejected": "xac"}));
    let (rows, report) = tokenize_pairs(&[implicit], &tokenizer, &TokenizeOptions::default()).unwrap();
    assert_eq!(text(&tokenizer, &rows[0].prompt), "x");
    assert_eq!((report.backed_off, report.backed_off_tokens), (1, 1));
}

#[test]
fn a_template_that_renders_the_prompt_otherwise_is_a_mismatch() {
    let template = "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let (_folder, tokenizer) = tokenizer(Some(template), false);
    let turn = |text: &str| json!([{"role": "user", "content": text}]);
    let row = json!({"prompt": turn("q"), "chosen": turn("y"), "rejected": turn("n")});
    row_error(run(&tokenizer, &pair(3, row), TokenizeOptions::default()), 3, &["not a prefix", "0 of its 2"]);
}

#[test]
fn empty_completions_are_errors() {
    // The template forgets the last turn: no token follows the prompt.
    let (_folder, forgetful) = tokenizer(Some("{{ messages[0].content }}"), false);
    let turn = |text: &str| json!([{"role": "user", "content": text}]);
    let row = json!({"prompt": turn("q"), "chosen": turn("y"), "rejected": turn("n")});
    row_error(
        run(&forgetful, &pair(9, row), TokenizeOptions::default()),
        9,
        &["key `chosen`", "empty completion"],
    );
    // The first token of a sequence is not predicted, so one alone teaches nothing.
    let one = TokenizeOptions {
        max_length: Some(1),
        truncation_mode: TruncationMode::KeepEnd,
        ..Default::default()
    };
    let (_folder, plain) = tokenizer(None, false);
    row_error(run(&plain, &standard("x", "y", "z"), one), 1, &["nothing is predicted"]);
}

#[test]
fn keep_start_cuts_ends_and_refuses_what_would_be_cut_away() {
    let (_folder, tokenizer) = tokenizer(None, false);
    let options = TokenizeOptions { max_length: Some(4), ..Default::default() };
    let pairs = [standard("xy", "12345", "1"), standard("x", "1", "1")];
    let (rows, report) = tokenize_pairs(&pairs, &tokenizer, &options).unwrap();
    assert_eq!(text(&tokenizer, &rows[0].chosen().completion), "1|2");
    assert_eq!(
        (rows[0].chosen().truncated, rows[0].rejected().truncated, rows[0].chosen().prompt_skip),
        (4, 0, 0)
    );
    assert_eq!(rows[0].shared_prompt(), Some(&rows[0].prompt[..]));
    assert_eq!((report.truncated_chosen, report.truncated_rejected, report.truncated_tokens), (1, 0, 4));
    assert_eq!((report.prompt_tokens, report.chosen_tokens, report.rejected_tokens), (3, 4, 4));
    assert_eq!(report.chosen_lengths.max, 6);

    let long = standard("wxyz", "1", "2");
    row_error(
        run(&tokenizer, &long, options.clone()),
        1,
        &["key `prompt`", "4 tokens", "`max_length` is 4", "keep_end"],
    );
    let drop = TokenizeOptions { truncated_completion: TruncatedCompletion::Drop, ..options };
    let (rows, report) = tokenize_pairs(&[long], &tokenizer, &drop).unwrap();
    assert_eq!((rows.len(), report.rows, report.kept, report.dropped_truncated), (0, 1, 0, 1));
}

/// As TRL's collator: a mismatched completion is cut by the prompt that it is set beside, whatever its own left of it.
#[test]
fn a_mismatched_completion_is_cut_beside_its_new_prompt() {
    let (_folder, tokenizer) = tokenizer(None, false);
    let options = TokenizeOptions { max_length: Some(4), keep_cut: true, ..Default::default() };
    let row = |row, prompt: &str, completion: &str| {
        pair(row, json!({"prompt": prompt, "completion": completion, "label": true}))
    };
    let pairs = [row(1, "xyz", "12345"), row(2, "x", "67")];
    let (mut rows, _) = tokenize_pairs(&pairs, &tokenizer, &options).unwrap();
    add_mismatched(&mut rows, &options).unwrap();
    let texts = |row: &TokenizedPair| {
        row.branches.iter().map(|b| text(&tokenizer, &b.completion)).collect::<Vec<_>>()
    };
    assert_eq!(texts(&rows[0]), ["1", "6"]);
    assert_eq!(texts(&rows[1]), ["6|7|</s>", "1|2|3"]);
    // No more is kept than there could be room for.
    assert_eq!(text(&tokenizer, &rows[0].chosen().cut), "2|3|4");
}

#[test]
fn keep_end_cuts_each_branch_by_itself() {
    let (_folder, tokenizer) = tokenizer(None, false);
    let options = TokenizeOptions {
        max_length: Some(4),
        truncation_mode: TruncationMode::KeepEnd,
        ..Default::default()
    };
    let rows = run(&tokenizer, &standard("wxyz", "12345", "1"), options).unwrap();
    let row = &rows[0];
    assert_eq!(text(&tokenizer, &row.chosen().completion), "3|4|5|</s>");
    assert_eq!((row.prompt_of(row.chosen()), row.predicted(row.chosen())), (&[][..], 3));
    assert_eq!(text(&tokenizer, row.prompt_of(row.rejected())), "y|z");
    assert_eq!((row.rejected().prompt_skip, row.predicted(row.rejected())), (2, 2));
    assert_eq!(row.shared_prompt(), None);
    assert_eq!(row.prompt.len(), 4);
}

#[test]
fn the_first_bad_row_is_reported_whatever_the_threads() {
    let (_folder, tokenizer) = tokenizer(None, false);
    let mut pairs: Vec<Pair> = (1..500).map(|row| Pair { row, ..standard("x", "y", "z") }).collect();
    for row in [321, 77, 450] {
        pairs[row - 1] = Pair { row, ..standard("xa", "b", "c") };
    }
    let result = tokenize_pairs(&pairs, &tokenizer, &TokenizeOptions::default());
    row_error(result.map(|(rows, _)| rows), 77, &["not a prefix"]);
}

#[test]
fn what_the_tokenizer_lacks_is_said() {
    let (folder, tokenizer) = tokenizer(None, false);
    let turn = |text: &str| Text::Chat(vec![Message::new("user", text)]);
    let mut chat = Pair { prompt: Some(turn("q")), ..standard("x", "y", "z") };
    chat.completions.iter_mut().for_each(|c| c.text = turn("y"));
    row_error(run(&tokenizer, &chat, TokenizeOptions::default()), 1, &["no chat template"]);
    std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    let without = Tokenizer::open(folder.path()).unwrap();
    let error = run(&without, &standard("x", "y", "z"), TokenizeOptions::default()).unwrap_err().to_string();
    assert!(error.contains("eos_token"), "{error}");
}
