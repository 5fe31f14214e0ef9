//! The report of a made-up record with every part filled in.

use serde_json::json;

use super::*;
use crate::eval_record::{
    Answer, Ceiling, Curve, CurvePoint, DataDescription, EvalRecord, PolicyEval, Run, SCHEMA_VERSION, Sample,
    Timing, Training, TrainingPoint,
};

fn eval(start: f64, slope: f64, bend: f64, accuracy: bool) -> PolicyEval {
    let points = |mixture: &str, sag: f64| Curve {
        mixture: mixture.into(),
        points: (0..=10)
            .map(|step| {
                let alpha = f64::from(step) / 10.0;
                CurvePoint {
                    alpha,
                    reward: start + slope * alpha - sag * alpha * (1.0 - alpha),
                    reward_se: 0.005,
                    accuracy: accuracy.then_some(0.7 + 0.6 * slope * alpha),
                    loss: Some(0.6 - slope * alpha),
                }
            })
            .collect(),
    };
    PolicyEval { curves: vec![points("convex", 0.0), points("geometric", bend)], mean_length: 12.4 }
}

fn synthetic() -> EvalRecord {
    let methods: [(&str, &str, f64, f64, f64); 5] = [
        ("dpo", "DPO β 0.03", 0.70, -0.42, 0.52),
        ("dpo", "DPO β 0.1", 0.66, -0.32, 0.31),
        ("dpo", "DPO β 0.3", 0.59, -0.17, 0.12),
        ("kldpo", "KLDPO τ 1", 0.655, -0.31, 0.33),
        ("wdpo", "WDPO ρ 0.1", 0.62, -0.21, 0.17),
    ];
    let mut runs = Vec::new();
    for (number, (method, label, start, slope, kl)) in methods.into_iter().enumerate() {
        for seed in 0..3u64 {
            let luck = ((number as u64 * 7 + seed * 5) % 6) as f64 / 6.0 - 0.4;
            let step = |at: u64| TrainingPoint {
                step: at,
                loss: 0.69 - 0.2 * (at as f64 / 300.0) + 0.02 * ((at * 37 % 11) as f64 / 11.0),
                margin: kl * at as f64 / 100.0,
            };
            runs.push(Run {
                method: method.into(),
                label: label.into(),
                settings: [("beta".to_owned(), json!(0.1)), ("learning_rate".to_owned(), json!(5e-4))].into(),
                seed,
                kl_per_token: kl * (1.0 + 0.1 * luck),
                eval: eval(start + 0.02 * luck, slope + 0.05 * luck, 0.15, true),
                training: Some(Training { steps: (1..=300).map(step).collect(), seconds: 3.2 }),
            });
        }
    }
    let answer = |label: &str, text: &str| Answer {
        label: label.into(),
        text: text.into(),
        rewards: [("r1".to_owned(), 0.42), ("r2".to_owned(), 0.81)].into(),
    };
    EvalRecord {
        schema_version: SCHEMA_VERSION,
        program: "seakeep 0.1.0".into(),
        command_line: "seakeep quickstart --seed 0".into(),
        title: "Robust preference tuning in a small world".into(),
        question:
            "Policies are tuned on the labels of a population that is mostly careful and formal. What do \
                   they give to people who are not?"
                .into(),
        data: DataDescription {
            name: "preference world, seed 0".into(),
            description:
                "Short requests and answers from a grammar, judged by two populations of annotators.".into(),
            facts: [("training pairs".to_owned(), json!(2000)), ("test prompts".to_owned(), json!(288))]
                .into(),
        },
        nominal_alpha: 0.1,
        reference: eval(0.5, 0.02, 0.1, false),
        ceilings: (0..=10)
            .flat_map(|step| {
                let alpha = f64::from(step) / 10.0;
                ["convex", "geometric"].map(|mixture| Ceiling {
                    mixture: mixture.into(),
                    alpha,
                    reward: 0.85 - 0.6 * alpha * (1.0 - alpha),
                })
            })
            .collect(),
        runs,
        samples: vec![Sample {
            prompt: "a worried child asks about fever ?".into(),
            answers: vec![
                answer("reference", "hey , that depends : just grab water slowly ."),
                answer(
                    "DPO β 0.1",
                    "be careful : one should consider rest and ask a doctor . kind regards .",
                ),
                answer("KLDPO τ 1", "perhaps one should consider tea <b>slowly</b> and ask a doctor ."),
            ],
        }],
        config: json!({ "world": { "seed": 0, "test_fraction": 0.2 }, "model": { "layers": 2 } }),
        timing: Timing {
            total_seconds: 141.2,
            phases: vec![("supervised tuning".into(), 22.0), ("alignment".into(), 96.4)],
            machine: "2 cores, x86-64".into(),
        },
    }
}

