//! A session's row, and how its events fill it: with one device and one place, never with parts of two.
//!
//! A distinct id may join two devices in one session, and a proxy may report only the country of one visitor and the
//! city of the next as well. Columns that are filled one by one then show a visitor who does not exist: Berlin in
//! Japan.

use uuid::Uuid;

/// How far back equal attributes are looked for. A repetition that is not found is kept, which is right as well.
const LOOK_BACK: usize = 8;

/// A row of `session`. Inserted with the session's first event; later events fill it by [`SessionAttributes::fill`].
#[derive(Debug, Clone, PartialEq)]
pub struct SessionRow {
    /// Primary key.
    pub session_id: Uuid,
    /// Website, link or pixel.
    pub website_id: Uuid,
    /// The session's attributes, if these events are its first.
    pub attributes: SessionAttributes,
    /// The attributes that each event reports, in the order of the log; empty if all report the same. A row that is
    /// there already is filled from these, for an event that cannot fill `attributes` may fill that row.
    pub reported: Vec<SessionAttributes>,
    /// When its first event happened, milliseconds since 1970.
    pub created_at_ms: i64,
}

impl SessionRow {
    /// The attributes from which a row that is there already is filled, one after the other.
    pub fn reported(&self) -> &[SessionAttributes] {
        if self.reported.is_empty() { std::slice::from_ref(&self.attributes) } else { &self.reported }
    }

    /// Adds the attributes that the session's next event reports. Those that cannot matter to any row are left out.
    pub fn add(&mut self, next: SessionAttributes) {
        if self.is_repetition(&next) {
            return;
        }
        if self.reported.is_empty() {
            self.reported.push(self.attributes.clone());
        }
        self.attributes.fill(&next);
        self.reported.push(next);
    }

    /// Whether `next` can fill nothing in a row that was filled by all attributes before.
    ///
    /// It cannot if an event reported the same before: a row only grows, so it takes now no attribute that it did not
    /// take then. But a screen that it did not take for another browser's it may take once it has learnt that browser
    /// from an event of another kind of device.
    fn is_repetition(&self, next: &SessionAttributes) -> bool {
        for before in self.reported().iter().rev().take(LOOK_BACK) {
            if before == next {
                return true;
            }
            if before.is_of_the_browser_of(next) && before.device != next.device {
                return false;
            }
        }
        false
    }
}

/// The attributes of a session. Browser, OS and device are one event's; country, region and city are one event's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionAttributes {
    /// At most 20 characters, as are `os` and `device`.
    pub browser: Option<String>,
    /// Operating system.
    pub os: Option<String>,
    /// Kind of device.
    pub device: Option<String>,
    /// `WIDTHxHEIGHT`, at most 11 characters.
    pub screen: Option<String>,
    /// At most 35 characters.
    pub language: Option<String>,
    /// At most 2 characters.
    pub country: Option<String>,
    /// `CC-REGION`, at most 20 characters.
    pub region: Option<String>,
    /// At most 50 characters.
    pub city: Option<String>,
    /// At most 50 characters; may be empty.
    pub distinct_id: Option<String>,
}

impl SessionAttributes {
    /// Fills attributes that are null from a later event; none that is set is replaced. Returns whether anything was
    /// filled.
    ///
    /// * browser, OS and device, and country, region and city, each only all together: if the event's have all that is
    ///   set here, and more;
    /// * screen and language, each by itself, from an event whose browser and OS are these;
    /// * the distinct id by itself.
    ///
    /// So events give one row however they are cut into batches, if each of them is given one after the other.
    pub fn fill(&mut self, later: &Self) -> bool {
        let agent = fill_together(
            [&mut self.browser, &mut self.os, &mut self.device],
            [&later.browser, &later.os, &later.device],
        );
        let place = fill_together(
            [&mut self.country, &mut self.region, &mut self.city],
            [&later.country, &later.region, &later.city],
        );
        let is_of_the_browser = self.is_of_the_browser_of(later);
        let screen = is_of_the_browser && fill_one(&mut self.screen, &later.screen);
        let language = is_of_the_browser && fill_one(&mut self.language, &later.language);
        let distinct_id = fill_one(&mut self.distinct_id, &later.distinct_id);
        agent || place || screen || language || distinct_id
    }

    /// The attributes of a session whose row was made by later events (`later`): those of the first of these events, filled by
    /// the row's, then by the others of these. Where an identify names its session, the row's name is a later one and stays.
    pub fn set_back(reported: &[Self], later: &Self, names_sessions: bool) -> Self {
        let (mut earliest, others) = match reported {
            [first, others @ ..] => (first.clone(), others),
            [] => return later.clone(),
        };
        if names_sessions && later.distinct_id.is_some() {
            earliest.distinct_id.clone_from(&later.distinct_id);
        }
        earliest.fill(later);
        earliest.fill_from(others);
        earliest
    }

    /// Fills from one event after the other, as [`Self::fill`] does.
    pub fn fill_from(&mut self, reported: &[Self]) -> bool {
        let mut filled = false;
        for event in reported {
            filled |= self.fill(event);
        }
        filled
    }

    fn is_of_the_browser_of(&self, other: &Self) -> bool {
        self.browser == other.browser && self.os == other.os
    }
}

