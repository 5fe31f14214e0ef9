//! Histories to rows for fine-tuning, preference tuning and ranking, leave-one-out: of each user's items the last is for the
//! test, the one before it for validation, and every other that has one before it trains.
//!
//! Candidates are the item chosen and others drawn uniformly from those that the user never chose, in random order; rejected
//! completions are some of these. Everything random about a position is a function of the seed, the user and the position:
//! neither the order of the file's users nor how many positions are kept changes it.

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::interactions::{Interactions, User};
use super::template::Template;
use crate::error::{Error, Result, nearest};
use crate::formats::Fingerprint;

/// Fewest interactions that leave a history for validation and test.
pub const LEAST_INTERACTIONS: usize = 3;

/// Which users are held out as those after the shift.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Shift {
    /// None.
    #[default]
    None,
    /// Those of these groups.
    Groups(Vec<String>),
    /// The share of the users whose items (the last left out) were chosen least, on average, by all users.
    Unpopular(f64),
}

/// How to prepare.
#[derive(Clone, Debug, PartialEq)]
pub struct PrepareOptions {
    /// Most items of a history; the latest are kept.
    pub history: usize,
    /// Candidates of a position, the chosen one among them.
    pub candidates: usize,
    /// Rejected completions of a position.
    pub negatives: usize,
    /// Users with fewer interactions are left out.
    pub min_interactions: usize,
    /// Training positions of a user; the latest are kept. `None`: all.
    pub positions: Option<usize>,
    /// Who is held out.
    pub shift: Shift,
    /// Prompts.
    pub template: Template,
    /// Seed.
    pub seed: u64,
}

/// Where a row goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `{prompt, completion, user}`
    Sft,
    /// `{prompt, chosen, rejected, user, group}`; `rejected` is a list where there are several.
    Train,
    /// As `Train`, with `candidates` and `target`; of the last item but one.
    Validation,
    /// As `Validation`; of the last item.
    Test,
    /// As `Test`; of the users held out.
    TestShifted,
}

impl Part {
    /// All, in order.
    pub const ALL: [Part; 5] = [Part::Sft, Part::Train, Part::Validation, Part::Test, Part::TestShifted];

