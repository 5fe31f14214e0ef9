//! The house rules that a compiler does not hold: which module may import which, where `unsafe` may stand, how long
//! a file may be. ARCHITECTURE.md explains them; the checker itself is tested on strings at the end.

use std::path::{Path, PathBuf};

/// The modules of the library from left to right. A module imports only from its left; modules of one row do
/// not import each other.
const RANKS: [&[&str]; 19] = [
    &["error", "progress"],
    &["formats"],
    &["data"],
    &["batch"],
    &["model"],
    &["logps"],
    &["objective"],
    &["environments", "optim"],
    &["checkpoint"],
    &["scoring"],
    &["reference", "eval"],
    &["train"],
    &["generate", "reward"],
    &["preferences", "eval_record", "theory"],
    &["policy_record"],
    &["stats"],
    &["judge", "recommend"],
    &["report", "world"],
    &["quickstart"],
];

/// Arrows to the left that are refused all the same: an objective sees log-probabilities, never a model.
const REFUSED: [(&str, &str); 2] = [("objective", "model"), ("objective", "data")];

/// Files outside seakeep-kernels that may hold `unsafe`, and what must stand on the line: maps of files.
const UNSAFE_MAPS: &str = "seakeep/src/formats/mapped.rs";

/// A SAFETY comment stands at most this many lines above its `unsafe`.
const SAFETY_WITHIN: usize = 5;

/// Longest file, in lines.
const MAX_LINES: usize = 600;

/// What re-exports in `lib.rs` stand for.
const REEXPORTS: [(&str, &str); 2] = [("Error", "error"), ("Result", "error")];

// Reading source: comments and strings blanked, test modules cut out, paths found.

