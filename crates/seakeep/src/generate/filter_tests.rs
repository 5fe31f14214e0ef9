//! Filters against transformers' processors, ends of texts, and rows that do not depend on each other.

use std::collections::BTreeMap;

use serde_json::Value;

use super::tests::{golden, prompts, sampled, tokenizer};
use super::*;
use crate::model::KvCache;
use crate::progress::Silent;

#[test]
fn filters_leave_what_transformers_processors_leave() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sampling.json");
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
        let real = |key: &str, default: f64| case["options"][key].as_f64().unwrap_or(default);
        let options = GenerateOptions {
            do_sample: true,
            temperature: real("temperature", 1.0),
            top_k: real("top_k", 0.0) as usize,
            top_p: real("top_p", 1.0),
            min_p: real("min_p", 0.0),
            repetition_penalty: real("repetition_penalty", 1.0),
            min_new_tokens: real("min_new_tokens", 0.0) as usize,
            ..Default::default()
        };
        let mut logits: Vec<f32> = serde_json::from_value(case["logits"].clone()).unwrap();
        let mut seen = ids("text");
        seen.sort_unstable();
        seen.dedup();
        let early = case["generated"].as_u64().unwrap() < options.min_new_tokens as u64;
        adjust(&mut logits, &seen, if early { ids("eos") } else { Vec::new() }.as_slice(), &options).unwrap();
        let got = distribution(&logits, &options).unwrap();
        let mut want: Vec<(u32, f64)> = case["kept"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(token, p)| (token.parse().unwrap(), p.as_f64().unwrap()))
            .collect();
        want.sort_by_key(|(token, _)| *token);
        let tokens = |list: &[(u32, f64)]| list.iter().map(|(token, _)| *token).collect::<Vec<_>>();
        assert_eq!(tokens(&got), tokens(&want), "{}", case["options"]);
        for (got, want) in got.iter().zip(&want) {
            // Logits and weights are f32 here.
            assert!((got.1 - want.1).abs() < 2e-6 * want.1 + 1e-7, "{}: {got:?}, {want:?}", case["options"]);
        }
    }
}

#[test]
fn a_draw_without_filters_follows_the_weights_over_many_blocks() {
    // More than two blocks of sums, and a rest; every tenth token weighs 9 times what another does.
    let logits: Vec<f32> = (0..1100).map(|i| if i % 10 == 0 { 9.0f32.ln() } else { 0.0 }).collect();
    let options = sampled(1);
    let (mut rng, mut scratch) = (super::sample::stream(1, 2, 3), Vec::new());
    let (mut heavy, mut late) = (0, 0);
    const DRAWS: usize = 20_000;
    for _ in 0..DRAWS {
        let token = next_token(&logits, &options, &mut rng, &mut scratch).unwrap();
        heavy += usize::from(token.is_multiple_of(10));
        late += usize::from(token >= 1000);
    }
    // Shares 1/2 and 1/11; 4 standard deviations.
    assert!(heavy.abs_diff(DRAWS / 2) < 283, "{heavy}");
    assert!(late.abs_diff(DRAWS / 11) < 163, "{late}");
}

#[test]
fn logits_are_the_same_bits_alone_and_among_others_and_after_a_shared_prefix() {
    for case in ["llama", "mistral", "qwen3", "gpt2", "gpt_neox"] {
        let model = golden(case);
        let prompts = prompts();
        let feed = |caches: &mut [KvCache], new: &[&[u32]]| {
            model.logits(&model.extend(&mut caches.iter_mut().collect::<Vec<_>>(), new).unwrap())
        };
        let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let mut caches = vec![KvCache::new(&model.config); all.len()];
        let together = [feed(&mut caches, &all), feed(&mut caches, &[&[7][..]; 5])];
        // Twenty samples of each prompt, which share it: another width of panels.
        let mut many: Vec<KvCache> = Vec::new();
        let vocab = model.config.vocab_size;
        for (i, prompt) in all.iter().enumerate() {
            let mut alone = [KvCache::new(&model.config)];
            let row = i * vocab..(i + 1) * vocab;
            assert!(feed(&mut alone, &[prompt])[..] == together[0][row.clone()], "{case}, prompt {i}");
            let prefix = alone[0].clone().into_prefix();
            assert!(feed(&mut alone, &[&[7]])[..] == together[1][row], "{case}, prompt {i}, next");
            many.extend((0..20).map(|_| KvCache::after(&prefix, 1)));
        }
        let shared = feed(&mut many, &vec![&[7][..]; 100]);
        for (i, logits) in shared.chunks_exact(vocab).enumerate() {
            assert!(*logits == together[1][i / 20 * vocab..][..vocab], "{case}, sample {i}");
        }
    }
}

#[test]
fn a_prefix_of_a_prefix_is_the_whole() {
    let model = golden("llama");
    let mut first = KvCache::new(&model.config);
    model.extend(&mut [&mut first], &[&[3, 1, 4]]).unwrap();
    let mut plain = first.clone();
    let mut second = KvCache::after(&first.into_prefix(), 4);
    for token in [1, 5] {
        model.extend(&mut [&mut second, &mut plain], &[&[token], &[token]]).unwrap();
    }
    let mut third = KvCache::after(&second.into_prefix(), 1);
    assert_eq!(third.len(), 5);
    let logits = model.logits(&model.extend(&mut [&mut third, &mut plain], &[&[9], &[9]]).unwrap());
    let (a, b) = logits.split_at(model.config.vocab_size);
    // The same sums over the same keys.
    assert!(a == b);
}

