//! Reports of made-up policy records: several methods, settings and seeds, texts that mean harm.

use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::eval_record::{Training, TrainingPoint};
use crate::policy_record::{Column, POLICY_SCHEMA_VERSION, PairSet, Policy, SampleText, Samples};
use crate::report::tests::assert_balanced;
use crate::report::{findings, render, table};

type Records = Vec<(PathBuf, PolicyRecord)>;

const PROMPTS: usize = 40;
const OBJECTIVES: [&str; 6] = ["anger", "fear", "joy", "love", "sadness", "surprise"];
const EVIL: &str = "</title><script>alert(1)</script>\" onload='x'\u{1b}[2J\u{202e}& <b>bold</b>";

/// Deterministic numbers that look like noise, in [0, 1).
fn noise(a: usize, b: usize) -> f64 {
    ((a as f64 * 12.9898 + b as f64 * 78.233).sin() * 43_758.545_3).rem_euclid(1.0)
}

/// A policy that went `far` (nats per token) from the reference; `skill` is what it gains there beyond the others.
fn record(method: &str, label: &str, seed: u64, far: f64, skill: f64) -> PolicyRecord {
    let (n, luck) = (2 * PROMPTS, 0.02 * (noise(seed as usize, label.len()) - 0.5));
    let gain = far.sqrt();
    let score = |objective: usize, at: usize| {
        // What the labels reward grows with the distance, the rest falls.
        let slope = [-0.25, 0.35, 0.05, -0.1, 0.02, 0.0][objective];
        let hard = 0.2 * (noise(at / 2, objective) - 0.5);
        (0.45
            + slope * gain
            + skill * gain
            + luck
            + hard
            + 0.2 * (noise(at, objective + seed as usize) - 0.5))
            .clamp(0.01, 0.99)
    };
    let column = |objective| Column((0..n).map(|at| score(objective, at)).collect());
    let tokens: Vec<u32> = (0..n).map(|at| 12 + (at % 7) as u32).collect();
    let ratio = |at: usize| f64::from(tokens[at]) * far * (0.6 + 0.8 * noise(at, seed as usize));
    let step = |at: u64| TrainingPoint {
        step: 4 * at,
        loss: 0.69 - 0.25 * gain * (at as f64 / 60.0) + 0.02 * noise(at as usize, label.len()),
        margin: gain * at as f64 / 40.0,
    };
    let text = |prompt: usize| SampleText {
        prompt: format!("What should I tell a friend who is {} about it?", OBJECTIVES[prompt % 6]),
        completion: if prompt == 0 {
            EVIL.into()
        } else {
            format!("{label} says:\n  well, {} it depends.", "really ".repeat(prompt))
        },
        scores: OBJECTIVES
            .iter()
            .enumerate()
            .map(|(o, name)| (name.to_string(), score(o, 2 * prompt)))
            .collect(),
    };
    let reference = method == "reference";
    PolicyRecord {
        schema_version: POLICY_SCHEMA_VERSION,
        program: "seakeep 0.1.0".into(),
        command_line: format!(
            "seakeep eval --model_name_or_path runs/{method}-{seed} --policy_record runs/{method}-{seed}/policy.json"
        ),
        policy: Policy {
            model_name_or_path: format!("runs/{label}/{seed}"),
            ref_model_name_or_path: "runs/sft".into(),
            method: method.into(),
            label: label.into(),
            settings: [("beta".to_owned(), json!(0.1)), ("learning_rate".to_owned(), json!(5e-5))]
                .into_iter()
                .collect(),
            seed,
        },
        shift: Some(Shift {
            objectives: ["anger".into(), "fear".into()],
            mixtures: vec!["convex".into(), "geometric".into()],
            nominal_alpha: 0.1,
            alphas: (0..=10).map(|a| f64::from(a) / 10.0).collect(),
        }),
        samples: Some(Samples {
            prompts: PROMPTS,
            per_prompt: 2,
            generation: [("temperature".to_owned(), json!(0.7)), ("top_p".to_owned(), json!(1.0))]
                .into_iter()
                .collect(),
            prompts_fingerprint: "abc".into(),
            judge: None,
            groups: None,
            scores: OBJECTIVES.iter().enumerate().map(|(o, name)| (name.to_string(), column(o))).collect(),
            logps: Column((0..n).map(|at| -30.0 + if reference { 0.0 } else { ratio(at) }).collect()),
            ref_logps: Column(vec![-30.0; n]),
            tokens,
            distinct: vec![0.2, 0.6, 0.8],
            texts: (0..8).map(text).collect(),
        }),
        datasets: vec![
            pairs("natural", seed, gain, true),
            pairs("adversarial", seed, 0.3 * gain - skill, false),
        ],
        training: (!reference).then(|| Training { steps: (1..=60).map(step).collect(), seconds: 61.0 }),
        seconds: 12.5,
    }
}

