//! Who chose what, and when: the rows that recommendation data are made of, and each user's history out of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::table::{Table, TableFormat};
use super::when::When;
use crate::{Error, Result};

/// What the columns of an interactions file are called. Those that are `None` are used under their plain name where the file
/// has them; those that are named must be there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    /// Who (`user`).
    pub user: Option<String>,
    /// What (`item`): an id that the items file knows, or the title itself.
    pub item: Option<String>,
    /// When (`timestamp`): a number, or a date as ISO 8601 writes it (what names no zone is UTC). Without it the order of the
    /// file counts.
    pub timestamp: Option<String>,
    /// How much it was liked (`rating`): a number.
    pub rating: Option<String>,
    /// The user's environment (`group`).
    pub group: Option<String>,
    /// In the items file, what an item is called (`title`).
    pub title: Option<String>,
}

/// Where interactions are read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sources {
    /// The interactions.
    pub interactions: String,
    /// Titles of items, where the interactions have ids.
    pub items: Option<String>,
    /// How the interactions are laid out.
    pub format: TableFormat,
    /// How the items are laid out.
    pub items_format: TableFormat,
    /// Columns.
    pub columns: Columns,
    /// Interactions rated lower are left out.
    pub min_rating: Option<f64>,
}

/// A user and what they chose, oldest first.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    /// Their name in the file.
    pub name: String,
    /// Their environment, if the file has such a column.
    pub group: Option<String>,
    /// Items, by their place in [`Interactions::titles`].
    pub items: Vec<usize>,
}

/// All users and the titles of all items.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Interactions {
    /// In the order in which the file names them.
    pub users: Vec<User>,
    /// In alphabetical order, each once. Ids of the same title are the same item: a model that answers with a title cannot
    /// tell them apart.
    pub titles: Vec<String>,
    /// How many ids share a title with one before them.
    pub merged_ids: usize,
    /// Interactions left out because of their rating.
    pub low_rated: usize,
    /// Interactions that are left.
    pub count: usize,
}

/// Reads interactions and orders those of each user by time; where times are the same, by the order of the file.
///
/// # Errors
/// [`Error::Usage`] for an unknown column; [`Error::Row`] for an empty cell, a time or rating that is none, an item that the
/// items file does not have, a user of two groups.
pub fn read_interactions(sources: &Sources) -> Result<Interactions> {
    let names = &sources.columns;
    let titles = match &sources.items {
        Some(path) => Some(read_titles(path, &sources.items_format, names)?),
        None => None,
    };
    let table = Table::read(&sources.interactions, &sources.format)?;
    let needed = |name: &Option<String>, plain: &'static str, flag: &str| {
        table.column(name.as_deref().unwrap_or(plain), flag)
    };
    let optional = |name: &Option<String>, plain: &'static str, flag: &str| match name {
        Some(name) => table.column(name, flag).map(Some),
        None => Ok(table.find(plain)),
    };
    let (user, item) =
        (needed(&names.user, "user", "user_column")?, needed(&names.item, "item", "item_column")?);
    let time = optional(&names.timestamp, "timestamp", "timestamp_column")?;
    let group = optional(&names.group, "group", "group_column")?;
    let rating = match sources.min_rating {
        Some(_) => Some(needed(&names.rating, "rating", "rating_column")?),
        None => optional(&names.rating, "rating", "rating_column")?,
    };

    let mut read = Interactions::default();
    let mut place: HashMap<String, usize> = HashMap::new();
    let mut chosen: Vec<Vec<(Option<When>, String)>> = Vec::new();
    let mut first: Option<When> = None;
    for at in 0..table.rows.len() {
        if let (Some(column), Some(least)) = (rating, sources.min_rating) {
            let text = table.said(at, column)?;
            let rated = text.parse::<f64>().ok().filter(|r| r.is_finite());
            let rated =
                rated.ok_or_else(|| table.error(at, column, format!("`{text}`, expected a number")))?;
            if rated < least {
                read.low_rated += 1;
                continue;
            }
        }
        let name = table.said(at, user)?;
        let own_group = group.map(|g| table.said(at, g).map(String::from)).transpose()?;
        let title = title_of(&table, at, item, titles.as_ref())?;
        let when = time.map(|t| when(&table, at, t, &mut first)).transpose()?;
        let u = *place.entry(name.to_string()).or_insert_with(|| {
            read.users.push(User { name: name.to_string(), group: own_group.clone(), items: Vec::new() });
            chosen.push(Vec::new());
            chosen.len() - 1
        });
        if let (Some(column), true) = (group, read.users[u].group != own_group) {
            let before = read.users[u].group.clone().unwrap_or_default();
            let what = format!(
                "`{}`, but user `{name}` was of `{before}` in a row before; a group is the user's, not the row's",
                own_group.unwrap_or_default()
            );
            return Err(table.error(at, column, what));
        }
        chosen[u].push((when, title));
        read.count += 1;
    }
    if read.count == 0 {
        return Err(Error::Usage(format!(
            "{}: no interaction is left; all {} are rated below --min_rating",
            sources.interactions, read.low_rated
        )));
    }
    // All items count that can be recommended, chosen by somebody or not.
    let known = titles.iter().flat_map(|t| t.values());
    let all: BTreeSet<&String> = chosen.iter().flatten().map(|(_, title)| title).chain(known).collect();
    read.titles = all.into_iter().cloned().collect();
    read.merged_ids = titles.as_ref().map_or(0, |t| t.len() - t.values().collect::<BTreeSet<_>>().len());
    for (user, mut chosen) in read.users.iter_mut().zip(chosen) {
        chosen.sort_by_key(|(when, _)| when.map(When::order));
        // The titles are sorted and hold every one.
        user.items = chosen.iter().filter_map(|(_, title)| read.titles.binary_search(title).ok()).collect();
    }
    Ok(read)
}

/// A title on one line.
fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn title_of(
    table: &Table,
    at: usize,
    column: usize,
    titles: Option<&BTreeMap<String, String>>,
) -> Result<String> {
    let id = table.said(at, column)?;
    match titles {
        None => Ok(plain(id)),
        Some(titles) => titles
            .get(id)
            .cloned()
            .ok_or_else(|| table.error(at, column, format!("`{id}`, which the items file does not have"))),
    }
}

fn read_titles(path: &str, format: &TableFormat, names: &Columns) -> Result<BTreeMap<String, String>> {
    let table = Table::read(path, format)?;
    let item = table.column(names.item.as_deref().unwrap_or("item"), "item_column")?;
    let title = table.column(names.title.as_deref().unwrap_or("title"), "title_column")?;
    let mut titles = BTreeMap::new();
    for at in 0..table.rows.len() {
        let (id, name) = (table.said(at, item)?, plain(table.said(at, title)?));
        if let Some(other) = titles.insert(id.to_string(), name.clone()).filter(|other| *other != name) {
            return Err(table.error(
                at,
                item,
                format!("`{id}` a second time, first with the title `{other}`"),
            ));
        }
    }
    Ok(titles)
}

/// A time; the first of the file decides whether times are numbers or dates.
fn when(table: &Table, at: usize, column: usize, first: &mut Option<When>) -> Result<When> {
    let text = table.said(at, column)?;
    let time = When::parse(text).ok_or_else(|| {
        table.error(
            at,
            column,
            format!("`{text}`, expected a number (such as seconds) or a date (2024-05-01, 2024-05-01T10:30:00+02:00)"),
        )
    })?;
    match first.get_or_insert(time).is_like(time) {
        true => Ok(time),
        false => Err(table.error(
            at,
            column,
            format!("`{text}`, expected a number or a date as in the rows before"),
        )),
    }
}
