use super::*;
use std::path::Path;
use std::sync::Arc;

fn completion(prompt: &str, text: &str, scores: &[(&str, f64)]) -> Completion {
    Completion {
        file: Arc::from(Path::new("s.jsonl")),
        row: 4,
        prompt: json!(prompt),
        completion: json!(text),
        scores: scores.iter().map(|(k, v)| (k.to_string(), *v)).collect(),
        columns: json!({"group": prompt.len() % 2}).as_object().unwrap().clone(),
    }
}

fn options() -> PairOptions {
    PairOptions {
        weights: vec![("a".into(), 0.25), ("b".into(), 0.75)],
        form: Form::Convex,
        labels: Labels::BradleyTerry,
        scale: 1.0,
        pairs_per_prompt: Some(1),
        min_margin: 0.0,
        max_margin: f64::INFINITY,
        flip_rate: 0.0,
        test_share: 0.0,
        keep: vec!["group".into()],
        seed: 1,
    }
}

/// `n` prompts with two completions each, of rewards 2 and 0.
fn two_each(n: usize) -> Vec<Completion> {
    let of = |i: usize| {
        let prompt = format!("prompt {i}");
        [
            completion(&prompt, "good", &[("a", 2.0), ("b", 2.0)]),
            completion(&prompt, "bad", &[("a", 0.0), ("b", 0.0)]),
        ]
    };
    (0..n).flat_map(of).collect()
}

fn share(rows: &[Value], of: impl Fn(&Value) -> bool) -> f64 {
    rows.iter().filter(|r| of(r)).count() as f64 / rows.len() as f64
}

#[test]
fn mixtures_are_their_closed_forms() {
    let c = completion("p", "c", &[("a", 0.81), ("b", 0.16)]);
    assert!((options().reward(&c).unwrap() - (0.25 * 0.81 + 0.75 * 0.16)).abs() < 1e-15);
    let geometric = PairOptions { form: Form::Geometric, ..options() };
    assert!((geometric.reward(&c).unwrap() - 0.81f64.powf(0.25) * 0.16f64.powf(0.75)).abs() < 1e-15);
    let negative = completion("p", "c", &[("a", -0.1), ("b", 0.1)]);
    let message = geometric.reward(&negative).unwrap_err().to_string();
    assert!(message.contains("s.jsonl, row 4") && message.contains("no negative score"), "{message}");
    let other = PairOptions { weights: vec![("helpfull".into(), 1.0)], ..options() };
    let message = other.reward(&completion("p", "c", &[("helpful", 1.0)])).unwrap_err().to_string();
    assert!(message.contains("did you mean `helpful`?"), "{message}");
}

/// 4,000 draws: the rate within four standard errors of the probability.
#[test]
fn labels_are_drawn_at_bradley_terrys_rate() {
    let n = 4000;
    for (scale, flip_rate) in [(1.0, 0.0), (0.2, 0.0), (1.0, 0.3)] {
        let made = make_pairs(&two_each(n), &PairOptions { scale, flip_rate, ..options() }).unwrap();
        let p = sigmoid(2.0 * scale);
        let want = p * (1.0 - flip_rate) + (1.0 - p) * flip_rate;
        let got = share(&made.train, |r| r["chosen"] == "good");
        assert!((got - want).abs() < 4.0 * (want * (1.0 - want) / n as f64).sqrt(), "{got} {want}");
        assert!((made.card.agreement.unwrap() - got).abs() < 1e-12);
        for row in &made.train[..20] {
            let q = if row["chosen"] == "good" { p } else { 1.0 - p };
            assert!((row["soft_label"].as_f64().unwrap() - q).abs() < 1e-12);
        }
    }
    let higher = make_pairs(&two_each(50), &PairOptions { labels: Labels::Higher, ..options() }).unwrap();
    assert_eq!(share(&higher.train, |r| r["chosen"] == "good"), 1.0);
}