fn pairs(name: &str, seed: u64, strength: f64, rich: bool) -> PairSet {
    let rows = 60;
    let margin = |row: usize| {
        6.0 * (noise(row, 3) - 0.4) * strength.abs().max(0.01) + 0.8 * (noise(row, seed as usize) - 0.5)
    };
    let difference = |which| Column((0..rows).map(|row| noise(row, which) - 0.5).collect());
    PairSet {
        name: name.into(),
        dataset_name: format!("data/{name}.jsonl"),
        rows_fingerprint: Some(name.into()),
        metrics: Default::default(),
        margins: Column((0..rows).map(margin).collect()),
        losses: Column((0..rows).map(|row| (1.0 + (-0.5 * margin(row)).exp()).ln()).collect()),
        input_gradients: rich.then(|| Column((0..rows).map(|row| 0.2 + noise(row, 9)).collect())),
        groups: rich
            .then(|| (0..rows).map(|row| ["plain", "tricky", "<i>odd</i>"][row % 3].to_owned()).collect()),
        score_differences: if rich {
            [("anger".to_owned(), difference(5)), ("fear".to_owned(), difference(6))].into()
        } else {
            Default::default()
        },
        chosen_scores: if rich {
            let chosen = |which| Column((0..rows).map(|row| 0.5 + 0.5 * noise(row, which)).collect());
            [("anger".to_owned(), chosen(7)), ("fear".to_owned(), chosen(8))].into()
        } else {
            Default::default()
        },
    }
}

fn records() -> Vec<(PathBuf, PolicyRecord)> {
    let labels: [(&str, &str, f64, f64); 11] = [
        ("dpo", "DPO beta 0.03", 0.62, 0.0),
        ("dpo", "DPO beta 0.05", 0.45, 0.0),
        ("dpo", "DPO beta 0.1", 0.3, 0.0),
        ("dpo", "DPO beta 0.3", 0.1, 0.0),
        ("dpo", "DPO beta 1", 0.02, 0.0),
        ("kldpo", "KLDPO beta 0.1, tau 0.5", 0.28, 0.2),
        ("kldpo", "KLDPO beta 0.1, tau 1", 0.29, 0.0),
        ("wdpo", "WDPO beta 0.1, rho 0.01", 0.27, -0.2),
        ("drdpo", "Dr. DPO beta 0.1", 0.31, 0.0),
        ("winsor", "winsor beta 0.1, with a rather long label that goes on", 0.9, 0.05),
        ("dpo-pro", "DPO-PRO beta 0.1", 0.12, 0.01),
    ];
    let mut out = vec![record("reference", "reference", 0, 0.0, 0.0)];
    for (method, label, far, skill) in labels {
        for seed in 0..3 {
            out.push(record(method, label, seed, far * (1.0 + 0.1 * (seed as f64 - 1.0)), skill));
        }
    }
    out.into_iter().enumerate().map(|(at, r)| (PathBuf::from(format!("runs/{at}/policy.json")), r)).collect()
}

fn options() -> PolicyOptions {
    PolicyOptions {
        question: Some("Does a robust method keep more reward than DPO when fear gives way to anger?".into()),
        card: Some(json!({
            "completions": 1200, "prompts": 300, "agreement": 0.73,
            "margins": {"mean": 0.31, "p10": 0.02, "p50": 0.25, "p90": 0.7},
            "chosen_characters": {"mean": 80.0, "p10": 20.0, "p50": 75.0, "p90": 140.0},
            "correlations": {"anger": {"anger": 1.0, "fear": -0.4}, "fear": {"anger": -0.4, "fear": null}},
        })),
        bootstrap: Bootstrap { resamples: 60, ..Bootstrap::default() },
        ..PolicyOptions::default()
    }
}

fn report_of(records: &[(PathBuf, PolicyRecord)]) -> Report {
    of_policies(records, &options()).unwrap()
}