fn fill_one(mine: &mut Option<String>, theirs: &Option<String>) -> bool {
    let fills = mine.is_none() && theirs.is_some();
    if fills {
        mine.clone_from(theirs);
    }
    fills
}

fn fill_together(mine: [&mut Option<String>; 3], theirs: [&Option<String>; 3]) -> bool {
    let agree = mine.iter().zip(theirs).all(|(mine, theirs)| mine.is_none() || **mine == *theirs);
    agree
        && mine.into_iter().zip(theirs).fold(false, |filled, (mine, theirs)| fill_one(mine, theirs) || filled)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one_of(values: &'static [&'static str]) -> impl Strategy<Value = Option<String>> {
        let some = proptest::sample::select(values).prop_map(|value| Some(value.to_owned()));
        prop_oneof![1 => Just(None), 2 => some]
    }

    /// Few values, so that parts of different events often agree.
    fn reported() -> impl Strategy<Value = SessionAttributes> {
        let agent = (one_of(&["chrome", "safari"]), one_of(&["Linux"]), one_of(&["laptop", "desktop"]));
        let own = (one_of(&["1x1", "2x2"]), one_of(&["de"]), one_of(&["ada", ""]));
        let place = (one_of(&["DE", "US"]), one_of(&["DE-BE", "US-CA"]), one_of(&["Berlin"]));
        (agent, own, place).prop_map(
            |((browser, os, device), (screen, language, distinct_id), (country, region, city))| {
                SessionAttributes {
                    browser,
                    os,
                    device,
                    screen,
                    language,
                    country,
                    region,
                    city,
                    distinct_id,
                }
            },
        )
    }

    fn row(reported: &[SessionAttributes]) -> Option<SessionRow> {
        let (first, rest) = reported.split_first()?;
        let id = Uuid::nil();
        let (attributes, reported) = (first.clone(), Vec::new());
        let mut row = SessionRow { session_id: id, website_id: id, attributes, reported, created_at_ms: 0 };
        rest.iter().for_each(|next| row.add(next.clone()));
        Some(row)
    }

    /// Fills a stored row as a store does at a commit.
    fn commit(stored: &mut Option<SessionAttributes>, batch: &[SessionAttributes]) {
        let Some(row) = row(batch) else { return };
        match stored {
            None => *stored = Some(row.attributes),
            Some(stored) => {
                stored.fill_from(row.reported());
            }
        }
    }

    fn agent(of: &SessionAttributes) -> [&Option<String>; 3] {
        [&of.browser, &of.os, &of.device]
    }

    fn place(of: &SessionAttributes) -> [&Option<String>; 3] {
        [&of.country, &of.region, &of.city]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn however_events_are_cut_into_batches_the_row_is_the_same(
            // Few different ones, often repeated.
            kinds in prop::collection::vec(reported(), 1..6),
            order in prop::collection::vec(any::<prop::sample::Index>(), 1..24),
            cuts in prop::collection::btree_set(0..24_usize, 0..6),
        ) {
            let all: Vec<_> = order.iter().map(|index| index.get(&kinds).clone()).collect();
            let (mut one_by_one, mut whole, mut cut) = (None, None, None);
            for event in &all {
                commit(&mut one_by_one, std::slice::from_ref(event));
            }
            commit(&mut whole, &all);
            let mut from = 0;
            for to in cuts.into_iter().filter(|to| *to < all.len()).chain([all.len()]) {
                commit(&mut cut, &all[from..to]);
                from = to;
            }
            prop_assert_eq!(&whole, &one_by_one);
            prop_assert_eq!(&cut, &one_by_one);
        }

        #[test]
        fn no_row_has_parts_of_a_group_from_two_events(all in prop::collection::vec(reported(), 1..12)) {
            let row = row(&all).expect("an event").attributes;
            prop_assert!(all.iter().any(|event| agent(event) == agent(&row)), "{row:?}");
            prop_assert!(all.iter().any(|event| place(event) == place(&row)), "{row:?}");
            let first = &all[0];
            for (mine, firsts) in agent(&row).into_iter().zip(agent(first)).chain(place(&row).into_iter().zip(place(first))) {
                prop_assert!(firsts.is_none() || mine == firsts, "what the first event says stays");
            }
            for (mine, of) in [
                (&row.screen, (|event| &event.screen) as fn(&SessionAttributes) -> &Option<String>),
                (&row.language, |event| &event.language),
            ] {
                // It may be of an event that knew less of the browser than another of the same browser did.
                let fits = |event: &&SessionAttributes| {
                    [(&event.browser, &row.browser), (&event.os, &row.os)]
                        .into_iter()
                        .all(|(event, row)| event.is_none() || event == row)
                };
                let from_one = all.iter().filter(fits).any(|event| of(event) == mine);
                prop_assert!(mine.is_none() || from_one, "{row:?}");
            }
        }
    }

    #[test]
    fn a_batch_keeps_no_repetitions() {
        let event = |screen: &str| SessionAttributes {
            browser: Some("chrome".to_owned()),
            screen: Some(screen.to_owned()),
            ..SessionAttributes::default()
        };
        let same = vec![event("1x1"); 1_000];
        assert_eq!(row(&same).expect("a row").reported, []);
        let two: Vec<_> = (0..1_000).map(|n| event(if n % 2 == 0 { "1x1" } else { "2x2" })).collect();
        assert_eq!(row(&two).expect("a row").reported, two[..2]);
    }
}