/// Every opened element is closed, in order.
pub(super) fn assert_balanced(html: &str) {
    let void = ["meta", "br", "!doctype"];
    let mut open: Vec<&str> = Vec::new();
    for piece in html.split('<').skip(1) {
        let (tag, _) = piece.split_once('>').expect("every < of the page's own opens a tag");
        let name = tag.trim_end_matches('/').split_whitespace().next().unwrap();
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closing {name}");
        } else if !tag.ends_with('/') && !void.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_page_is_whole_and_stands_alone() {
    let html = render(&of_eval(&synthetic()));
    assert_balanced(&html);
    for forbidden in ["http://", "https://", "<script", "NaN", "src=", "@import", "url("] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    for section in [
        "What was asked",
        "Findings",
        "How to read this",
        "Results",
        "Reward against shift",
        "Reward against divergence",
        "Preference accuracy against shift",
        "Training",
        "Samples",
        "Exact configuration",
    ] {
        assert!(html.contains(&format!(">{section}</h2>")), "{section}");
    }
    assert_eq!(html.matches("role=\"img\"").count(), 12);
    let mut ids: Vec<&str> =
        html.split(" id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "ids are unique");
    // SEAKEEP_REPORT_OUT=/tmp cargo test -p seakeep --lib report: to look at it in a browser.
    if let Some(directory) = std::env::var_os("SEAKEEP_REPORT_OUT") {
        std::fs::write(std::path::Path::new(&directory).join("experiment.html"), html).unwrap();
    }
}

#[test]
fn foreign_text_stays_text() {
    let mut record = synthetic();
    let evil = "</title><script>alert(1)</script>\" onload='x'\u{1b}[2J";
    record.title = evil.into();
    record.question = evil.into();
    record.command_line = evil.into();
    record.data.name = evil.into();
    record.config = json!({ evil: evil });
    record.data.facts.insert(evil.into(), json!(evil));
    for run in &mut record.runs {
        run.label = evil.into();
        run.settings.insert(evil.into(), json!(evil));
        run.eval.curves[0].mixture = evil.into();
    }
    record.samples[0].prompt = evil.into();
    record.samples[0].answers[0].text = evil.into();
    record.samples[0].answers[0].label = evil.into();
    record.samples[0].answers[0].rewards.insert(evil.into(), 0.5);
    let html = render(&of_eval(&record));
    assert!(!html.contains("<script") && !html.contains('\u{1b}') && !html.contains("onload='"));
    assert_balanced(&html);
    let text = table(&of_eval(&record));
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn odd_records_are_rendered_too() {
    assert_balanced(&render(&of_eval(&EvalRecord::default())));
    assert_eq!(table(&of_eval(&EvalRecord::default())), "");
    let mut record = synthetic();
    record.runs.truncate(1);
    record.runs[0].kl_per_token = f64::NAN;
    record.runs[0].eval.curves[0].points[3].reward = f64::NAN;
    record.runs[0].eval.curves[1].points.clear();
    record.runs[0].training = None;
    let html = render(&of_eval(&record));
    assert_balanced(&html);
    assert!(!html.contains("NaN"));
}

#[test]
fn the_terminal_table_is_aligned() {
    let text = table(&of_eval(&synthetic()));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("Convex mixture"));
    let width = lines[1].chars().count();
    assert!(lines[1..=7].iter().all(|line| line.chars().count() == width), "{text}");
    assert!(lines[2].trim_start().starts_with("reference"));
    assert!(width <= 140, "{width} columns");
    assert!(text.contains(" ± "), "{text}");
}