#[test]
fn every_section_is_there_and_hostile_text_is_text() {
    let mut all = records();
    // Of one label's three seeds.
    all[1..4].iter_mut().for_each(|(_, r)| drop(r.policy.settings.insert(EVIL.into(), json!(EVIL))));
    all[3].1.command_line = EVIL.into();
    let html = render(&report_of(&all));
    assert_balanced(&html);
    for forbidden in
        ["http://", "https://", "<script", "NaN", "src=", "@import", "url(", "\u{1b}", "\u{202e}", "<i>odd"]
    {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    assert!(html.contains("&lt;script&gt;alert(1)") && html.contains("␛[2J"));
    for section in [
        "What was asked",
        "Findings",
        "Results",
        "Paired differences",
        "Reward against shift",
        "Reward against divergence",
        "All objectives",
        "Preference accuracy against shift",
        "Worst cases",
        "Training",
        "Samples",
        "Data card",
        "Exact configuration",
    ] {
        assert!(html.contains(&format!(">{section}</h2>")), "{section}");
    }
    // 2 mixtures: reward, 3 frontiers, accuracy; spider; 5 balls' losses and 4 errors, then 4 and 4; loss and margin.
    assert_eq!(html.matches("role=\"img\"").count(), 2 + 6 + 2 + 1 + 9 + 8 + 2);
    // SEAKEEP_REPORT_OUT=/tmp cargo test -p seakeep --lib report: to look at it in a browser.
    if let Some(directory) = std::env::var_os("SEAKEEP_REPORT_OUT") {
        std::fs::write(PathBuf::from(directory).join("policies.html"), html).unwrap();
    }
}

#[test]
fn numbers_are_those_of_the_records() {
    let all = records();
    let report = report_of(&all);
    let at = report.policies.iter().position(|p| p.label == "DPO beta 0.1").unwrap();
    let own: Vec<&PolicyRecord> =
        all.iter().map(|r| &r.1).filter(|r| r.policy.label == "DPO beta 0.1").collect();
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let all: Vec<f64> = values.collect();
        all.iter().sum::<f64>() / all.len() as f64
    };
    let score = |r: &PolicyRecord, name: &str, i: usize| r.samples.as_ref().unwrap().scores[name].0[i];
    let n = 2 * PROMPTS;
    let convex = |alpha: f64| {
        mean(&mut own.iter().map(|r| {
            mean(&mut (0..n).map(|i| alpha * score(r, "anger", i) + (1.0 - alpha) * score(r, "fear", i)))
        }))
    };
    let curve = report.mixtures[0].curves[at].as_ref().unwrap();
    for (point, alpha) in curve.points.iter().zip([0.0, 0.1, 0.2]) {
        assert!((point.reward.mean - convex(alpha)).abs() < 1e-12);
        assert!(point.reward.low < point.reward.mean && point.reward.mean < point.reward.high);
    }
    assert!((curve.at[0].mean - convex(0.1)).abs() < 1e-12 && (curve.at[1].mean - convex(1.0)).abs() < 1e-12);
    let kl = mean(&mut own.iter().map(|r| {
        let s = r.samples.as_ref().unwrap();
        let nats: f64 = s.logps.0.iter().zip(&s.ref_logps.0).map(|(p, q)| p - q).sum();
        nats / s.tokens.iter().map(|t| f64::from(*t)).sum::<f64>()
    }));
    assert!((report.policies[at].kl.unwrap().mean - kl).abs() < 1e-12);
    // Errors at radius 0 are the plain share; a larger ball is never better.
    let errors = report.data_sets[0].balls[0].curves[at].as_ref().unwrap();
    let plain = mean(
        &mut own.iter().map(|r| mean(&mut r.datasets[0].margins.0.iter().map(|h| f64::from(*h <= 0.0)))),
    );
    assert!((errors[0].1.mean - plain).abs() < 1e-12);
    assert!(errors.windows(2).all(|two| two[1].1.mean >= two[0].1.mean - 1e-12));
    // The reference's divergence is none, its gains are 0.
    assert_eq!(report.policies[0].kl.unwrap().mean, 0.0);
    assert!(
        report.spider.as_ref().unwrap().values[0].as_ref().unwrap().iter().all(|gain| gain.abs() < 1e-12)
    );
}

