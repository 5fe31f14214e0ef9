use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::metrics::groups;
use super::*;
use crate::data::{Completion, Pair, Role, Text};
use crate::stats::Bootstrap;
use crate::{Error, Result};

fn read(name: &str, text: &str, change: impl Fn(&mut Sources)) -> Result<Interactions> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::write(place.path().join("items.csv"), "item,title\n1,\"Sea, The\"\n2,City\n3,\"Sea,  The\"\n")
        .unwrap();
    let mut sources = Sources { interactions: path.display().to_string(), ..Sources::default() };
    change(&mut sources);
    if sources.items.is_some() {
        sources.items = Some(place.path().join("items.csv").display().to_string());
    }
    read_interactions(&sources)
}

fn chosen(data: &Interactions) -> Vec<(&str, Vec<&str>)> {
    let titles = |u: &User| u.items.iter().map(|&i| data.titles[i].as_str()).collect();
    data.users.iter().map(|u| (u.name.as_str(), titles(u))).collect()
}

#[test]
fn histories_come_in_the_order_of_time_from_every_format() {
    let expected = vec![("a", vec!["x", "y", "z"]), ("b", vec!["z"])];
    let csv = "user,item,timestamp\na,z,30\nb,z,5\na,x,9\na,y,20\n";
    assert_eq!(chosen(&read("i.csv", csv, |_| ()).unwrap()), expected);
    assert_eq!(chosen(&read("i.tsv", &csv.replace(',', "\t"), |_| ()).unwrap()), expected);
    let lens = csv.lines().skip(1).map(|l| l.replace(',', "::") + "\n").collect::<String>();
    let columns = |s: &mut Sources| {
        s.format.separator = Some("::".into());
        s.format.columns = Some(["user", "item", "timestamp"].map(String::from).to_vec());
    };
    assert_eq!(chosen(&read("i.dat", &lens, columns).unwrap()), expected);
    let rows = [("a", "z", 30), ("b", "z", 5), ("a", "x", 9), ("a", "y", 20)];
    let lines = rows.map(|(u, i, t)| format!("{}\n", json!({"user": u, "item": i, "timestamp": t}))).concat();
    assert_eq!(chosen(&read("i.jsonl", &lines, |_| ()).unwrap()), expected);
    // Dates; and no time at all, when the file's order counts.
    let dates = csv.replace("30", "2024-03-01").replace(",5", ",2024-01-01").replace(",9", ",2023-12-31");
    assert_eq!(chosen(&read("i.csv", &dates.replace(",20\n", ",2024-01-05\n"), |_| ()).unwrap()), expected);
    let data = read("i.csv", "user,item\na,z\na,x\na,y\n", |_| ()).unwrap();
    assert_eq!(chosen(&data), [("a", vec!["z", "x", "y"])]);
}

#[test]
fn ids_get_titles_and_titles_are_items() {
    let data = read("i.csv", "user,item,rating\na,1,5\na,2,3.5\na,3,5\n", |s| {
        s.items = Some(String::new());
        s.min_rating = Some(4.0);
    });
    let data = data.unwrap();
    // 1 and 3 have the same title, but for space.
    assert_eq!(data.titles, ["City", "Sea, The"]);
    assert_eq!(chosen(&data), [("a", vec!["Sea, The", "Sea, The"])]);
    assert_eq!((data.merged_ids, data.low_rated, data.count), (1, 1, 2));
}

