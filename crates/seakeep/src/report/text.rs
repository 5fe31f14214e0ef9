//! Text and numbers made fit for HTML and for a terminal.

use super::view::Estimate;

/// Text as HTML content or as a quoted attribute's value. Control characters but for tab and line end are shown as
/// pictures (`␛`), direction overrides and other controls that could disguise the text as U+FFFD.
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
            c => out.push(shown(c)),
        }
    }
    out
}

/// Text for one line of a terminal: nothing in it can move the cursor or change colours.
pub fn one_line(text: &str) -> String {
    text.chars().map(shown).collect()
}

/// The character, or what stands for it where it would do something or hide something instead of being seen.
fn shown(c: char) -> char {
    match c {
        // The block of control pictures has them in the same order.
        '\u{0}'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        '\u{7f}' => '\u{2421}',
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
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

/// A weight of a mixture, with as many decimals as it has, one at least.
pub fn alpha(value: f64) -> String {
    // Steps of 0.05 come to 0.15000000000000002.
    format!("{:?}", (value * 1e6).round() / 1e6)
}

/// `mean ± half the interval`, the latter left out where there is none, or no width.
pub fn estimate(value: &Estimate, digits: usize) -> String {
    if value.half() > 0.0 {
        format!("{} ± {}", number(value.mean, digits), number(value.half(), digits))
    } else {
        number(value.mean, digits)
    }
}

/// A difference with its interval and a sign always.
pub fn signed(value: &Estimate, digits: usize) -> String {
    let sign = |v: f64| match number(v, digits) {
        text if text.starts_with(['−', '–']) => text,
        text => format!("+{text}"),
    };
    if value.half().is_nan() {
        return sign(value.mean);
    }
    format!("{} [{}, {}]", sign(value.mean), sign(value.low), sign(value.high))
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
            "a\u{2400}b\u{241b}[31m\u{240d}\u{2421}\u{fffd}\u{fffd}\tc\n"
        );
        assert_eq!(escape("Grüße, 世界 α"), "Grüße, 世界 α");
        assert_eq!(one_line("a\u{1b}[2J\nb"), "a\u{241b}[2J\u{240a}b");
    }

    #[test]
    fn numbers_for_reading() {
        assert_eq!(number(-0.0004, 3), "0.000");
        assert_eq!(number(-1.25, 1), "−1.2");
        assert_eq!(number(f64::NAN, 3), "–");
        assert_eq!(number(f64::NEG_INFINITY, 3), "−inf");
        assert_eq!(estimate(&Estimate::alone(0.5), 3), "0.500");
        assert_eq!(estimate(&Estimate { mean: 0.5, low: 0.5, high: 0.5 }, 3), "0.500");
        let alphas = [0.0, 1.0, 0.1, 0.25, 0.125, 3.0 * 0.05].map(alpha);
        assert_eq!(alphas, ["0.0", "1.0", "0.1", "0.25", "0.125", "0.15"]);
        let half = Estimate { mean: 0.5, low: 0.36, high: 0.64 };
        assert_eq!(estimate(&half, 2), "0.50 ± 0.14");
        assert_eq!(signed(&half, 1), "+0.5 [+0.4, +0.6]");
        assert_eq!(signed(&Estimate { mean: -0.5, low: -1.0, high: 0.0 }, 1), "−0.5 [−1.0, +0.0]");
        assert_eq!(capital("convex"), "Convex");
        assert_eq!(capital(""), "");
    }
}
