//! A summary to read.

use super::Summary;
use crate::stats::Interval;

/// `value [low, high]`, or the value alone where there is no interval.
fn shown(x: &Interval) -> String {
    match x {
        Interval { value, .. } if value.is_nan() => "-".into(),
        Interval { value, low, high } if low.is_nan() || high.is_nan() => format!("{value:.4}"),
        Interval { value, low, high } => format!("{value:.4} [{low:.4}, {high:.4}]"),
    }
}

/// Lines of a name and what is known of it.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn title(&mut self, text: &str) {
        self.0 += &format!("{text}\n");
    }

    fn row(&mut self, name: &str, what: &str) {
        self.0 += &format!("  {name:<28} {what}\n");
    }
}

/// Everything in a summary, line by line, every number with its interval.
pub fn table(summary: &Summary, confidence: f64) -> String {
    let mut lines = Lines::default();
    lines.title(&format!("{} (intervals of {}% over prompts or pairs)", summary.label, 100.0 * confidence));
    if let Some(kl) = &summary.kl_per_completion {
        lines.title("samples");
        for point in &summary.rewards {
            lines.row(&format!("reward, {} {}", point.mixture, point.alpha), &shown(&point.reward));
        }
        for (name, score) in &summary.objectives {
            lines.row(&format!("score, {name}"), &shown(score));
        }
        lines.row("KL, nats per completion", &shown(kl));
        lines.row("KL, nats per token", &summary.kl_per_token.as_ref().map(shown).unwrap_or_default());
        lines.row("tokens of a completion", &summary.tokens.as_ref().map(shown).unwrap_or_default());
        let distinct: Vec<String> = summary.distinct.iter().map(|d| format!("{d:.3}")).collect();
        lines.row("distinct 1-, 2-, 3-grams", &distinct.join("  "));
    }
    if let Some(comparison) = &summary.comparison {
        lines.title(&format!("less {}, on the same prompts", comparison.with));
        for point in &comparison.rewards {
            let below = match 100.0 * point.reward.below_zero {
                none if none.is_nan() => String::new(),
                share => format!("; below 0 in {share:.1}% of resamples"),
            };
            let what = format!("{}{below}; wins {}", shown(&point.reward.difference), shown(&point.win_rate));
            lines.row(&format!("reward, {} {}", point.mixture, point.alpha), &what);
        }
    }
    for set in &summary.datasets {
        lines.title(&format!("{}, {} pairs", set.name, set.rows));
        lines.row("loss", &shown(&set.loss));
        lines.row("accuracy", &shown(&set.accuracy));
        for point in &set.accuracies {
            lines.row(&format!("accuracy, {} {}", point.mixture, point.alpha), &shown(&point.reward));
        }
        for worst in &set.worst_cases {
            let error = worst.error.as_ref().map(|e| format!("   error {}", shown(e))).unwrap_or_default();
            let what = format!("loss {}{error}", shown(&worst.loss));
            lines.row(&format!("worst case, {} {}", worst.ball, worst.radius), &what);
        }
        for (name, group) in &set.groups {
            let error = set.group_errors.get(name).map_or(f64::NAN, |g| g.mean);
            let worst = if set.worst_group.as_ref() == Some(name) { "   the worst" } else { "" };
            let what = format!("{} pairs, loss {:.4}, error {error:.4}{worst}", group.rows, group.mean);
            lines.row(&format!("group {name}"), &what);
        }
    }
    lines.0.trim_end().to_string()
}