#[test]
fn what_cannot_be_read_is_named() {
    let fails = |name: &str, text: &str, part: &str, change: &dyn Fn(&mut Sources)| {
        let error = read(name, text, change).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    let same = &|_: &mut Sources| ();
    fails(
        "i.csv",
        "users,item\na,x\n",
        "no column `user`; did you mean `users`? (--user_column names it)",
        same,
    );
    fails(
        "i.csv",
        "user,item\na,\"x\na,y\n",
        "i.csv, row 2: a quote (\") that is opened here and never closed",
        same,
    );
    fails("i.csv", "user,item\na,x\na\n", "i.csv, row 3: 1 columns at `,`, expected 2 (user, item)", same);
    fails("i.csv", "user,item\na,x\na, \n", "row 3, key `item`: empty or missing", same);
    fails(
        "i.csv",
        "user,item,timestamp\na,x,1\na,y,soon\n",
        "row 3, key `timestamp`: `soon`, expected a number",
        same,
    );
    fails("i.csv", "user,item,timestamp\na,x,soon\n", "expected a number (such as seconds) or a date", same);
    fails(
        "i.csv",
        "user,item,group\na,x,n\na,y,s\n",
        "row 3, key `group`: `s`, but user `a` was of `n`",
        same,
    );
    fails("i.csv", "user,item\na,9\n", "row 2, key `item`: `9`, which the items file does not have", &|s| {
        s.items = Some(String::new())
    });
    fails("i.csv", "user,item\na,x\n", "no column `rating`", &|s| s.min_rating = Some(1.0));
    fails("i.csv", "user,item,rating\na,x,good\n", "key `rating`: `good`, expected a number", &|s| {
        s.min_rating = Some(1.0)
    });
    fails("i.csv", "user,item,rating\na,x,1\n", "all 1 are rated below", &|s| s.min_rating = Some(4.0));
    fails("i.csv", "user,item\n", "no rows below the names", same);
    fails("i.csv", "", "the file is empty", same);
    fails("i.txt", "user,item\na,x\n", "give --separator", same);
    fails("i.csv", "user,item\na,x\n", "no column `when`", &|s| s.columns.timestamp = Some("when".into()));
}

#[test]
fn templates_are_filled_once_and_checked() {
    let template = Template::new("{{A}} {history} of {candidates}:", ", ", false).unwrap();
    // A title in braces is a title.
    assert_eq!(template.prompt(&["{candidates}", "y"], &["z"]), "{A} {candidates}, y of z:");
    assert_eq!((template.completion("y"), template.candidate("y")), (json!(" y"), " y".to_string()));
    assert_eq!(Template::new("{history}\n", "; ", false).unwrap().completion("y"), "y");
    let chat = Template::new("{history}", "; ", true).unwrap();
    assert_eq!(chat.prompt(&["x"], &[]), json!([{"role": "user", "content": "x"}]));
    assert_eq!(chat.completion("y"), json!([{"role": "assistant", "content": "y"}]));
    assert!(!chat.shows_candidates() && template.shows_candidates());
    for (text, part) in [
        ("{candidates}", "no `{history}`"),
        ("{history} {histroy}", "`{histroy}` is unknown"),
        ("{history", "a brace without its other"),
        ("{history}: ", "a space at its end"),
    ] {
        let error = Template::new(text, ", ", false).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// Users `u0`, ... of these numbers of items; user k begins with item k, and goes on by one. 40 items.
fn users(lengths: &[usize]) -> Interactions {
    let titles: Vec<String> = (0..40).map(|i| format!("t{i:02}")).collect();
    let user = |(k, &n): (usize, &usize)| User {
        name: format!("u{k}"),
        group: Some(if k % 2 == 0 { "even" } else { "odd" }.into()),
        items: (k..k + n).collect(),
    };
    let users: Vec<User> = lengths.iter().enumerate().map(user).collect();
    Interactions { count: lengths.iter().sum(), users, titles, ..Interactions::default() }
}

fn options() -> PrepareOptions {
    PrepareOptions {
        history: 3,
        candidates: 6,
        negatives: 2,
        min_interactions: 4,
        positions: None,
        shift: Shift::None,
        template: Template::new("{history} of {candidates}:", ",", false).unwrap(),
        seed: 7,
    }
}

fn rows(data: &Interactions, options: &PrepareOptions) -> Result<(Vec<(Part, Value)>, Card)> {
    let mut rows = Vec::new();
    let card = prepare(data, options, &mut |part, row| {
        rows.push((part, row));
        Ok(())
    })?;
    Ok((rows, card))
}

fn of(rows: &[(Part, Value)], part: Part) -> Vec<&Value> {
    rows.iter().filter(|(p, _)| *p == part).map(|(_, row)| row).collect()
}

#[test]
fn the_last_item_tests_and_the_one_before_validates() {
    let (rows, card) = rows(&users(&[7, 3]), &options()).unwrap();
    assert_eq!((card.users, card.short_users, card.shifted_users), (2, 1, 0));
    let targets = |part: Part, key: &str| -> Vec<String> {
        of(&rows, part).iter().map(|r| r[key].as_str().unwrap().to_string()).collect()
    };
    // Items 0 to 6: the first has no history.
    assert_eq!(targets(Part::Sft, "completion"), [" t01", " t02", " t03", " t04"]);
    assert_eq!(targets(Part::Train, "chosen"), [" t01", " t02", " t03", " t04"]);
    assert_eq!(targets(Part::Validation, "target"), [" t05"]);
    assert_eq!(targets(Part::Test, "target"), [" t06"]);
    assert!(of(&rows, Part::TestShifted).is_empty());
    assert_eq!(card.rows["train.jsonl"], 4);
    let test = of(&rows, Part::Test)[0];
    assert!(test["prompt"].as_str().unwrap().starts_with("t03,t04,t05 of "), "{test}");
    assert_eq!((&test["user"], &test["group"]), (&json!("u0"), &json!("even")));
    for (_, row) in &rows {
        let Some(rejected) = row["rejected"].as_array() else { continue };
        assert_eq!(rejected.len(), 2);
        let prompt = row["prompt"].as_str().unwrap();
        let shown: BTreeSet<&str> =
            prompt.split_once(" of ").unwrap().1.trim_end_matches(':').split(',').collect();
        assert_eq!(shown.len(), 6, "{prompt}");
        // All are shown, and of the user's items only the one that was chosen is a candidate.
        for title in rejected.iter().chain([&row["chosen"]]) {
            assert!(shown.contains(title.as_str().unwrap().trim()), "{row}");
        }
        let own = shown.iter().filter(|t| t[1..].parse::<usize>().unwrap() < 7).count();
        assert_eq!(own, 1, "{row}");
    }
}

#[test]
fn rows_depend_on_seed_user_and_position_alone() {
    let data = users(&[7, 6]);
    let (all, _) = rows(&data, &options()).unwrap();
    let (few, _) = rows(&data, &PrepareOptions { positions: Some(2), ..options() }).unwrap();
    let mut turned = data.clone();
    turned.users.reverse();
    let (turned, _) = rows(&turned, &options()).unwrap();
    let sorted = |rows: &[(Part, Value)]| {
        let mut lines: Vec<String> = rows.iter().map(|(p, r)| format!("{p:?} {r}")).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&all), sorted(&turned));
    assert_eq!(of(&few, Part::Train).len(), 4);
    assert!(sorted(&few).iter().all(|row| sorted(&all).contains(row)));
    let (other, _) = rows(&data, &PrepareOptions { seed: 8, ..options() }).unwrap();
    assert_ne!(sorted(&all), sorted(&other));
}

#[test]
fn candidates_are_uniform_and_the_target_stands_anywhere() {
    // 400 users of the same five items; 35 others.
    let mut data = users(&[5; 400]);
    data.users.iter_mut().for_each(|u| u.items = (0..5).collect());
    for candidates in [4, 20] {
        let (rows, _) = rows(&data, &PrepareOptions { candidates, ..options() }).unwrap();
        let (mut places, mut drawn) = (vec![0.0; candidates], vec![0.0; 40]);
        for row in of(&rows, Part::Test) {
            for (at, title) in row["candidates"].as_array().unwrap().iter().enumerate() {
                places[at] += f64::from(*title == row["target"]);
                drawn[title.as_str().unwrap()[2..].parse::<usize>().unwrap()] += 1.0;
            }
        }
        // Chi-square: mean df, deviation sqrt(2 df); five deviations.
        let chi = |counts: &[f64], expected: f64| -> f64 {
            counts.iter().map(|n| (n - expected).powi(2) / expected).sum()
        };
        let most = |df: f64| df + 5.0 * (2.0 * df).sqrt();
        let n = candidates as f64;
        assert!(chi(&places, 400.0 / n) < most(n - 1.0), "{places:?}");
        assert!(chi(&drawn[5..], 400.0 * (n - 1.0) / 35.0) < most(34.0), "{drawn:?}");
        assert_eq!(drawn[..4], [0.0; 4]);
    }
}

#[test]
fn shifted_users_only_test() {
    let data = users(&[6; 10]);
    let shift = Shift::Groups(vec!["odd".into()]);
    let (made, card) = rows(&data, &PrepareOptions { shift, ..options() }).unwrap();
    assert_eq!((card.shifted_users, &card.groups["odd"], &card.groups["even"]), (5, &[0, 5], &[5, 0]));
    for (part, row) in &made {
        assert!(
            *part == Part::Sft || (row["group"] == "odd") == (*part == Part::TestShifted),
            "{part:?} {row}"
        );
    }
    // Items in the middle are chosen by more users; the ends' users are those of unpopular histories.
    let (made, _) = rows(&data, &PrepareOptions { shift: Shift::Unpopular(0.2), ..options() }).unwrap();
    let shifted: Vec<&Value> = of(&made, Part::TestShifted).iter().map(|r| &r["user"]).collect();
    assert_eq!(shifted, ["u0", "u9"]);
}

#[test]
fn what_cannot_be_prepared_is_refused() {
    let data = users(&[6, 6]);
    for (change, part) in [
        (PrepareOptions { history: 0, ..options() }, "--history is 0"),
        (PrepareOptions { negatives: 6, ..options() }, "--negatives is 6; expected 1 to 5"),
        (PrepareOptions { candidates: 1, ..options() }, "--candidates is 1"),
        (PrepareOptions { candidates: 36, ..options() }, "leaves 34 to draw from; --candidates 36 needs 35"),
        (PrepareOptions { min_interactions: 2, ..options() }, "expected at least 3"),
        (PrepareOptions { min_interactions: 9, ..options() }, "no user is left to train on"),
        (PrepareOptions { shift: Shift::Groups(vec!["ood".into()]), ..options() }, "did you mean `odd`?"),
        (PrepareOptions { shift: Shift::Unpopular(1.0), ..options() }, "--shifted_share is 1"),
        (
            PrepareOptions { shift: Shift::Groups(vec!["odd".into(), "even".into()]), ..options() },
            "no user is left",
        ),
    ] {
        let error = rows(&data, &change).unwrap_err();
        assert!(matches!(error, Error::Usage(_)) && error.to_string().contains(part), "{error}");
    }
    let error = rows(&users(&[3, 3]), &PrepareOptions { min_interactions: 3, ..options() }).unwrap_err();
    assert!(error.to_string().contains("no user has more than three"), "{error}");
}

fn ranking(user: &str, rank: Option<usize>) -> Ranking {
    Ranking { user: user.into(), group: None, rank, candidates: 4 }
}

#[test]
fn metrics_are_their_closed_forms() {
    let rows = [ranking("a", Some(1)), ranking("b", Some(3)), ranking("c", Some(6)), ranking("d", None)];
    let summary = summarise(&rows, Bootstrap { resamples: 0, seed: 1, ..Bootstrap::default() });
    for (name, expected) in [
        ("hr@1", 0.25),
        ("hr@5", 0.5),
        ("hr@10", 0.75),
        ("ndcg@1", 0.25),
        // log2(4) = 2
        ("ndcg@5", (1.0 + 0.5) / 4.0),
        ("ndcg@10", (1.0 + 0.5 + 1.0 / 7f64.log2()) / 4.0),
        ("mrr", (1.0 + 1.0 / 3.0 + 1.0 / 6.0) / 4.0),
    ] {
        let found = summary.of(name).unwrap();
        assert!((found.value - expected).abs() < 1e-12, "{name} {found:?}");
        assert!(found.low.is_nan() && found.high.is_nan(), "nothing was drawn");
    }
    assert_eq!((summary.rows, summary.users, summary.valid_ratio), (4, 4, 0.75));
    // Three rows that a random order could hit, of four candidates.
    assert!((summary.of("hr@1").unwrap().chance - 0.75 / 4.0).abs() < 1e-12);
    let harmonic = 1.0 + 1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0;
    assert!((summary.of("mrr").unwrap().chance - 0.75 * harmonic / 4.0).abs() < 1e-12);
    assert_eq!(summarise(&[], Bootstrap { resamples: 10, seed: 1, ..Bootstrap::default() }).rows, 0);
}

#[test]
fn ties_are_broken_against_the_target() {
    assert_eq!(rank_of(&[-1.0, -3.0, -2.0], 0), 1);
    assert_eq!(rank_of(&[-1.0, -3.0, -2.0], 1), 3);
    assert_eq!(rank_of(&[-2.0, -2.0, -2.0], 0), 3);
    assert_eq!(rank_of(&[-2.0, -2.0, -9.0], 1), 2);
}

#[test]
fn intervals_are_the_binomials_and_of_users() {
    let half: Vec<Ranking> =
        (0..400).map(|i| ranking(&i.to_string(), Some(if i % 2 == 0 { 1 } else { 20 }))).collect();
    let how = Bootstrap { resamples: 2000, seed: 3, ..Bootstrap::default() };
    let e = summarise(&half, how).of("hr@1").unwrap();
    // 1.96 sqrt(1/4 / 400) = 0.049; the percentiles of 2000 draws are good to about a tenth of it.
    assert!((e.value - 0.5).abs() < 1e-12 && (e.value - e.low - 0.049).abs() < 0.008, "{e:?}");
    assert!((e.high - e.value - 0.049).abs() < 0.008, "{e:?}");
    assert_eq!(summarise(&half, how), summarise(&half, how));
    // Every user ten times says no more than once.
    let many: Vec<Ranking> = half.iter().flat_map(|r| vec![r.clone(); 10]).collect();
    let again = summarise(&many, how).of("hr@1").unwrap();
    assert!((again.low - e.low).abs() < 1e-12 && (again.high - e.high).abs() < 1e-12);
    let grouped = [Ranking { group: Some("g".into()), ..ranking("a", Some(1)) }, ranking("b", None)];
    assert_eq!(groups(&grouped)["g"].len(), 1);
}

#[test]
fn inferred_environments_meet_known_groups() {
    let row =
        |i: usize| Ranking { group: Some(format!("g{}", i % 2)), ..ranking(&i.to_string(), Some(1 + i % 2)) };
    let rows: Vec<Ranking> = (0..20).map(row).collect();
    let features: Vec<Vec<f32>> = (0..20).map(|i| vec![(i % 2) as f32 * 10.0, (i as f32).sin()]).collect();
    let how = Bootstrap { resamples: 0, seed: 1, ..Bootstrap::default() };
    let found = infer(&[(&features, &rows), (&features[..4], &rows[..4])], 2, 5, how).unwrap();
    assert_eq!((found.len(), found[0].purity), (2, Some(1.0)));
    assert!((found[0].sizes.iter().sum::<f64>() - 20.0).abs() < 1e-9);
    assert!((found[1].groups["g0"].iter().sum::<f64>() - 2.0).abs() < 1e-9);
    // One environment has all the hits.
    let mut hits: Vec<f64> =
        found[0].environments.iter().map(|e| e["metrics"]["hr@1"]["value"].as_f64().unwrap()).collect();
    hits.sort_by(f64::total_cmp);
    assert_eq!(hits, [0.0, 1.0]);
    let alone = vec![ranking("a", Some(1)), ranking("b", Some(1))];
    assert_eq!(infer(&[(&features[..2], &alone)], 1, 5, how).unwrap()[0].purity, None);
}

#[test]
fn rows_to_rank_are_checked() {
    let rank = |row: Value, missing: MissingTarget| {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("t.jsonl");
        std::fs::write(&path, format!("{row}\n")).unwrap();
        read_rows(path.to_str().unwrap(), missing)
    };
    let good = json!({"prompt": "p", "candidates": [" a", " b"], "target": " b", "user": 7, "group": "g"});
    let with = |key: &str, value: Value| {
        let mut row = good.clone();
        row[key] = value;
        row
    };
    let rows = rank(good.clone(), MissingTarget::Error).unwrap();
    assert_eq!((rows[0].target, rows[0].user.as_str(), rows[0].group.as_deref()), (Some(1), "7", Some("g")));
    let file: Arc<Path> = rows[0].pair.file.clone();
    let own =
        |key: &str, role, text: &str| Completion { key: key.into(), role, text: Text::Standard(text.into()) };
    let expected = Pair {
        file,
        row: 1,
        prompt: Some(Text::Standard("p".into())),
        completions: vec![
            own("candidates[0]", Role::Rejected, " a"),
            own("candidates[1]", Role::Chosen, " b"),
        ],
        extra: Default::default(),
    };
    assert_eq!(rows[0].pair, expected);
    let chat = rank(with("prompt", json!([{"role": "user", "content": "p"}])), MissingTarget::Error).unwrap();
    assert!(chat[0].pair.completions.iter().all(|c| matches!(&c.text, Text::Chat(m) if m.len() == 1)));
    let absent = with("target", json!("b"));
    assert_eq!(rank(absent.clone(), MissingTarget::Miss).unwrap()[0].target, None);
    for (row, part) in [
        (absent, "row 1, key `target`: `b` is not among the candidates"),
        (with("candidates", json!([" a", " a"])), "key `candidates[1]`: ` a` a second time"),
        (with("candidates", json!([" b", " "])), "key `candidates[1]`: empty"),
        (with("candidates", json!([" b"])), "at least two texts"),
        (with("candidates", json!([" b", 3])), "key `candidates[1]`: 3, expected a text"),
        (with("prompt", Value::Null), "key `prompt`: missing or null"),
        (with("user", json!([])), "key `user`: [], expected a name"),
    ] {
        let error = rank(row, MissingTarget::Error).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_world_has_its_cause_everywhere_and_its_confounder_at_home() {
    let options = WorldOptions { users: 400, ..WorldOptions::default() };
    let rows = interactions_of_world(&options).unwrap();
    assert_eq!(rows, interactions_of_world(&options).unwrap());
    assert_ne!(rows, interactions_of_world(&WorldOptions { seed: 1, ..options }).unwrap());
    // Share of the choices that go to the fifth of the items chosen most in `north`, and share of a user's choices that
    // are of one genre.
    let counts = |group: &str| {
        let mut counts = std::collections::BTreeMap::new();
        rows.iter()
            .filter(|r| r.group == group)
            .for_each(|r| *counts.entry(r.item.as_str()).or_insert(0) += 1);
        counts
    };
    let mut popular: Vec<(&str, i32)> = counts("north").into_iter().collect();
    popular.sort_by_key(|(_, n)| -n);
    let top: BTreeSet<&str> = popular[..12].iter().map(|(t, _)| *t).collect();
    let share = |group: &str| {
        let all = counts(group);
        let on_top: i32 = all.iter().filter(|(t, _)| top.contains(*t)).map(|(_, n)| n).sum();
        f64::from(on_top) / f64::from(all.values().sum::<i32>())
    };
    // By no popularity a fifth.
    assert!(
        share("north") > 0.35 && (share("east") - 0.2).abs() < 0.05,
        "{} {}",
        share("north"),
        share("east")
    );
    for (group, _) in world::ENVIRONMENTS {
        let mut users: std::collections::BTreeMap<&str, [f64; 4]> = Default::default();
        for row in rows.iter().filter(|r| r.group == group) {
            users.entry(&row.user).or_default()[genre_of_row(row)] += 1.0;
        }
        let commonest = |c: &[f64; 4]| c.iter().copied().fold(0.0, f64::max) / c.iter().sum::<f64>();
        let mean = users.values().map(commonest).sum::<f64>() / users.len() as f64;
        assert!(mean > 0.5, "{group}: {mean}");
    }
    for (bad, part) in [
        (WorldOptions { items: 4, ..options }, "--items is 4"),
        (WorldOptions { interactions: 60, ..options }, "--interactions is 60"),
        (WorldOptions { users: 0, ..options }, "--users is 0"),
        (WorldOptions { shifted_share: 2.0, ..options }, "--shifted_share is 2"),
        (WorldOptions { taste: f64::NAN, ..options }, "--taste is NaN"),
    ] {
        assert!(interactions_of_world(&bad).unwrap_err().to_string().contains(part));
    }
}

fn genre_of_row(row: &WorldRow) -> usize {
    world::genre_of(&row.item).unwrap()
}
