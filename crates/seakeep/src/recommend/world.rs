//! A small world of choices with a known cause and a known confounder, for tests and examples.
//!
//! Users have a taste, items a genre that their title tells: that is the cause, the same everywhere. Items also have a
//! popularity `z` that has nothing to do with taste, and the user's environment `e` decides how much of it there is in a
//! choice:
//!
//! ```text
//! P(user u chooses item i) ~ exp(taste [genre_i = taste_u] + confounding b_e z_i),    b_north = 1, b_south = 0.5, b_east = 0
//! ```
//! without replacement. A model of `north` and `south` that recommends what is popular does well there and not in `east`.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result};

/// Environments, and the part of popularity in their choices. The last is the shifted one.
pub const ENVIRONMENTS: [(&str, f64); 3] = [("north", 1.0), ("south", 0.5), ("east", 0.0)];

/// The second words of titles, by genre.
const GENRES: [[&str; 6]; 4] = [
    ["Harbour", "Island", "Tide", "Sailor", "Reef", "Storm"],
    ["Street", "Market", "Tower", "Station", "Bridge", "Square"],
    ["Mountain", "Forest", "Valley", "River", "Meadow", "Glacier"],
    ["Planet", "Comet", "Orbit", "Signal", "Engine", "Rocket"],
];

/// The first words of titles.
const FIRST: [&str; 20] = [
    "Quiet", "Silver", "Broken", "Golden", "Lost", "Distant", "Hidden", "Red", "Last", "Empty", "Burning",
    "Cold", "Little", "Secret", "Green", "Wild", "Blue", "Second", "Bright", "Long",
];

/// Most items there are titles for.
pub const MOST_ITEMS: usize = GENRES.len() * GENRES[0].len() * FIRST.len();

/// The size of the world and the strength of its parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorldOptions {
    /// Users.
    pub users: usize,
    /// Items.
    pub items: usize,
    /// Interactions of a user on average; each has between two thirds and four thirds of it.
    pub interactions: usize,
    /// Strength of taste.
    pub taste: f64,
    /// Strength of popularity in `north`.
    pub confounding: f64,
    /// Share of users in `east`.
    pub shifted_share: f64,
    /// Seed.
    pub seed: u64,
}

impl Default for WorldOptions {
    fn default() -> Self {
        WorldOptions {
            users: 500,
            items: 60,
            interactions: 12,
            taste: 2.0,
            confounding: 2.0,
            shifted_share: 0.25,
            seed: 42,
        }
    }
}

/// One choice.
#[derive(Clone, Debug, PartialEq)]
pub struct WorldRow {
    /// Who.
    pub user: String,
    /// The item's title.
    pub item: String,
    /// When.
    pub timestamp: u64,
    /// The user's environment.
    pub group: &'static str,
}

/// The genre that a title tells; `None` for one that is not of this world.
pub fn genre_of(title: &str) -> Option<usize> {
    let (_, second) = title.rsplit_once(' ')?;
    GENRES.iter().position(|words| words.contains(&second))
}

/// The choices of all users, one user after the other.
///
/// # Errors
/// [`Error::Usage`] for numbers out of range.
pub fn interactions_of_world(options: &WorldOptions) -> Result<Vec<WorldRow>> {
    let WorldOptions { users, items, interactions, taste, confounding, shifted_share, seed } = *options;
    let most = (interactions * 4).div_ceil(3);
    let wrong = |what: String| Err(Error::Usage(what));
    match () {
        () if users == 0 => return wrong("--users is 0; expected at least 1".into()),
        () if !(8..=MOST_ITEMS).contains(&items) => {
            return wrong(format!("--items is {items}; expected 8 to {MOST_ITEMS}"));
        }
        () if interactions < 3 || most > items => {
            return wrong(format!(
                "--interactions is {interactions}; expected 3 to {} (each user chooses up to {most} of the {items} items, \
                 each once)",
                items * 3 / 4
            ));
        }
        () if !taste.is_finite() || !confounding.is_finite() => {
            return wrong(format!(
                "--taste is {taste}, --confounding {confounding}; expected finite numbers"
            ));
        }
        () if !(0.0..=1.0).contains(&shifted_share) => {
            return wrong(format!("--shifted_share is {shifted_share}; expected a number from 0 to 1"));
        }
        () => {}
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let titles = titles(items, &mut rng);
    let popularity = popularity(items, &mut rng);
    let mut rows = Vec::new();
    for user in 0..users {
        let environment = match rng.random::<f64>() < shifted_share {
            true => ENVIRONMENTS.len() - 1,
            false => rng.random_range(0..ENVIRONMENTS.len() - 1),
        };
        let (group, part) = ENVIRONMENTS[environment];
        let own_taste = rng.random_range(0..GENRES.len());
        let weight = |item: usize| {
            let liked = f64::from(item % GENRES.len() == own_taste);
            (taste * liked + confounding * part * popularity[item]).exp()
        };
        let mut weights: Vec<f64> = (0..items).map(weight).collect();
        let count = rng.random_range((interactions * 2).div_ceil(3)..=interactions * 4 / 3);
        let start: u64 = rng.random_range(0..1_000_000);
        for step in 0..count {
            let item = draw(&weights, &mut rng);
            weights[item] = 0.0;
            let (user, timestamp) = (format!("u{user}"), start + 60 * step as u64);
            rows.push(WorldRow { user, item: titles[item].clone(), timestamp, group });
        }
    }
    Ok(rows)
}

/// Different titles; item `i` is of genre `i % 4`.
fn titles(items: usize, rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut names: Vec<Vec<String>> = GENRES
        .iter()
        .map(|words| {
            let mut all: Vec<String> =
                words.iter().flat_map(|w| FIRST.iter().map(move |f| format!("{f} {w}"))).collect();
            shuffle(&mut all, rng);
            all
        })
        .collect();
    (0..items).map(|i| names[i % GENRES.len()].pop().unwrap_or_default()).collect()
}

/// Equally spaced from -1.5 to 1.5, in random order.
fn popularity(items: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut spaced: Vec<f64> = (0..items).map(|i| -1.5 + 3.0 * i as f64 / (items - 1) as f64).collect();
    shuffle(&mut spaced, rng);
    spaced
}

fn shuffle<T>(list: &mut [T], rng: &mut ChaCha8Rng) {
    for at in (1..list.len()).rev() {
        list.swap(at, rng.random_range(0..=at));
    }
}

/// An item with probability in proportion to its weight.
fn draw(weights: &[f64], rng: &mut ChaCha8Rng) -> usize {
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    let mut last = 0;
    for (item, weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        last = item;
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    last
}
