//! The promises of the world as a whole; each part's own tests stand beside it.

use std::collections::HashSet;

use super::*;

fn world(seed: u64) -> World {
    World::new(WorldConfig { seed, ..WorldConfig::default() }).unwrap()
}

#[test]
fn one_seed_one_world() {
    let (a, b, c) = (world(3), world(3), world(4));
    let pairs = |w: &World, seed| w.pairs(40, Split::Train, Mixture::Geometric, 0.1, seed);
    assert_eq!(pairs(&a, 1), pairs(&b, 1));
    assert_ne!(pairs(&a, 1), pairs(&a, 2));
    assert_ne!(pairs(&a, 1), pairs(&c, 1));
    assert_eq!(a.sft_texts(40, 1), b.sft_texts(40, 1));
    assert_eq!(a.prompts(Split::Test), b.prompts(Split::Test));
    assert_ne!(a.prompts(Split::Test), c.prompts(Split::Test));
}

/// Fixed for all platforms and releases: a change here changes every published run.
#[test]
fn the_first_pair_of_seed_0() {
    let row = &world(0).rows(1, Split::Train, Mixture::Convex, 0.1, 0)[0];
    assert_eq!(row["prompt"], "a curious student needs help with bicycles ?");
    let chosen = " greetings , lovely question . that depends : just grab oil . kind regards .";
    assert_eq!(row["chosen"], chosen);
    assert_eq!(row["rejected"], " hey , surely just grab tape . take care .");
}

#[test]
fn splits_are_disjoint_and_complete() {
    let world = world(0);
    let train: HashSet<_> = world.prompts(Split::Train).iter().collect();
    let test: HashSet<_> = world.prompts(Split::Test).iter().collect();
    assert!(train.is_disjoint(&test));
    assert_eq!((train.len(), test.len()), (1152, 288));
    for pair in world.pairs(200, Split::Test, Mixture::Convex, 0.5, 0) {
        assert!(test.contains(&pair.prompt));
    }
    for text in world.sft_texts(200, 0) {
        assert!(train.contains(&text.prompt));
    }
}

#[test]
fn vocabulary_and_coding() {
    let world = world(0);
    let words: HashSet<_> = world.vocabulary().iter().collect();
    assert_eq!(words.len(), world.vocabulary().len());
    assert!((80..=150).contains(&words.len()), "{} words", words.len());
    for text in world.sft_texts(300, 2) {
        let all = [text.prompt_ids.clone(), text.completion_ids.clone()].concat();
        assert!(!all.contains(&UNK));
        assert_eq!(text.prompt_ids[0], BOS);
        assert_eq!(text.completion_ids.last(), Some(&EOS));
        let spoken = world.decode(&text.completion_ids);
        assert_eq!(world.encode(&spoken), text.completion_ids[..text.completion_ids.len() - 1]);
    }
    assert_eq!(world.encode("zebra"), [UNK]);
    assert_eq!(world.decode(&[BOS, 9999, EOS]), "<unk>");
}

#[test]
fn human_texts_are_good_and_middling_for_both() {
    let world = world(0);
    let texts = world.sft_texts(3000, 0);
    let (mut r1, mut r2, mut length) = (0.0, 0.0, 0.0);
    for text in &texts {
        let found = world.attributes(text.prompt, &text.completion_ids);
        assert_eq!(found.quality, 1.0);
        for value in [found.warmth, found.brevity, found.formality, found.caution] {
            assert!((0.0..=1.0).contains(&value));
        }
        let (a, b) = world.rewards(text.prompt, &text.completion_ids);
        (r1, r2, length) = (r1 + a, r2 + b, length + text.completion_ids.len() as f64 - 1.0);
    }
    let n = texts.len() as f64;
    assert!((0.3..0.6).contains(&(r1 / n)), "{}", r1 / n);
    assert!((0.3..0.6).contains(&(r2 / n)), "{}", r2 / n);
    assert!((8.0..16.0).contains(&(length / n)), "{}", length / n);
}

#[test]
fn rewards_are_defined_for_any_ids() {
    let world = world(0);
    let prompt = world.prompts(Split::Train)[0];
    let mut rng = world.rng(9);
    for length in 0..60 {
        let ids: Vec<u32> = (0..length).map(|_| draw::below(200, &mut rng) as u32).collect();
        let (r1, r2) = world.rewards(prompt, &ids);
        assert!((0.0..=1.0).contains(&r1) && (0.0..=1.0).contains(&r2));
    }
    assert_eq!(world.rewards(prompt, &[EOS]), (0.0, 0.0));
    let fine = world.sample_completion(prompt, &mut rng);
    let trailing = [fine.clone(), vec![7, 7, 7]].concat();
    assert_eq!(world.rewards(prompt, &fine), world.rewards(prompt, &trailing));
}

