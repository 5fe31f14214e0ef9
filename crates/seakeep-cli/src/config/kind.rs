//! What the value of a key may be.

use serde_json::{Number, Value};

use super::methods;

/// A range of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Above 0.
    Positive,
    /// 0 or above.
    NotNegative,
    /// From 0 to 1, both included.
    Share,
    /// From 0 to below 1.
    BelowOne,
    /// From 0 to below one half.
    BelowHalf,
    /// Above 0, up to 1.
    Fraction,
    /// Any finite number.
    Any,
}

impl Range {
    fn holds(self, x: f64) -> bool {
        match self {
            Range::Positive => x > 0.0,
            Range::NotNegative => x >= 0.0,
            Range::Share => (0.0..=1.0).contains(&x),
            Range::BelowOne => (0.0..1.0).contains(&x),
            Range::BelowHalf => (0.0..0.5).contains(&x),
            Range::Fraction => x > 0.0 && x <= 1.0,
            Range::Any => true,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Range::Positive => "a number above 0",
            Range::NotNegative => "a number, 0 or above",
            Range::Share => "a number from 0 to 1",
            Range::BelowOne => "a number from 0 to below 1",
            Range::BelowHalf => "a number from 0 to below 0.5",
            Range::Fraction => "a number above 0, up to 1",
            Range::Any => "a number",
        }
    }
}

/// What the value of a key may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Any text that is not empty.
    Text,
    /// A path or pattern, taken from the current directory.
    Path,
    /// `true` or `false`.
    Switch,
    /// A whole number, at least this.
    Whole(u64),
    /// A number.
    Number(Range),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Several words of any kind.
    Words,
    /// Several of these words.
    Choices(&'static [&'static str]),
    /// The name of a method; dashes or underscores.
    Method,
    /// Several numbers.
    Numbers,
    /// A whole number, at least this; 0 or `none` for no limit.
    Limit(u64),
    /// A whole number above 0, or -1 for none.
    Steps,
    /// A whole number of steps, or below 1 a share of all of them.
    Interval,
    /// `true`, `false` or a path.
    SwitchOrPath,
}

impl Kind {
    /// What is expected, to follow "expected ".
    pub fn expectation(self) -> String {
        match self {
            Kind::Text => "text".into(),
            Kind::Path => "a path".into(),
            Kind::Switch => "true or false".into(),
            Kind::Whole(least) => format!("a whole number, {least} or above"),
            Kind::Number(range) => range.words().into(),
            Kind::Choice([one]) => format!("{one} (the only one there is yet)"),
            Kind::Choice(words) => format!("one of: {}", words.join(", ")),
            Kind::Choices(words) => format!("one or several of: {}", words.join(", ")),
            Kind::Words => "a name, or several".into(),
            Kind::Method => format!("one of: {}", methods::names().join(", ")),
            Kind::Numbers => "a number, or several".into(),
            Kind::Limit(least) => format!("a whole number, {least} or above (0 or none: no limit)"),
            Kind::Steps => "a whole number above 0 (-1: none)".into(),
            Kind::Interval => "a whole number above 0, or below 1 a share of all steps".into(),
            Kind::SwitchOrPath => "true, false or a path".into(),
        }
    }

    /// The placeholder in the help.
    pub fn value_name(self) -> String {
        match self {
            Kind::Text => "TEXT".into(),
            Kind::Path => "PATH".into(),
            Kind::Switch => "true|false".into(),
            Kind::Whole(_) | Kind::Limit(_) | Kind::Steps | Kind::Interval => "N".into(),
            Kind::Number(_) => "X".into(),
            // A long list stands in the topic `objectives`.
            Kind::Choices(words) if words.len() > 6 => "NAME,...".into(),
            Kind::Choice(words) if words.len() > 6 => "NAME".into(),
            Kind::Choice(words) | Kind::Choices(words) => words.join("|"),
            Kind::Method => "NAME".into(),
            Kind::Words => "NAME,...".into(),
            Kind::Numbers => "X,...".into(),
            Kind::SwitchOrPath => "true|PATH".into(),
        }
    }

    /// What a flag's text means; text that means nothing stays text, which [`check`](Self::check) then refuses.
    pub fn of_flag(self, text: &str) -> Value {
        let lower = text.to_ascii_lowercase();
        let switch = || lower.parse().ok().map(Value::Bool);
        let whole = || text.parse::<i64>().ok().map(Value::from);
        let value = match self {
            Kind::Text | Kind::Path | Kind::Choice(_) | Kind::Method => None,
            Kind::Choices(_) | Kind::Words => {
                Some(text.split(',').map(|word| Value::from(word.trim())).collect())
            }
            Kind::Numbers => text
                .split(',')
                .map(|word| word.trim().parse().ok().and_then(Number::from_f64).map(Value::Number))
                .collect::<Option<Vec<Value>>>()
                .map(Value::Array),
            Kind::Switch | Kind::SwitchOrPath => switch(),
            // A seed may fill 64 bits.
            Kind::Whole(_) => text.parse::<u64>().ok().map(Value::from).or_else(whole),
            Kind::Steps => whole(),
            Kind::Limit(_) if lower == "none" => Some(Value::Null),
            Kind::Limit(_) => whole(),
            Kind::Number(_) | Kind::Interval => {
                text.parse().ok().and_then(Number::from_f64).map(Value::Number)
            }
        };
        value.unwrap_or_else(|| Value::from(text))
    }