#[test]
fn prompts_that_begin_alike_get_what_each_gets_alone() {
    for case in ["llama", "mistral", "gpt2"] {
        let model = golden(case);
        let common = [4, 8, 15, 16, 23, 4, 2, 30, 9];
        let prompts: Vec<Vec<u32>> =
            [&[1, 2, 3][..], &[], &[5], &[7, 7]].iter().map(|own| [&common, *own].concat()).collect();
        let options = GenerateOptions { num_return_sequences: 2, batch_size: 3, ..sampled(5) };
        let run = |jobs: &[Job]| {
            let mut all = BTreeMap::new();
            let done = &mut |row, samples: Vec<Sample>| {
                all.insert(row, samples);
                Ok(())
            };
            generate_each(&model, jobs, &options, Stop::at(&[]), &mut Silent, done).unwrap();
            all
        };
        let jobs = |rows: std::ops::Range<usize>| -> Vec<Job> {
            rows.map(|row| Job { row, prompt: prompts[row].clone() }).collect()
        };
        let together = run(&jobs(0..4));
        for row in 0..4 {
            assert_eq!(run(&jobs(row..row + 1))[&row], together[&row], "{case}, prompt {row}");
        }
        // The bits, not only the tokens.
        let mut whole = KvCache::new(&model.config);
        let want = model.extend(&mut [&mut whole], &[&prompts[0]]).unwrap();
        let mut first = KvCache::new(&model.config);
        model.extend(&mut [&mut first], &[&common[..8]]).unwrap();
        let mut rest = KvCache::after(&first.into_prefix(), 4);
        assert!(model.extend(&mut [&mut rest], &[&prompts[0][8..]]).unwrap()[..] == want[..], "{case}");
    }
}

#[test]
fn a_text_ends_before_its_string_and_not_before_its_least_length() {
    let (model, tokenizer) = (golden("llama"), tokenizer());
    let jobs = [Job { row: 0, prompt: vec![0, 5, 9] }];
    let run = |options: &GenerateOptions, stop: Stop| {
        let mut all = Vec::new();
        generate_each(&model, &jobs, options, stop, &mut Silent, &mut |_, samples| {
            all.extend(samples);
            Ok(())
        })
        .unwrap();
        all.pop().unwrap()
    };
    let options = sampled(12);
    let whole = run(&options, Stop::default());
    assert_eq!((whole.tokens.len(), whole.finish), (12, FinishReason::Length));
    // The fifth word, and a string that reaches over two words.
    let text = completion(&tokenizer, &whole.tokens, &[], 0).unwrap();
    let words: Vec<&str> = text.split(' ').collect();
    let strings = [format!("{} {}", words[4], words[5])];
    let stop = Stop { tokens: &[], strings: &strings, tokenizer: Some(&tokenizer) };
    let cut = run(&options, stop);
    assert_eq!(cut.finish, FinishReason::Stop);
    assert_eq!(cut.tokens[..], whole.tokens[..cut.tokens.len()]);
    let shown = completion(&tokenizer, &cut.tokens, &strings, 0).unwrap();
    assert!(cut.tokens.len() < 12 && text.starts_with(&shown) && !shown.contains(&strings[0]), "{shown:?}");
    assert_eq!(Some(shown.len()), text.find(&strings[0]));

    // What the shortest completion holds ends nothing, nor is it cut there.
    let patient = GenerateOptions { min_new_tokens: 8, ..options.clone() };
    let late = run(&patient, stop);
    assert!(late.tokens.len() >= 8 && late.tokens == whole.tokens[..late.tokens.len()], "{late:?}");
    let shown = completion(&tokenizer, &late.tokens, &strings, 8).unwrap();
    assert_eq!(shown.find(&strings[0]), text.find(&strings[0]));

    let ends = [whole.tokens[2]];
    let early = run(&options, Stop::at(&ends));
    assert_eq!(early.finish, FinishReason::Stop);
    assert!(early.tokens.len() <= 3 && early.tokens.ends_with(&ends));
    let patient = GenerateOptions { min_new_tokens: 6, ..options };
    let late = run(&patient, Stop::at(&ends));
    assert!(late.tokens.len() >= 7 || late.finish == FinishReason::Length, "{late:?}");
    assert!(!late.tokens[..6].contains(&ends[0]), "{late:?}");
}

#[test]
fn rows_decide_and_not_places_in_the_list() {
    let model = golden("llama");
    let job = |row: usize| Job { row, prompt: prompts()[row].clone() };
    let options = GenerateOptions { num_return_sequences: 2, batch_size: 3, ..sampled(6) };
    let run = |jobs: &[Job]| {
        let mut all = std::collections::BTreeMap::new();
        generate_each(&model, jobs, &options, Stop::default(), &mut Silent, &mut |row, samples| {
            all.insert(row, samples);
            Ok(())
        })
        .unwrap();
        all
    };
    let whole = run(&[0, 1, 2, 3, 4].map(job));
    let part = run(&[4, 1].map(job));
    assert_eq!(part.len(), 2);
    assert!(part.iter().all(|(row, samples)| whole[row] == *samples));
}

#[test]
fn the_new_options_are_refused_by_name() {
    let good = GenerateOptions { do_sample: true, ..Default::default() };
    for (options, words) in [
        (GenerateOptions { min_p: -0.1, ..good.clone() }, "`min_p` is -0.1; expected a number from 0 to 1"),
        (GenerateOptions { min_p: f64::NAN, ..good.clone() }, "`min_p` is NaN"),
        (
            GenerateOptions { repetition_penalty: 0.0, ..good.clone() },
            "`repetition_penalty` is 0; expected a number above 0",
        ),
        (
            GenerateOptions { min_new_tokens: 300, ..good },
            "`min_new_tokens` is 300; expected at most `max_new_tokens` = 256",
        ),
    ] {
        let error = options.check().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