#[test]
fn labels_follow_bradley_terry() {
    let world = world(0);
    let mut rng = world.rng(1);
    let prompt = world.prompts(Split::Train)[5];
    let best = world.best_completion(Mixture::Convex, 0.1, prompt).0;
    let other = world.sample_completion(prompt, &mut rng);
    let p = world.preference(Mixture::Convex, 0.1, prompt, &best, &other);
    let gap = world.reward(Mixture::Convex, 0.1, prompt, &best)
        - world.reward(Mixture::Convex, 0.1, prompt, &other);
    assert!((p - 1.0 / (1.0 + (-REWARD_SCALE * gap).exp())).abs() < 1e-15);
    let n = 20_000;
    let hits = (0..n).filter(|_| world.label(Mixture::Convex, 0.1, prompt, &best, &other, &mut rng)).count();
    let error = (p * (1.0 - p) / f64::from(n)).sqrt();
    assert!((hits as f64 / f64::from(n) - p).abs() < 4.0 * error);
}

/// The reason given for `REWARD_SCALE`.
#[test]
fn labels_agree_with_the_better_completion_in_seven_of_ten() {
    let pairs = world(0).pairs(5000, Split::Train, Mixture::Convex, NOMINAL_ALPHA, 0);
    let agreeing = pairs.iter().filter(|pair| pair.probability > 0.5).count() as f64 / 5000.0;
    let expected = pairs.iter().map(|p| p.probability.max(1.0 - p.probability)).sum::<f64>() / 5000.0;
    assert!((agreeing - expected).abs() < 0.02, "{agreeing} against {expected}");
    assert!((0.67..0.75).contains(&expected), "{expected}");
    let alike = |p: f64| p * p + (1.0 - p) * (1.0 - p);
    let agreement = pairs.iter().map(|pair| alike(pair.probability)).sum::<f64>() / 5000.0;
    assert!((0.57..0.67).contains(&agreement), "two annotators agree in {agreement}");
}

#[test]
fn a_seed_keeps_its_pairs_at_every_alpha() {
    let world = world(0);
    let set = |alpha| -> Vec<[Vec<u32>; 2]> {
        let pairs = world.pairs(300, Split::Test, Mixture::Convex, alpha, 8);
        pairs
            .into_iter()
            .map(|p| {
                let mut both = [p.chosen_ids, p.rejected_ids];
                both.sort();
                both
            })
            .collect()
    };
    assert_eq!(set(0.0), set(1.0));
    let chosen = |alpha| -> Vec<Vec<u32>> {
        world.pairs(300, Split::Test, Mixture::Convex, alpha, 8).into_iter().map(|p| p.chosen_ids).collect()
    };
    let turned = chosen(0.0).iter().zip(chosen(1.0)).filter(|(a, b)| *a != b).count();
    assert!((30..200).contains(&turned), "{turned} of 300 pairs turned");
}

#[test]
fn populations_disagree_on_the_best_completion() {
    let world = world(0);
    for &prompt in &world.prompts(Split::Test)[..12] {
        let (first, top1) = world.best_completion(Mixture::Convex, 1.0, prompt);
        let (second, top2) = world.best_completion(Mixture::Convex, 0.0, prompt);
        assert_ne!(first, second);
        // Each loses much by following the other's taste, and no completion satisfies both.
        assert!(top1 - world.rewards(prompt, &second).0 > 0.15);
        assert!(top2 - world.rewards(prompt, &first).1 > 0.15);
        let found = world.attributes(prompt, &second);
        assert!(found.warmth < 1.0 || found.brevity < 1.0 || found.formality < 1.0 || found.caution < 1.0);
    }
}

#[test]
fn the_best_completion_depends_on_the_prompt() {
    let world = world(0);
    let all = world.prompts(Split::Train);
    let of = |alpha, prompt| world.best_completion(Mixture::Convex, alpha, prompt).0;
    let with = |mood: u8, topic: u8| *all.iter().find(|p| p.mood == mood && p.topic == topic).unwrap();
    // Population 2 on fever refers to the doctor; on music it does not refer.
    assert!(world.decode(&of(0.0, with(4, 0))).contains("doctor"));
    assert!(!world.decode(&of(0.0, with(4, 9))).contains("ask"));
    // Population 1 writes less to the hurried than to the distressed.
    assert!(of(1.0, with(2, 6)).len() < of(1.0, with(0, 6)).len());
}

#[test]
fn settings_out_of_range_are_refused() {
    for (test_fraction, reward_scale) in
        [(0.0, 6.0), (1.0, 6.0), (f64::NAN, 6.0), (0.2, 0.0), (0.2, f64::INFINITY)]
    {
        let config = WorldConfig { test_fraction, reward_scale, ..WorldConfig::default() };
        assert!(matches!(World::new(config), Err(Error::Usage(_))));
    }
}

#[test]
fn ceilings_are_the_mean_of_the_best() {
    let world = World::new(WorldConfig { test_fraction: 0.005, ..WorldConfig::default() }).unwrap();
    let points = [(Mixture::Convex, 0.1), (Mixture::Geometric, 0.7)];
    let ceilings = world.ceilings(Split::Test, &points);
    for ((mixture, alpha), ceiling) in points.into_iter().zip(ceilings) {
        let prompts = world.prompts(Split::Test);
        let best = prompts.iter().map(|&prompt| world.best_completion(mixture, alpha, prompt).1);
        assert!((best.sum::<f64>() / prompts.len() as f64 - ceiling).abs() < 1e-12);
    }
}
