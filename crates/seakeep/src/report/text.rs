//! Text and numbers made fit for HTML and for a terminal.

use super::summary::Spread;

/// Text as HTML content or as a quoted attribute's value. Characters that HTML does not allow or that
/// could disguise the text (control characters but for tab and line end, direction overrides) become
/// U+FFFD.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if disguises(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Text for one line of a terminal: nothing in it can move the cursor or change colours.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if disguises(c) { '\u{fffd}' } else { c }).collect()
}

fn disguises(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A number with `digits` decimals and a true minus sign; a dash where there is none.
pub fn number(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "–".into() } else { format!("{value}").replace('-', "−") };
    }
    let text = format!("{value:.digits$}");
    match text.strip_prefix('-') {
        // -0.0004 at three decimals is 0.000, not −0.000.
        Some(rest) if rest.bytes().all(|b| b == b'0' || b == b'.') => rest.to_owned(),
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

/// `mean ± sd`, the sd left out with fewer than two seeds.
pub fn spread(value: &Spread, digits: usize) -> String {
    if value.sd.is_nan() {
        number(value.mean, digits)
    } else {
        format!("{} ± {}", number(value.mean, digits), number(value.sd, digits))
    }
}

/// The text with its first letter large.
pub fn capital(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + rest.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_is_escaped() {
        assert_eq!(
            escape("<script>alert('x & \"y\"')</script>"),
            "&lt;script&gt;alert(&#39;x &amp; &quot;y&quot;&#39;)&lt;/script&gt;"
        );
        assert_eq!(
            escape("a\u{0}b\u{1b}[31m\r\u{7f}\u{85}\u{202e}\tc\n"),
            "a\u{fffd}b\u{fffd}[31m\u{fffd}\u{fffd}\u{fffd}\u{fffd}\tc\n"
        );
        assert_eq!(escape("Grüße, 世界 α"), "Grüße, 世界 α");
        assert_eq!(one_line("a\u{1b}[2J\nb"), "a\u{fffd}[2J\u{fffd}b");
    }

    #[test]
    fn numbers_for_reading() {
        assert_eq!(number(-0.0004, 3), "0.000");
        assert_eq!(number(-1.25, 1), "−1.2");
        assert_eq!(number(f64::NAN, 3), "–");
        assert_eq!(number(f64::NEG_INFINITY, 3), "−inf");
        assert_eq!(spread(&Spread::of([0.5]), 3), "0.500");
        assert_eq!(spread(&Spread::of([0.4, 0.6]), 2), "0.50 ± 0.14");
        assert_eq!(capital("convex"), "Convex");
        assert_eq!(capital(""), "");
    }
}