/// The source with comments and the contents of strings and characters replaced by spaces; lines stay where they are.
fn code_only(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(source.len());
    let mut i = 0;
    while i < chars.len() {
        let end = match (at(i), at(i + 1)) {
            ('/', '/') => (i..chars.len()).find(|&j| at(j) == '\n').unwrap_or(chars.len()),
            ('/', '*') => end_of_block_comment(&chars, i),
            ('"', _) => end_of_string(&chars, i),
            ('r', '"' | '#')
                if !is_word(i.checked_sub(1).map_or(' ', at)) || at(i.wrapping_sub(1)) == 'b' =>
            {
                end_of_raw_string(&chars, i).unwrap_or(i)
            }
            // A character, unless it is a lifetime.
            ('\'', '\\') => (i + 3..chars.len()).find(|&j| at(j) == '\'').map_or(chars.len(), |j| j + 1),
            ('\'', _) if at(i + 2) == '\'' => i + 3,
            _ => i,
        };
        if end == i {
            out.push(at(i));
            i += 1;
        } else {
            out.extend(chars[i..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            i = end;
        }
    }
    out
}

fn end_of_block_comment(chars: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i.min(chars.len())
}

fn end_of_string(chars: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

/// The end of `r"..."` or `r#"..."#` with any number of hashes; `None` for what only looks like one (`r#type`).
fn end_of_raw_string(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars[start + 1..].iter().take_while(|&&c| c == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let closes = |j: usize| chars[j] == '"' && chars[j + 1..].iter().take(hashes).all(|&c| c == '#');
    (open + 1..chars.len().saturating_sub(hashes)).find(|&j| closes(j)).map(|j| j + 1 + hashes)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `code` (from [`code_only`]) without the items that stand under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::new();
    let mut rest = code;
    while let Some(start) = rest.find(MARK) {
        out.push_str(&rest[..start]);
        rest = &rest[start + MARK.len()..];
        let mut depth = 0;
        let end = rest.char_indices().find_map(|(i, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            (depth == 0 && (c == '}' || c == ';')).then_some(i + 1)
        });
        rest = &rest[end.unwrap_or(rest.len())..];
    }
    out + rest
}

/// Where `word` stands by itself in `code`.
fn words<'c>(code: &'c str, word: &'c str) -> impl Iterator<Item = usize> + 'c {
    code.match_indices(word)
        .map(|(i, _)| i)
        .filter(move |&i| !code[..i].ends_with(is_word) && !code[i + word.len()..].starts_with(is_word))
}

/// The first names of what follows a path's `::`: one name, or those of a group.
fn first_names(after: &str) -> Vec<String> {
    let name = |text: &str| text.trim_start().chars().take_while(|&c| is_word(c)).collect::<String>();
    let after = after.trim_start();
    let Some(group) = after.strip_prefix('{') else { return vec![name(after)] };
    let (mut depth, mut names, mut start) = (0, Vec::new(), 0);
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&group[start..i]));
                start = i + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|n| !n.is_empty());
    names
}

/// The library's modules that a file of the module `path` (`["train", "run"]`) names by `crate::` or `super::`, its
/// own left out.
fn imports(source: &str, path: &[&str]) -> Vec<String> {
    let code = without_tests(&code_only(source));
    let mut found = Vec::new();
    for i in words(&code, "crate") {
        if let Some(after) = code[i + "crate".len()..].trim_start().strip_prefix("::") {
            found.extend(first_names(after));
        }
    }
    for i in words(&code, "super") {
        if code[..i].trim_end().ends_with("::") {
            continue; // counted with the first of the chain
        }
        let (mut supers, mut after) = (0, &code[i..]);
        while let Some(next) = after.strip_prefix("super").and_then(|a| a.trim_start().strip_prefix("::")) {
            (supers, after) = (supers + 1, next.trim_start());
        }
        if supers == path.len() {
            found.extend(first_names(after));
        }
    }
    let module = |name: String| {
        REEXPORTS.iter().find(|(public, _)| *public == name).map_or(name, |(_, module)| module.to_string())
    };
    let mut found: Vec<String> = found.into_iter().map(module).filter(|m| m != path[0]).collect();
    found.sort();
    found.dedup();
    found
}

/// What is wrong with `from` importing `to`.
fn arrow(from: &str, to: &str) -> Option<String> {
    let rank = |module: &str| RANKS.iter().position(|row| row.contains(&module));
    match (rank(from), rank(to)) {
        (None, _) => Some(format!("`{from}` has no rank; give it one in tests/layering.rs")),
        (_, None) => {
            Some(format!("`{from}` imports `{to}`, which has no rank; give it one in tests/layering.rs"))
        }
        _ if REFUSED.contains(&(from, to)) => {
            Some(format!("`{from}` imports `{to}`, which it must not know"))
        }
        (Some(f), Some(t)) if t < f => None,
        _ => Some(format!("`{from}` imports `{to}`, which stands to its right (or beside it)")),
    }
}

/// What is wrong with the `unsafe` of a file: where it may not stand, or lines without their comment.
fn unsafe_faults(file: &str, source: &str) -> Vec<String> {
    let lines: Vec<&str> = source.lines().collect();
    let code = code_only(source);
    let mut faults = Vec::new();
    for (n, line) in code.lines().enumerate() {
        if words(line, "unsafe").next().is_none() {
            continue;
        }
        let at = format!("{file}:{}", n + 1);
        let a_map = file == UNSAFE_MAPS
            && ["Mmap::map(", "Mmap::unchecked_advise_range("].iter().any(|call| line.contains(call));
        if !file.starts_with("seakeep-kernels/") && !a_map {
            faults.push(format!("{at}: `unsafe` outside seakeep-kernels that is no map of a file"));
        }
        // What is called only in an `unsafe` block says what it asks for in the paragraph above.
        let asks = line.contains("unsafe fn")
            && lines[..n].iter().rev().take_while(|l| !l.trim().is_empty()).any(|l| l.contains("# Safety"));
        if !asks && !lines[n.saturating_sub(SAFETY_WITHIN)..=n].iter().any(|l| l.contains("// SAFETY:")) {
            faults
                .push(format!("{at}: `unsafe` without a SAFETY comment in the {SAFETY_WITHIN} lines above"));
        }
    }
    faults
}

// The tree.

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Every Rust file under `dir`, in order, as `(path from dir, text)`.
fn sources(dir: &Path) -> Vec<(String, String)> {
    fn walk(dir: &Path, to: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            match entry.path() {
                path if path.is_dir() => walk(&path, to),
                path if path.extension().is_some_and(|e| e == "rs") => to.push(path),
                _ => {}
            }
        }
    }
    let mut paths = Vec::new();
    walk(dir, &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(dir).unwrap().to_str().unwrap().replace('\\', "/");
        (name, std::fs::read_to_string(path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

/// `train/run.rs` to `["train", "run"]`; `None` for the root and for files of tests.
fn module_path(file: &str) -> Option<Vec<&str>> {
    let path: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
    let last = *path.last()?;
    match last {
        "lib" | "tests" => None,
        _ if last.ends_with("_tests") => None,
        "mod" => Some(path[..path.len() - 1].to_vec()),
        _ => Some(path),
    }
}

#[test]
fn modules_import_only_from_their_left() {
    let (mut faults, mut arrows) = (Vec::new(), 0);
    for (file, source) in sources(&crates().join("seakeep/src")) {
        let Some(path) = module_path(&file) else { continue };
        for to in imports(&source, &path) {
            arrows += 1;
            faults.extend(arrow(path[0], &to).map(|fault| format!("{file}: {fault}")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(arrows > 50, "only {arrows} arrows seen: the checker reads nothing");
}

#[test]
fn every_module_has_a_rank() {
    let root = std::fs::read_to_string(crates().join("seakeep/src/lib.rs")).unwrap();
    let declared = root.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';'));
    let mut declared: Vec<&str> = declared.collect();
    let mut ranked: Vec<&str> = RANKS.concat();
    declared.sort_unstable();
    ranked.sort_unstable();
    assert_eq!(declared, ranked);
}

#[test]
fn objectives_compute_on_numbers_alone() {
    for (file, source) in sources(&crates().join("seakeep/src/objective")) {
        let code = without_tests(&code_only(&source));
        assert_eq!(words(&code, "seakeep_kernels").count(), 0, "objective/{file} reaches for kernels");
    }
}

#[test]
fn unsafe_stands_where_it_may_and_says_why() {
    let all = sources(&crates());
    let faults: Vec<String> = all.iter().flat_map(|(file, source)| unsafe_faults(file, source)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_file_is_too_long() {
    for (file, source) in sources(&crates()) {
        let lines = source.lines().count();
        assert!(lines <= MAX_LINES, "{file} has {lines} lines; split it at {MAX_LINES}");
    }
}

// The checker itself.

#[test]
fn an_arrow_to_the_right_is_found_in_every_spelling() {
    for (source, path, to) in [
        ("use crate::train::run;", &["model", "decoder"][..], "train"),
        ("use crate::{Error, train::{self, log}, batch::Batch};", &["model"], "train"),
        ("pub use crate :: report :: table;", &["data"], "report"),
        ("fn f() { let x: crate::quickstart::Options; }", &["world", "draw"], "quickstart"),
        ("macro_rules! m { () => { $crate::report::table() } }", &["eval"], "report"),
        ("use super::report;", &["eval"], "report"),
        ("use super::super::quickstart;", &["world", "draw"], "quickstart"),
        ("use super::super::{Error, train};", &["model", "layer"], "train"),
        ("#[cfg(test)] mod tests { use crate::data::A; } use crate::eval::evaluate;", &["optim"], "eval"),
        ("let s = \"//\"; use crate::eval::evaluate;", &["optim"], "eval"),
        ("let c = '\"'; use crate::eval::evaluate; let d = '\"';", &["optim"], "eval"),
    ] {
        let found = imports(source, path);
        assert!(found.iter().any(|m| m == to), "{source}: {found:?}");
        assert!(arrow(path[0], to).is_some(), "{source}");
    }
}

#[test]
fn what_is_no_arrow_is_not_taken_for_one() {
    for (source, path) in [
        ("// use crate::train::run;", &["model"][..]),
        ("/// See [`train`](crate::train).\nfn f() {}", &["model"]),
        ("/* /* nested */ use crate::train::run; */", &["model"]),
        ("const S: &str = \"use crate::train::run;\";", &["model"]),
        ("const S: &str = r#\"a \" use crate::train::run;\"#;", &["model"]),
        ("#[cfg(test)]\nmod tests { use crate::train::run; fn f() { if true { } } }", &["model"]),
        ("#[cfg(test)]\n#[path = \"x_tests.rs\"]\nmod tests;", &["model"]),
        ("use super::train;", &["model", "decoder"]),
        ("use crate::model::Model;", &["model", "decoder"]),
        ("pub(crate) fn f<'a>(x: &'a str) {}", &["model"]),
    ] {
        assert_eq!(imports(source, path), [""; 0], "{source}");
    }
}

#[test]
fn arrows_are_judged_by_rank() {
    assert_eq!(arrow("train", "model"), None);
    assert_eq!(imports("use crate::{Error, Result};", &["data"]), ["error"]);
    assert!(arrow("objective", "model").unwrap().contains("must not know"));
    assert!(arrow("model", "train").unwrap().contains("right"));
    assert!(arrow("report", "world").unwrap().contains("beside"));
    assert!(arrow("model", "no_module").unwrap().contains("no rank"));
    assert!(arrow("no_module", "model").unwrap().contains("no rank"));
}

#[test]
fn unsafe_is_judged_by_place_and_comment() {
    let faults = |file: &str, source: &str| unsafe_faults(file, source).len();
    let (bare, said) = ("unsafe { f() }", "// SAFETY: because\nunsafe { f() }");
    assert_eq!(faults("seakeep-kernels/src/gemm.rs", said), 0);
    assert_eq!(faults("seakeep-kernels/src/gemm.rs", bare), 1);
    assert_eq!(
        faults("seakeep-kernels/src/gemm.rs", &format!("// SAFETY: far\n{}{bare}", "\n".repeat(5))),
        1
    );
    assert_eq!(faults("seakeep/src/eval.rs", said), 1);
    assert_eq!(
        faults("seakeep-kernels/src/gemm.rs", "/// # Safety\n/// Ask.\n#[inline]\nunsafe fn f() {"),
        0
    );
    assert_eq!(faults("seakeep-kernels/src/gemm.rs", "/// # Safety\n/// Ask.\n\nunsafe fn f() {"), 1);
    assert_eq!(faults("seakeep/src/eval.rs", "// unsafe\nlet s = \"unsafe\"; let unsafe_code = 1;"), 0);
    let map = "// SAFETY: read only\nlet map = unsafe { Mmap::map(&file) };";
    assert_eq!(faults(UNSAFE_MAPS, map), 0);
    assert_eq!(faults(UNSAFE_MAPS, said), 1);
    assert_eq!(faults("seakeep/src/formats/safetensors.rs", map), 1);
}