    /// Its file.
    pub fn file(self) -> &'static str {
        match self {
            Part::Sft => "sft.jsonl",
            Part::Train => "train.jsonl",
            Part::Validation => "validation.jsonl",
            Part::Test => "test.jsonl",
            Part::TestShifted => "test_shifted.jsonl",
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Card {
    /// Users of the file.
    pub users: usize,
    /// Those left out for too few interactions.
    pub short_users: usize,
    /// Those held out as shifted.
    pub shifted_users: usize,
    /// Different titles.
    pub items: usize,
    /// Ids that share a title with another and count as one item.
    pub merged_ids: usize,
    /// Interactions used.
    pub interactions: usize,
    /// Interactions left out because of their rating.
    pub low_rated: usize,
    /// Share of the interactions that go to the tenth of the items that are chosen most.
    pub top_tenth_share: f64,
    /// Rows of each file.
    pub rows: BTreeMap<&'static str, usize>,
    /// Users by group, those left out not counted: familiar, shifted.
    pub groups: BTreeMap<String, [usize; 2]>,
}

/// Makes the rows and hands each to `write`, users in the order of the file.
///
/// # Errors
/// [`Error::Usage`] for options out of range, a group that no user has, nobody left to train on, or a user who has left too
/// few items to draw from; whatever `write` refuses.
pub fn prepare(
    data: &Interactions,
    options: &PrepareOptions,
    write: &mut dyn FnMut(Part, Value) -> Result<()>,
) -> Result<Card> {
    check(options)?;
    let users: Vec<&User> = data.users.iter().filter(|u| u.items.len() >= options.min_interactions).collect();
    let popularity = popularity(data);
    let shifted = shifted(data, &users, options, &popularity)?;
    if users.len() == shifted.len() {
        return Err(Error::Usage(format!(
            "no user is left to train on: of {} users {} have fewer than {} interactions (--min_interactions) and {} are \
             shifted",
            data.users.len(),
            data.users.len() - users.len(),
            options.min_interactions,
            shifted.len()
        )));
    }
    let mut card = Card {
        users: data.users.len(),
        short_users: data.users.len() - users.len(),
        shifted_users: shifted.len(),
        items: data.titles.len(),
        merged_ids: data.merged_ids,
        interactions: data.count,
        low_rated: data.low_rated,
        top_tenth_share: top_tenth_share(data),
        rows: Part::ALL.into_iter().map(|part| (part.file(), 0)).collect(),
        groups: BTreeMap::new(),
    };
    let mut put = |card: &mut Card, part: Part, row: Value| {
        *card.rows.entry(part.file()).or_default() += 1;
        write(part, row)
    };
    for (at, user) in users.into_iter().enumerate() {
        let held_out = shifted.contains(&at);
        if let Some(group) = &user.group {
            card.groups.entry(group.clone()).or_default()[usize::from(held_out)] += 1;
        }
        let last = user.items.len() - 1;
        let made = |position| Position::draw(data, user, position, options);
        if held_out {
            put(&mut card, Part::TestShifted, made(last)?.ranking())?;
            continue;
        }
        let first = options.positions.map_or(1, |most| (last - 1).saturating_sub(most).max(1));
        for position in first..last - 1 {
            let position = made(position)?;
            put(&mut card, Part::Sft, position.completion())?;
            put(&mut card, Part::Train, position.preference().into())?;
        }
        put(&mut card, Part::Validation, made(last - 1)?.ranking())?;
        put(&mut card, Part::Test, made(last)?.ranking())?;
    }
    if card.rows[Part::Train.file()] == 0 {
        return Err(Error::Usage(
            "no user has more than three interactions, so nothing is left to train on after validation and test".into(),
        ));
    }
    Ok(card)
}

fn check(options: &PrepareOptions) -> Result<()> {
    let PrepareOptions { history, candidates, negatives, min_interactions, positions, .. } = *options;
    let wrong = |what: String| Err(Error::Usage(what));
    match options.shift {
        _ if history == 0 => wrong("--history is 0; expected at least 1".into()),
        _ if candidates < 2 => wrong(format!("--candidates is {candidates}; expected at least 2")),
        _ if negatives == 0 || negatives >= candidates => wrong(format!(
            "--negatives is {negatives}; expected 1 to {}, since they are among the --candidates {candidates}",
            candidates - 1
        )),
        _ if min_interactions < LEAST_INTERACTIONS => wrong(format!(
            "--min_interactions is {min_interactions}; expected at least {LEAST_INTERACTIONS}: a history, an item for \
             validation, an item for the test"
        )),
        _ if positions == Some(0) => wrong("--positions is 0; expected at least 1".into()),
        Shift::Unpopular(share) if !(share > 0.0 && share < 1.0) => {
            wrong(format!("--shifted_share is {share}; expected a number between 0 and 1"))
        }
        _ => Ok(()),
    }
}

/// How often each item was chosen, the users' last items left out: a test must not decide whom it is on.
fn popularity(data: &Interactions) -> Vec<usize> {
    let mut counts = vec![0; data.titles.len()];
    for user in &data.users {
        user.items.iter().take(user.items.len() - 1).for_each(|&item| counts[item] += 1);
    }
    counts
}

/// The share of all choices that fall on the most chosen tenth of the items.
fn top_tenth_share(data: &Interactions) -> f64 {
    let mut counts = vec![0; data.titles.len()];
    data.users.iter().flat_map(|user| &user.items).for_each(|&item| counts[item] += 1);
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let top: usize = counts[..counts.len().div_ceil(10)].iter().sum();
    top as f64 / counts.iter().sum::<usize>().max(1) as f64
}

/// The places (in `users`) of those held out.
fn shifted(
    data: &Interactions,
    users: &[&User],
    options: &PrepareOptions,
    popularity: &[usize],
) -> Result<BTreeSet<usize>> {
    match &options.shift {
        Shift::None => Ok(BTreeSet::new()),
        Shift::Groups(names) => {
            let known: BTreeSet<&str> = data.users.iter().filter_map(|u| u.group.as_deref()).collect();
            if let Some(name) = names.iter().find(|name| !known.contains(name.as_str())) {
                let near = nearest(name, known.iter().copied());
                let hint = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
                let known: Vec<&str> = known.into_iter().collect();
                let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
                return Err(Error::Usage(format!(
                    "--shifted names `{name}`, but no user is of it{hint} Groups: {known}"
                )));
            }
            let own = |u: &&User| u.group.as_ref().is_some_and(|g| names.contains(g));
            Ok(users.iter().enumerate().filter(|(_, u)| own(u)).map(|(at, _)| at).collect())
        }
        Shift::Unpopular(share) => {
            let mean = |u: &User| {
                let history = &u.items[..u.items.len() - 1];
                history.iter().map(|&i| popularity[i] as f64).sum::<f64>() / history.len() as f64
            };
            let mut order: Vec<(f64, usize)> =
                users.iter().enumerate().map(|(at, u)| (mean(u), at)).collect();
            order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let wanted = ((share * users.len() as f64).round() as usize).max(1);
            Ok(order.into_iter().take(wanted).map(|(_, at)| at).collect())
        }
    }
}

/// A choice of a user: what came before it, and what else there was.
struct Position<'a> {
    user: &'a User,
    prompt: Value,
    target: &'a str,
    candidates: Vec<&'a str>,
    negatives: Vec<&'a str>,
    template: &'a Template,
}

impl<'a> Position<'a> {
    fn draw(
        data: &'a Interactions,
        user: &'a User,
        position: usize,
        options: &'a PrepareOptions,
    ) -> Result<Position<'a>> {
        let seen: BTreeSet<usize> = user.items.iter().copied().collect();
        let (wanted, left) = (options.candidates - 1, data.titles.len() - seen.len());
        if left < wanted {
            return Err(Error::Usage(format!(
                "user `{}` has chosen {} of {} items, which leaves {left} to draw from; --candidates {} needs {wanted}",
                user.name,
                seen.len(),
                data.titles.len(),
                options.candidates
            )));
        }
        let mut rng = rng_of(&user.name, position, options.seed);
        let title = |item: usize| data.titles[item].as_str();
        let mut others: Vec<usize> = Vec::with_capacity(wanted);
        if left < 4 * wanted {
            // Few are left: the first of a random order.
            let mut rest: Vec<usize> = (0..data.titles.len()).filter(|item| !seen.contains(item)).collect();
            for k in 0..wanted {
                let other = rng.random_range(k..rest.len());
                rest.swap(k, other);
            }
            others.extend(&rest[..wanted]);
        } else {
            while others.len() < wanted {
                let item = rng.random_range(0..data.titles.len());
                if !seen.contains(&item) && !others.contains(&item) {
                    others.push(item);
                }
            }
        }
        let target = title(user.items[position]);
        let negatives = others[..options.negatives].iter().map(|&item| title(item)).collect();
        let mut candidates: Vec<&str> = others.into_iter().map(title).collect();
        candidates.push(target);
        for at in (1..candidates.len()).rev() {
            candidates.swap(at, rng.random_range(0..=at));
        }
        let from = position.saturating_sub(options.history);
        let history: Vec<&str> = user.items[from..position].iter().map(|&item| title(item)).collect();
        let prompt = options.template.prompt(&history, &candidates);
        Ok(Position { user, prompt, target, candidates, negatives, template: &options.template })
    }

