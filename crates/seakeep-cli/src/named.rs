//! Data sets on the command line, which may be given a name: `NAME=PATH`.

use std::path::Path;

/// The name that a data set was given: of `natural=a.jsonl`, `natural`.
fn given_name(spec: &str) -> Option<&str> {
    let plain = |name: &str| !name.is_empty() && !name.contains(['/', '\\', '*', '?', '[']);
    let (name, _) = spec.split_once('=')?;
    (plain(name) && !Path::new(spec).exists()).then_some(name)
}

/// Where a data set is.
pub fn path_of(spec: &str) -> &str {
    given_name(spec).map_or(spec, |name| &spec[name.len() + 1..])
}

/// The name of a data set and where it is: `natural=a.jsonl`, or a path, whose name it then has.
pub fn named(spec: &str) -> (String, String) {
    if let Some(name) = given_name(spec) {
        return (name.to_string(), path_of(spec).to_string());
    }
    let stem = Path::new(spec).file_name().map_or(spec.into(), |n| n.to_string_lossy());
    (stem.split('.').next().unwrap_or(spec).to_string(), spec.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_stands_before_the_path_or_the_files() {
        let pair = |name: &str, path: &str| (name.to_string(), path.to_string());
        assert_eq!(named("natural=d/a.jsonl"), pair("natural", "d/a.jsonl"));
        assert_eq!(named("d/a.test.jsonl"), pair("a", "d/a.test.jsonl"));
        assert_eq!(named("d=1/a.jsonl"), pair("d", "1/a.jsonl"));
        assert_eq!(named("x/d=1/a.jsonl"), pair("a", "x/d=1/a.jsonl"));
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a=b.jsonl");
        std::fs::write(&path, "").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(named(path), pair("a=b", path));
    }
}