#[test]
fn what_becomes_of_a_prompt_depends_on_nothing_else() {
    let mut rows = two_each(40);
    let split = PairOptions { test_share: 0.3, ..options() };
    let made = make_pairs(&rows, &split).unwrap();
    assert_eq!(made.train.len() + made.test.len(), 40);
    assert!((5..20).contains(&made.test.len()), "{}", made.test.len());
    rows.rotate_left(26);
    let turned = make_pairs(&rows[..30], &split).unwrap();
    assert!(turned.train.iter().all(|row| made.train.contains(row)));
    assert!(turned.test.iter().all(|row| made.test.contains(row)));
    let noisy = make_pairs(&rows, &PairOptions { flip_rate: 0.5, ..split }).unwrap();
    assert_eq!(noisy.test.len(), made.test.len(), "flips move nobody to the other side");
}

#[test]
fn pairs_are_drawn_without_repetition_or_by_rank() {
    let rows: Vec<Completion> =
        (0..5).map(|i| completion("p", &format!("c{i}"), &[("a", i as f64), ("b", 0.0)])).collect();
    let all = make_pairs(&rows, &PairOptions { pairs_per_prompt: None, ..options() }).unwrap().train;
    let mut met: Vec<[String; 2]> = all
        .iter()
        .map(|r| {
            let mut two = ["chosen", "rejected"].map(|k| r[k].as_str().unwrap().to_string());
            two.sort();
            two
        })
        .collect();
    met.sort();
    met.dedup();
    assert_eq!(met.len(), 10);
    let best = make_pairs(&rows, &PairOptions { labels: Labels::BestWorst, ..options() }).unwrap().train;
    assert_eq!((&best[0]["chosen"], &best[0]["rejected"], best.len()), (&json!("c4"), &json!("c0"), 1));
    assert_eq!(best[0]["group"], 1);
    let narrow = PairOptions { pairs_per_prompt: None, min_margin: 0.4, max_margin: 0.6, ..options() };
    let narrow = make_pairs(&rows, &narrow).unwrap();
    // Rewards are multiples of 0.25: three pairs lie two steps apart.
    assert_eq!((narrow.train.len(), narrow.card.filtered), (3, 7));
    let message = make_pairs(&rows[..1], &options()).err().unwrap().to_string();
    assert!(message.contains("1 prompts have one completion only"), "{message}");
}

#[test]
fn the_card_counts() {
    let mut rows = two_each(10);
    rows.push(rows[0].clone());
    rows.push(completion("alone", "x", &[("a", 1.0), ("b", -1.0)]));
    rows.push(completion("alone", "", &[("a", 0.5), ("b", 0.5)]));
    let made = make_pairs(&rows, &PairOptions { labels: Labels::Higher, ..options() }).unwrap();
    let card = &made.card;
    assert_eq!(
        (card.completions, card.prompts, card.duplicates, card.empty, card.lone_prompts),
        (23, 11, 1, 1, 1)
    );
    assert_eq!((card.agreement, card.objective_agreement["a"]), (Some(1.0), Some(1.0)));
    assert_eq!(
        (card.margins.mean, card.chosen_characters.p50, card.rejected_characters.p50),
        (2.0, 4.0, 3.0)
    );
    assert_eq!(card.correlations["a"]["a"].map(|c| (c * 1e9).round()), Some(1e9));
    assert!(card.correlations["a"]["b"].unwrap() > 0.9);
    let chat = Completion { prompt: json!([{"role": "user", "content": "q"}]), ..rows[0].clone() };
    assert_eq!(chat.answer()[0]["role"], "assistant");
}

#[test]
fn columns_that_cannot_be_kept_are_named() {
    let fails = |name: &str| {
        let options = PairOptions { keep: vec![name.into()], ..options() };
        make_pairs(&two_each(3), &options).err().unwrap().to_string()
    };
    assert!(
        fails("chosen").contains("`chosen` is a column that pairs have of their own"),
        "{}",
        fails("chosen")
    );
    assert!(
        fails("grup").contains("no completion has a column `grup`; did you mean `group`?"),
        "{}",
        fails("grup")
    );
}
