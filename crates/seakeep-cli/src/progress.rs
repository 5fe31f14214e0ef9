//! Progress for a person: bars on a terminal, plain lines elsewhere (a log file, CI).

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use seakeep::progress::Progress;

use crate::output;

/// Least time between two plain lines about the same work.
const QUIET: Duration = Duration::from_secs(5);

/// Draws on standard error; writes lines into the log where there is one (see [`output::logged`]).
pub fn on_stderr() -> Box<dyn Progress> {
    if let Some(log) = output::log() {
        Box::new(Lines { to: log, open: Vec::new() })
    } else if std::io::stderr().is_terminal() {
        Box::new(Bars { all: MultiProgress::new(), open: Vec::new() })
    } else {
        Box::new(Lines { to: std::io::stderr(), open: Vec::new() })
    }
}

/// Bars; work within work has a bar of its own below.
struct Bars {
    all: MultiProgress,
    open: Vec<ProgressBar>,
}

impl Progress for Bars {
    fn start(&mut self, what: &str, total: u64) {
        let style =
            ProgressStyle::with_template("{prefix} {wide_bar:.cyan/dim} {pos}/{len} {elapsed}<{eta} {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.all.add(ProgressBar::new(total)).with_prefix(what.to_string()).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(500));
        self.open.push(bar);
    }

    fn advance(&mut self, by: u64, detail: &str) {
        if let Some(bar) = self.open.last() {
            if !detail.is_empty() {
                bar.set_message(detail.to_string());
            }
            bar.inc(by);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.open.pop() {
            // Work within work leaves nothing behind; the outermost bar stays as a record.
            if self.open.is_empty() { bar.abandon() } else { bar.finish_and_clear() }
        }
    }

    fn note(&mut self, line: &str) {
        // Between bars through them, so that they are drawn again below it.
        if self.open.is_empty() || self.all.println(line).is_err() {
            eprintln!("{line}");
        }
    }
}

/// Plain lines, not too many.
struct Lines<W> {
    to: W,
    open: Vec<Work>,
}

struct Work {
    what: String,
    total: u64,
    done: u64,
    detail: String,
    begun: Instant,
    /// When a line was last written, and what it counted.
    said: Instant,
    told: Option<u64>,
}

impl<W: Write> Lines<W> {
    fn say(&mut self, line: &str) {
        // Nobody can be told that standard error is closed.
        let _ = writeln!(self.to, "{line}");
    }
}

impl Work {
    fn line(&self) -> String {
        let seconds = self.begun.elapsed().as_secs_f64();
        let detail = if self.detail.is_empty() { String::new() } else { format!("  {}", self.detail) };
        format!("{}: {}/{} ({seconds:.1} s){detail}", self.what, self.done, self.total)
    }
}

impl<W: Write + Send> Progress for Lines<W> {
    fn start(&mut self, what: &str, total: u64) {
        let now = Instant::now();
        let (what, detail) = (what.to_string(), String::new());
        self.open.push(Work { what, total, done: 0, detail, begun: now, said: now, told: None });
    }

    fn advance(&mut self, by: u64, detail: &str) {
        let Some(work) = self.open.last_mut() else { return };
        work.done += by;
        if !detail.is_empty() {
            work.detail = detail.to_string();
        }
        if work.said.elapsed() >= QUIET {
            work.said = Instant::now();
            work.told = Some(work.done);
            let line = work.line();
            self.say(&line);
        }
    }

    fn finish(&mut self) {
        // Not twice the same count.
        if let Some(work) = self.open.pop().filter(|work| work.told != Some(work.done)) {
            self.say(&work.line());
        }
    }

    fn note(&mut self, line: &str) {
        self.say(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_work_is_one_line() {
        let mut lines = Lines { to: Vec::new(), open: Vec::new() };
        lines.start("training", 100);
        for _ in 0..100 {
            lines.advance(1, "loss 0.69");
        }
        lines.note("a remark");
        lines.finish();
        lines.advance(1, "after the end: ignored");
        let text = String::from_utf8(lines.to).unwrap();
        let said: Vec<&str> = text.lines().collect();
        assert_eq!(said.len(), 2, "{text}");
        assert_eq!(said[0], "a remark");
        assert!(said[1].starts_with("training: 100/100 (") && said[1].ends_with("loss 0.69"), "{text}");
    }
}