    /// The value in the form that `Settings` hands out (no limit is null, several words a list), or `None`
    /// where it is not what it should be.
    pub fn check(self, value: &Value) -> Option<Value> {
        let word = |words: &[&str], v: &Value| v.as_str().is_some_and(|w| words.contains(&w));
        let text = |v: &Value| v.as_str().is_some_and(|t| !t.is_empty());
        let fits = match self {
            Kind::Text | Kind::Path => text(value),
            Kind::Switch => value.is_boolean(),
            Kind::Whole(least) => value.as_u64().is_some_and(|n| n >= least),
            Kind::Number(range) => value.as_f64().is_some_and(|x| x.is_finite() && range.holds(x)),
            // TRL takes lists too (`loss_type: [sigmoid]`); of one word that is the word.
            Kind::Choice(words) => match value.as_array().map(Vec::as_slice) {
                Some([one]) => return word(words, one).then(|| one.clone()),
                Some(_) => false,
                // `dpo-pro` and `dpo_pro` are the same name.
                None => {
                    let plain = value.as_str().map(|text| Value::from(text.replace('-', "_")));
                    let found = [Some(value.clone()), plain].into_iter().flatten().find(|v| word(words, v));
                    return found;
                }
            },
            Kind::Choices(words) => match value {
                // As transformers writes `report_to="none"` out.
                Value::Array(list) if list.is_empty() && words.contains(&"none") => {
                    return Some(Value::from(vec!["none"]));
                }
                Value::Array(list) => !list.is_empty() && list.iter().all(|v| word(words, v)),
                // As a flag would spell several.
                Value::String(text) => {
                    let list: Vec<Value> = text.split(',').map(|w| Value::from(w.trim())).collect();
                    return list.iter().all(|v| word(words, v)).then(|| Value::from(list));
                }
                _ => false,
            },
            Kind::Words => match value {
                Value::Array(list) => !list.is_empty() && list.iter().all(text),
                Value::String(words) => {
                    let list: Vec<Value> = words.split(',').map(|w| Value::from(w.trim())).collect();
                    return list.iter().all(text).then(|| Value::from(list));
                }
                _ => false,
            },
            Kind::Method => {
                let name = value.as_str().map(|name| name.to_lowercase().replace('_', "-"));
                return name.filter(|name| methods::find(name).is_some()).map(Value::from);
            }
            Kind::Numbers => match value {
                Value::Array(list) => {
                    !list.is_empty() && list.iter().all(|v| v.as_f64().is_some_and(f64::is_finite))
                }
                one => return one.as_f64().map(|_| Value::from(vec![one.clone()])),
            },
            Kind::Limit(least) => match value {
                Value::Null => true,
                Value::String(none) if none.eq_ignore_ascii_case("none") => return Some(Value::Null),
                number if number.as_u64() == Some(0) => return Some(Value::Null),
                number => number.as_u64().is_some_and(|n| n >= least),
            },
            Kind::Steps => value.as_i64().is_some_and(|n| n == -1 || n > 0),
            Kind::Interval => value.as_f64().is_some_and(|n| n > 0.0 && (n < 1.0 || n.fract() == 0.0)),
            Kind::SwitchOrPath => value.is_boolean() || text(value),
        };
        fits.then(|| value.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flags_mean_what_the_same_value_in_a_file_means() {
        for (kind, flag, file) in [
            (Kind::Switch, "True", json!(true)),
            (Kind::Whole(1), "4", json!(4)),
            (Kind::Interval, "4", json!(4.0)),
            (Kind::Interval, "0.25", json!(0.25)),
            (Kind::Whole(0), "18446744073709551615", json!(u64::MAX)),
            (Kind::Number(Range::Positive), "1e-6", json!(1e-6)),
            (Kind::Number(Range::Positive), "2", json!(2.0)),
            (Kind::Limit(2), "none", json!(null)),
            (Kind::Steps, "-1", json!(-1)),
            (Kind::Choices(&["a", "b"]), "a, b", json!(["a", "b"])),
            (Kind::Words, "a, b", json!(["a", "b"])),
            (Kind::SwitchOrPath, "true", json!(true)),
            (Kind::SwitchOrPath, "runs/a", json!("runs/a")),
        ] {
            let value = kind.of_flag(flag);
            assert_eq!(value, file, "{flag}");
            assert!(kind.check(&value).is_some(), "{flag}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (kind, value) in [
            (Kind::Switch, json!("yes")),
            (Kind::Whole(1), json!(0)),
            (Kind::Interval, json!(0)),
            (Kind::Interval, json!(1.5)),
            (Kind::Whole(1), json!(-3)),
            (Kind::Whole(1), json!(1.5)),
            (Kind::Whole(1), json!("4")),
            (Kind::Number(Range::Positive), json!(0.0)),
            (Kind::Number(Range::BelowHalf), json!(0.5)),
            (Kind::Number(Range::Share), json!(1.1)),
            (Kind::Number(Range::Positive), Kind::Number(Range::Positive).of_flag("inf")),
            (Kind::Number(Range::Positive), Kind::Number(Range::Positive).of_flag("nan")),
            (Kind::Choice(&["a", "b"]), json!("c")),
            (Kind::Choice(&["a", "b"]), json!(["a", "b"])),
            (Kind::Choices(&["a", "b"]), json!(["a", "c"])),
            (Kind::Words, json!([])),
            (Kind::Words, json!("a,,b")),
            (Kind::Limit(2), json!(1)),
            (Kind::Steps, json!(0)),
            (Kind::Text, json!("")),
        ] {
            assert_eq!(kind.check(&value), None, "{kind:?} {value}");
        }
    }

    #[test]
    fn no_limit_has_three_spellings() {
        for value in [json!(0), json!("None"), json!(null)] {
            assert_eq!(Kind::Limit(2).check(&value), Some(Value::Null));
        }
    }
}
