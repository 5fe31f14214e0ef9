//! A history and candidates as a prompt.

use serde_json::{Value, json};

use crate::{Error, Result};

/// The prompt when none is given.
pub const DEFAULT_TEMPLATE: &str = "This user has chosen, oldest first: {history}.\nThe user may choose from: \
                                    {candidates}.\nThe user's next choice:";

/// The text around histories and candidates.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    parts: Vec<Part>,
    /// What stands between titles.
    pub list_separator: String,
    /// Messages in place of plain text.
    pub conversational: bool,
    /// What a completion begins with, so that prompt and completion split between tokens.
    lead: &'static str,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    History,
    Candidates,
}

impl Template {
    /// Parses a text with `{history}` and (perhaps) `{candidates}`; `{{` and `}}` stand for braces.
    ///
    /// # Errors
    /// [`Error::Usage`] for another name in braces, a missing `{history}`, or a plain text with a space at its end.
    pub fn new(text: &str, list_separator: &str, conversational: bool) -> Result<Template> {
        let wrong = |what: String| Error::Usage(format!("--template: {what}"));
        let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            plain += &rest[..at];
            let brace = &rest[at..];
            if brace.starts_with("{{") || brace.starts_with("}}") {
                plain += &brace[..1];
                rest = &brace[2..];
                continue;
            }
            let name = brace[1..].split_once('}').filter(|_| brace.starts_with('{'));
            let (name, after) =
                name.ok_or_else(|| wrong("a brace without its other; `{{` stands for one".into()))?;
            let part = match name {
                "history" => Part::History,
                "candidates" => Part::Candidates,
                other => {
                    return Err(wrong(format!(
                        "`{{{other}}}` is unknown; there are {{history}} and {{candidates}}"
                    )));
                }
            };
            parts.extend([Part::Text(std::mem::take(&mut plain)), part]);
            rest = after;
        }
        plain += rest;
        if !parts.contains(&Part::History) {
            return Err(wrong("no `{history}` in it, so that every user would be asked the same".into()));
        }
        let lead = match plain.chars().last() {
            _ if conversational => "",
            Some('\n') => "",
            Some(end) if end.is_whitespace() => {
                return Err(wrong(
                    "a space at its end, which would be no end of a token: leave it out (completions begin with it)".into(),
                ));
            }
            _ => " ",
        };
        parts.push(Part::Text(plain));
        Ok(Template { parts, list_separator: list_separator.to_string(), conversational, lead })
    }

    /// Whether the prompt shows the candidates.
    pub fn shows_candidates(&self) -> bool {
        self.parts.contains(&Part::Candidates)
    }

    /// The prompt: a text, or a message of the user.
    pub fn prompt(&self, history: &[&str], candidates: &[&str]) -> Value {
        let text: String = self
            .parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::History => history.join(&self.list_separator),
                Part::Candidates => candidates.join(&self.list_separator),
            })
            .collect();
        match self.conversational {
            true => json!([{"role": "user", "content": text}]),
            false => text.into(),
        }
    }

    /// A title as a completion: a text, or a message of the assistant.
    pub fn completion(&self, title: &str) -> Value {
        match self.conversational {
            true => json!([{"role": "assistant", "content": title}]),
            false => self.candidate(title).into(),
        }
    }

    /// A title as `seakeep recommend rank` takes candidates: the completion's text.
    pub fn candidate(&self, title: &str) -> String {
        format!("{}{title}", self.lead)
    }
}
