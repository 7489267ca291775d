//! Finding dead letters.

use std::str::FromStr;

use clap::Args;
use dashi_config::Settings;
use dashi_domain::glance::Glance;
use dashi_domain::position::{LogId, Offset, Partition};
use dashi_store::{LetterFilter, LetterPlace, SetAside, Store};
use uuid::Uuid;

use crate::clock::now_ms;
use crate::exit::Misuse;
use crate::{moment, open};

/// Letters that are read at once.
const PAGE: u32 = 100;

#[derive(Debug, Default, Args)]
pub struct FilterArgs {
    /// Of this partition
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,

    /// Of this website, link or pixel
    #[arg(long, value_name = "UUID")]
    pub website: Option<Uuid>,

    /// Whose error contains this text
    #[arg(long, value_name = "TEXT")]
    pub error: Option<String>,

    /// Set aside at this time or later: 2026-11-26, 2026-11-26T08:00:00Z, or 36h or 7d before now
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,

    /// Set aside before this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

impl FilterArgs {
    /// Whether nothing is given, so that it takes all.
    pub fn is_empty(&self) -> bool {
        let Self { partition, website, error, since, until } = self;
        partition.is_none() && website.is_none() && error.is_none() && since.is_none() && until.is_none()
    }
}

/// A partition and an offset in it: `3:4711`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceArg {
    pub partition: Partition,
    pub offset: Offset,
}

impl FromStr for PlaceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = text.split_once(':').and_then(|(partition, offset)| {
            Some(Self {
                partition: Partition::new(partition.parse().ok()?),
                offset: Offset::new(offset.parse::<u64>().ok().filter(|offset| *offset <= i64::MAX as u64)?),
            })
        });
        read.ok_or_else(|| format!("{text:?} is no place: give partition and offset, such as 3:4711"))
    }
}

impl std::fmt::Display for PlaceArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.partition, self.offset)
    }
}

/// The letters that a command is about.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    filter: LetterFilter,
    website: Option<Uuid>,
}

impl Selection {
    /// The letters of a log for which all flags hold.
    pub fn new(
        settings: &Settings,
        log: LogId,
        args: &FilterArgs,
        discarded: Option<bool>,
    ) -> anyhow::Result<Self> {
        let zone = open::zone(settings)?;
        let moment = |text: &Option<String>, flag: &str| match text {
            None => Ok(None),
            Some(text) => moment::parse(text, &zone, now_ms())
                .map(Some)
                .map_err(|reason| Misuse(format!("{flag}: {reason}"))),
        };
        Ok(Self {
            filter: LetterFilter {
                log: Some(log),
                partition: args.partition.map(Partition::new),
                offset: None,
                // Any letter of the website has its id somewhere in the record.
                record: args.website.map(|website| website.to_string()),
                reason: args.error.clone(),
                since_ms: moment(&args.since, "--since")?,
                until_ms: moment(&args.until, "--until")?,
                discarded,
            },
            website: args.website,
        })
    }

    /// The letter at a place, discarded or not.
    pub fn one(log: &LogId, place: PlaceArg) -> Self {
        let filter = LetterFilter {
            log: Some(log.clone()),
            partition: Some(place.partition),
            offset: Some(place.offset),
            ..LetterFilter::default()
        };
        Self { filter, website: None }
    }

    /// Calls `f` with each letter behind `after`, in order, until it returns false.
    pub async fn each(
        &self,
        store: &Store,
        mut after: Option<LetterPlace>,
        mut f: impl FnMut(SetAside) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        loop {
            let page = store.dead_letters(&self.filter, after.as_ref(), PAGE).await?;
            let is_last = page.len() < PAGE as usize;
            after = page.last().map(|letter| letter.place.clone()).or(after);
            for letter in page {
                let is_of = |website| Glance::of(&letter.record).source_id == Some(website);
                if self.website.is_none_or(is_of) && !f(letter)? {
                    return Ok(());
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        let place = PlaceArg { partition: Partition::new(3), offset: Offset::new(4711) };
        assert_eq!("3:4711".parse(), Ok(place));
        assert_eq!(place.to_string(), "3:4711");
        for wrong in ["", "3", ":", "3:", ":1", "3:-1", "a:1", "3:1:2", "3:9223372036854775808"] {
            assert!(wrong.parse::<PlaceArg>().is_err(), "{wrong}");
        }
    }
}