#[test]
fn findings_tell_skill_from_caution_and_from_luck() {
    let report = report_of(&records());
    let convex = findings(&report).into_iter().next().unwrap().sentences.join("\n");
    let of = |label: &str| {
        convex.lines().find(|line| line.starts_with(label)).unwrap_or_else(|| panic!("{convex}"))
    };
    assert!(of("KLDPO beta 0.1, tau 0.5").contains("it reaches more in the worst case than DPO"), "{convex}");
    assert!(of("WDPO").contains("it reaches less in the worst case than DPO"), "{convex}");
    assert!(of("Dr. DPO").contains("it is not told apart from DPO"), "{convex}");
    assert!(of("winsor").contains("lies outside what the DPO settings span"), "{convex}");
    let short = of("In short");
    assert!(
        short.contains("more reward than DPO: “KLDPO beta 0.1, tau 0.5”; less: “WDPO beta 0.1, rho 0.01”"),
        "{short}"
    );
    assert!(short.contains("no such comparison: “winsor"), "{short}");
    assert!(report.caveat.contains("too narrow"));
    let one = records().into_iter().filter(|r| r.1.policy.seed == 0).collect::<Vec<_>>();
    assert!(report_of(&one).caveat.contains("With one seed"));
    let text = table(&report);
    assert!(
        text.contains("Convex mixture: differences from DPO beta 0.03") && !text.contains('\u{1b}'),
        "{text}"
    );
    let chosen = PolicyOptions { baseline: Some("KLDPO beta 0.1, tau 1".into()), ..options() };
    let report = of_policies(&records(), &chosen).unwrap();
    assert!(table(&report).contains("differences from KLDPO beta 0.1, tau 1"));
    assert_eq!(report.baseline, "KLDPO");
}

#[test]
fn parts_that_are_missing_are_left_out() {
    let mut bare = records();
    for (_, record) in &mut bare {
        (record.shift, record.samples, record.training) = (None, None, None);
    }
    let html = render(&report_of(&bare));
    assert_balanced(&html);
    assert!(html.contains(">Worst cases</h2>"));
    for section in ["Reward against", "All objectives", "Samples", "Training", "Paired"] {
        assert!(!html.contains(&format!(">{section}")), "{section}");
    }
    let mut only_samples = records();
    for (_, record) in &mut only_samples {
        (record.shift, record.datasets) = (None, Vec::new());
    }
    let html = render(&report_of(&only_samples));
    assert!(html.contains("Objectives and samples") && !html.contains(">Worst cases<"));
    assert_balanced(&html);
    // Nothing at all, one record.
    let empty = PolicyRecord { schema_version: POLICY_SCHEMA_VERSION, ..PolicyRecord::default() };
    assert_balanced(&render(&report_of(&[("a.json".into(), empty)])));
}

#[test]
fn numbers_that_are_none_are_shown_as_missing() {
    let mut all = records();
    let broken = all.iter().position(|r| r.1.policy.label == "Dr. DPO beta 0.1").unwrap();
    let samples = all[broken].1.samples.as_mut().unwrap();
    samples.scores.get_mut("fear").unwrap().0[5] = f64::NAN;
    samples.logps.0[7] = f64::NAN;
    all[broken].1.datasets[0].margins.0[2] = f64::NAN;
    all[broken].1.datasets[0].losses.0[2] = f64::NAN;
    let report = report_of(&all);
    let html = render(&report);
    assert_balanced(&html);
    assert!(!html.contains("NaN") && html.contains("scores that are no numbers"));
    let row = table(&report).lines().find(|l| l.trim_start().starts_with("Dr. DPO")).unwrap().to_owned();
    assert!(row.contains('–'), "{row}");
    // A column null in the file is NaN here.
    let text = serde_json::to_string(&all[broken].1).unwrap();
    assert!(text.contains("null"));
    let back: PolicyRecord = serde_json::from_str(&text).unwrap();
    assert!(back.samples.unwrap().scores["fear"].0[5].is_nan());
}

#[test]
fn groups_have_intervals_of_their_own_rows() {
    let mut all = records();
    for (_, record) in &mut all {
        let set = &mut record.datasets[0];
        set.groups.as_mut().unwrap()[0] = "alone".into();
        // One group knows nothing; the others know what they knew.
        set.margins.0[1] = f64::NAN;
    }
    let report = report_of(&all);
    let of = |name: &str, column: &str| {
        let at = report.policies.iter().position(|p| p.label == name).unwrap();
        let table = report.tables.iter().find(|t| t.name == "Data set natural").unwrap();
        let column = table.columns.iter().find(|c| c.name == column).unwrap_or_else(|| panic!("{column}"));
        column.cells[at].unwrap()
    };
    for label in ["DPO beta 0.1", "winsor beta 0.1, with a rather long label that goes on"] {
        let plain = of(label, "plain (19 pairs)");
        assert!(plain.low <= plain.mean && plain.mean <= plain.high && plain.half() > 0.0, "{plain:?}");
        assert!(of(label, "tricky (20 pairs)").mean.is_nan() && of(label, "worst group").mean.is_nan());
        assert!(of(label, "<i>odd</i> (20 pairs)").half() > 0.0);
        // A pair that is never drawn apart from itself: over the three seeds it may still vary.
        let alone = of(label, "alone (1 pairs)");
        assert!([0.0, 1.0].contains(&alone.low) && [0.0, 1.0].contains(&alone.high), "{alone:?}");
    }
}