    fn completion(&self) -> Value {
        let completion = self.template.completion(self.target);
        json!({"prompt": self.prompt, "completion": completion, "user": self.user.name})
    }

    fn preference(&self) -> Map<String, Value> {
        let mut rejected: Vec<Value> = self.negatives.iter().map(|t| self.template.completion(t)).collect();
        let rejected = if rejected.len() == 1 { rejected.remove(0) } else { rejected.into() };
        let mut row = Map::new();
        row.insert("prompt".into(), self.prompt.clone());
        row.insert("chosen".into(), self.template.completion(self.target));
        row.insert("rejected".into(), rejected);
        row.insert("user".into(), self.user.name.clone().into());
        if let Some(group) = &self.user.group {
            row.insert("group".into(), group.clone().into());
        }
        row
    }

    fn ranking(&self) -> Value {
        let mut row = self.preference();
        let candidates = self.candidates.iter().map(|t| self.template.candidate(t));
        row.insert("candidates".into(), candidates.collect());
        row.insert("target".into(), self.template.candidate(self.target).into());
        row.into()
    }
}

/// The position's own source of chance.
fn rng_of(user: &str, position: usize, seed: u64) -> ChaCha8Rng {
    let print = Fingerprint::new().field(user.as_bytes()).field(&(position as u64).to_le_bytes());
    let print = print.field(&seed.to_le_bytes()).hex();
    ChaCha8Rng::seed_from_u64(u64::from_str_radix(&print[16..], 16).unwrap_or_default())
}
