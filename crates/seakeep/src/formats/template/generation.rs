//! `{% generation %}`, which transformers adds to Jinja.

/// `source` with `{% generation %}` and `{% endgeneration %}` replaced. They mark what the assistant says
/// and print nothing; what is set between them is not known after them. `{% with %}` does the same, with the
/// same white-space control. Comments, raw blocks and texts inside of tags stay as they are.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let length = match rest.as_bytes().get(1) {
            Some(b'%') if raw => {
                raw = !word(rest).starts_with("endraw");
                Some(1)
            }
            Some(b'#') if !raw => rest.find("#}").map(|at| at + 2),
            Some(b'{') if !raw => tag_length(rest, "}}"),
            Some(b'%') => tag_length(rest, "%}"),
            _ => Some(1),
        };
        let Some(length) = length else { break };
        let (tag, after) = rest.split_at(length);
        rest = after;
        match tag.strip_suffix("%}").map(word) {
            Some("generation") => out.push_str(&tag.replacen("generation", "with", 1)),
            Some("endgeneration") => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            found => {
                raw |= found == Some("raw");
                out.push_str(tag);
            }
        }
    }
    out.push_str(rest);
    out
}

/// What a tag of statements says, without its marks of white-space control; empty for another tag.
fn word(tag: &str) -> &str {
    tag.strip_prefix("{%")
        .map_or("", |inner| inner.trim_matches(|c: char| c.is_whitespace() || "-+".contains(c)))
}

/// Bytes of the tag that `text` begins with, up to and with the first `end` outside of quotes.
fn tag_length(text: &str, end: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut quote) = (2, None);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, _) if bytes[at..].starts_with(end.as_bytes()) => return Some(at + end.len()),
            _ => {}
        }
        at += 1;
    }
    None
}
