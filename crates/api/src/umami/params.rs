//! A request's query: parameters by name, each read once and refused with its name and value.

use std::borrow::Cow;
use std::fmt::Display;
use std::ops::RangeInclusive;

use super::routes::Route;
use crate::answer::Refusal;

/// Longest value of a parameter, in characters. No column that is compared holds more.
const VALUE_CHARS_MAX: usize = 500;

/// Most characters of a value that a refusal repeats.
const SHOWN_CHARS_MAX: usize = 60;

/// The parameters of a request. Others than the route's are ignored; of two with one name the last one counts, and one
/// without a value is as good as none.
#[derive(Debug)]
pub struct Params<'q> {
    route: &'static Route,
    values: Vec<(Cow<'q, str>, Cow<'q, str>)>,
}

impl<'q> Params<'q> {
    /// Reads a URL's query.
    pub fn parse(route: &'static Route, query: Option<&'q str>) -> Result<Self, Refusal> {
        let mut values = Vec::new();
        for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if !route.takes(&name) {
                continue;
            }
            if value.chars().count() > VALUE_CHARS_MAX {
                return Err(refused(&name, format!("have at most {VALUE_CHARS_MAX} characters"), &value));
            }
            // No column holds U+0000.
            let value = if value.contains('\0') { value.replace('\0', "").into() } else { value };
            values.push((name, value));
        }
        Ok(Self { route, values })
    }

    /// A parameter's value.
    pub fn text(&self, name: &str) -> Option<&str> {
        debug_assert!(self.route.takes(name), "{} takes no {name}", self.route.path);
        let named = self.values.iter().rev().find(|(known, _)| known == name);
        named.map(|(_, value)| &**value).filter(|value| !value.is_empty())
    }

    /// A whole number within a range.
    pub fn number(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Refusal> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| range.contains(number));
        let must = || format!("be a whole number from {} to {}", range.start(), range.end());
        number.map(Some).ok_or_else(|| refused(name, must(), text))
    }

    /// A number that has to be there.
    pub fn needed_number(&self, name: &str, range: RangeInclusive<i64>) -> Result<i64, Refusal> {
        let must = format!("be a whole number from {} to {}", range.start(), range.end());
        self.number(name, range)?.ok_or_else(|| missing(name, must))
    }

    /// One of some words.
    pub fn word<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, Refusal> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let known = words.iter().find(|(word, _)| *word == text);
        known.map(|(_, meaning)| Some(*meaning)).ok_or_else(|| refused(name, one_of(words), text))
    }

    /// One of some words, which has to be there.
    pub fn needed_word<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Result<T, Refusal> {
        self.word(name, words)?.ok_or_else(|| missing(name, one_of(words)))
    }

    /// The rows of a list: at most how many, and from which on; with the number of the page.
    pub fn page(&self) -> Result<Page, Refusal> {
        let page = self.number("page", 1..=1_000_000)?.unwrap_or(1);
        let size = self.number("pageSize", 1..=1_000)?.unwrap_or(20);
        Ok(Page { number: page as u64, size: size as u32 })
    }
}

/// A page of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// From 1 on.
    pub number: u64,
    /// Its rows.
    pub size: u32,
}

impl Page {
    /// The rows before it.
    pub fn offset(self) -> u64 {
        (self.number - 1) * u64::from(self.size)
    }
}

fn one_of<T>(words: &[(&str, T)]) -> String {
    let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    format!("be one of {}", words.join(", "))
}

/// The refusal of a value.
pub fn refused(name: &str, must: impl Display, value: &str) -> Refusal {
    let mut shown: String = value.chars().take(SHOWN_CHARS_MAX).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    Refusal::Bad(format!("{name} must {must}, not {shown:?}").into())
}

fn missing(name: &str, must: impl Display) -> Refusal {
    Refusal::Bad(format!("{name} is missing; it must {must}").into())
}