#[test]
fn what_is_certain_is_told_apart() {
    let mut all: Records = records().into_iter().filter(|r| r.1.policy.seed == 0).collect();
    for (_, record) in &mut all {
        let better = record.policy.method == "kldpo";
        for set in &mut record.datasets {
            set.margins.0.fill(if better { 1.0 } else { -1.0 });
        }
        for scores in record.samples.as_mut().unwrap().scores.values_mut() {
            scores.0.fill(if better { 0.75 } else { 0.25 });
        }
    }
    let report = report_of(&all);
    let text = findings(&report).iter().flat_map(|f| f.sentences.clone()).collect::<Vec<_>>().join("\n");
    assert!(text.contains("is higher: difference 0.500, 95% interval 0.500 to 0.500"), "{text}");
    assert!(
        text.contains(
            "pairs against “DPO beta 0.03”: higher: “KLDPO beta 0.1, tau 0.5”, “KLDPO beta 0.1, tau 1”"
        ),
        "{text}"
    );
    assert!(text.contains("at alpha 0.1 and 0.250 at its worst alpha, 0.0"), "{text}");
    // A single prompt says nothing of others.
    let whole = crate::stats::Draw { counts: vec![1.0], runs: vec![vec![0]] };
    let alone = options().bootstrap.joint(1, &[1], |draw| vec![((), draw.counts[0])]);
    assert!(whole.counts[0] == alone[&()].value && alone[&()].low.is_nan());
}

#[test]
fn records_that_do_not_belong_together_are_refused() {
    let refused = |change: &dyn Fn(&mut Records)| {
        let mut all = records();
        change(&mut all);
        of_policies(&all, &options()).unwrap_err().to_string()
    };
    assert!(refused(&|all| all.clear()).contains("no records"));
    let message = refused(&|all| all[4].1.schema_version = 7);
    assert!(
        message.contains("runs/4/policy.json") && message.contains("schema_version 7; expected 1"),
        "{message}"
    );
    let message = refused(&|all| all[4].1.samples.as_mut().unwrap().prompts_fingerprint = "xyz".into());
    assert!(
        message.contains("runs/0/policy.json and runs/4/policy.json") && message.contains("prompts differ"),
        "{message}"
    );
    let message = refused(&|all| {
        all[4].1.shift = None;
        all[4].1.samples.as_mut().unwrap().scores.remove("joy");
    });
    assert!(message.contains("objectives differ"), "{message}");
    let message = refused(&|all| all[4].1.shift.as_mut().unwrap().nominal_alpha = 0.5);
    assert!(message.contains("different shifts"), "{message}");
    let message = refused(&|all| all[5].1 = all[4].1.clone());
    assert!(message.contains("seed 0") && message.contains("runs/4/policy.json"), "{message}");
    let message = refused(&|all| {
        all[4].1.samples.as_mut().unwrap().tokens.pop();
    });
    assert!(message.contains("samples.tokens has 79 numbers, expected 80"), "{message}");
    let message = refused(&|all| {
        let set = &mut all[4].1.datasets[1];
        set.margins.0.pop();
        set.losses.0.pop();
    });
    assert!(message.contains("`adversarial` has different numbers of pairs"), "{message}");
    let message = refused(&|all| all[4].1.datasets[1].rows_fingerprint = Some("xyz".into()));
    assert!(message.contains("data set `adversarial` is of other rows"), "{message}");
    let trained = |all: &mut Records, rates: [f64; 3]| {
        for (record, rate) in all[4..7].iter_mut().zip(rates) {
            record.1.policy.settings.insert("learning_rate".into(), rate.into());
        }
    };
    let message = refused(&|all| trained(all, [1e-6, 1e-5, 1e-5]));
    assert!(message.contains("`learning_rate` ") && message.contains("pass for another seed"), "{message}");
    let mut alike = records();
    trained(&mut alike, [1e-6; 3]);
    assert!(of_policies(&alike, &options()).is_ok());
    let message = refused(&|all| {
        let scores = &mut all[4].1.datasets[0].score_differences;
        scores.values_mut().for_each(|column| column.0.iter_mut().for_each(|d| *d = -*d));
    });
    assert!(message.contains("the pairs of data set `natural` differ (in their scores)"), "{message}");
    let unknown = PolicyOptions { baseline: Some("DPO beta 9".into()), ..options() };
    let message = of_policies(&records(), &unknown).unwrap_err().to_string();
    assert!(
        message.contains("`DPO beta 9`, which no record has") && message.contains("`DPO beta 1`"),
        "{message}"
    );
}
