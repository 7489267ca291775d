//! People: traits that belong to (website, distinct id), whichever of a person's devices set them.
//!
//! An identify of a website with a distinct id and data *sends* values, one per key ([`TraitSend`]). Most of them
//! merely repeat what the device knew. So a send is compared with a *base*, and only a difference is a *write*
//! ([`WriteRow`]); a trait is the last of its writes by [`Stamp`], so (received at, event id). This is a three-way
//! merge: a device that repeats its old snapshot writes nothing, and a value that another device changed in between
//! stays (I6).
//!
//! # Where a base comes from
//!
//! * Its own: the value that the same device of the same session last sent for this person and key ([`BaseRow`]). A
//!   device is the anonymous session of the same address and agent, because all devices of a person may share one
//!   session id. A key that a device never sent has no base, so its first send is a write, and so is the first after
//!   the device's address, agent or salt changed.
//! * The version that the client had read, if the event names one (`baseVersion`): the trait's value at that version.
//!   Other partitions may not have got that far when the send is merged, least of all in a replay. So the row is kept
//!   with the version's stamp, and [`settle`] decides about it each time.
//!
//! # Why interleaving and replay do not matter
//!
//! *Which sends become rows* is decided by the order of one session's sends alone. They lie in one partition, and one
//! writer merges them in the order of the log, however the batches are cut; the work of other partitions is not looked
//! at. *The value of a trait* is [`settle`], a function of the set of its rows: it sorts them, so it does not matter in
//! which order, how often, and in how many portions they came. A [`TraitRow`] is that function's result, kept, and
//! [`version`] a function of those results. So one log gives one profile, its versions included.
//!
//! A row that is newer than all others of its trait, as almost every one is, is put onto the kept result at once, for
//! nothing that an older row is decided by lies after that row. Only others need the rows read back
//! ([`ProfileState::needs_history`]).
//!
//! # Limits
//!
//! * A device that sends a key for the first time is believed, even if it sends an old value: nothing shows which value
//!   it knew. Naming the version does.
//! * Two sends of one session that lie in different partitions, of a topic that grew in between, may be merged in
//!   either order. Then a return to an earlier value may be missed: the base that it is compared with is not yet the
//!   value in between.
//! * A repeated event is known by its id and folds into nothing. [`merge`] itself takes a repetition for what it is
//!   as long as the session's log lies in the order of the stamps; where it does not, a send that equalled its base and
//!   left no row would not be recognized once the base has moved on.
//! * A version names a moment by stamp. A change that was received before it and merged after the client had read is
//!   taken as read.

use uuid::Uuid;

use crate::rows::DataValue;

mod differences;
mod merge;
mod settle;
mod version;

pub use differences::{base_keys, differences, person_of, trait_keys};
pub use merge::{ProfileCounts, ProfileRows, ProfileState, merge, persons};
pub use settle::{Settled, settle};
pub use version::{distinct_id, parse_version, person_of_payload, session_version, version};

/// The place of a send among all sends of a website: by arrival, then by event id. Unique per event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// When the collector had the request, milliseconds since 1970.
    pub received_at_ms: i64,
    /// The event.
    pub event_id: Uuid,
}

impl Stamp {
    /// Before every send: the moment at which nothing was known of anybody.
    pub const NEVER: Self = Self { received_at_ms: 0, event_id: Uuid::nil() };
}

/// One key and value of one identify. An event has at most one of a key.
#[derive(Debug, Clone, PartialEq)]
pub struct TraitSend {
    /// The website.
    pub website_id: Uuid,
    /// The event's session.
    pub session_id: Uuid,
    /// The record's device; the session itself where the record has none.
    pub device: Uuid,
    /// The person that the event named, in the form of [`distinct_id`].
    pub distinct_id: String,
    /// Dotted path of the leaf, at most 500 characters.
    pub key: String,
    /// `None` deletes.
    pub value: Option<DataValue>,
    /// When.
    pub stamp: Stamp,
    /// The version that the client had read, if the event names one.
    pub base: Option<Stamp>,
}

/// How a session belongs to a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i32)]
pub enum ProfileLinkKind {
    /// An event of the session named the person.
    Own = 0,
    /// The session that the person's device has while it is anonymous.
    Anonymous = 1,
}

impl ProfileLinkKind {
    /// The number in the column `kind`.
    pub const fn code(self) -> i32 {
        self as i32
    }

    /// The kind with this number.
    pub fn from_code(code: i32) -> Option<Self> {
        [Self::Own, Self::Anonymous].into_iter().find(|kind| kind.code() == code)
    }
}

/// That a session belongs to a person. One per session, person and kind; of two, the one with the smaller `first_ms`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileLink {
    /// The website.
    pub website_id: Uuid,
    /// The session.
    pub session_id: Uuid,
    /// The person, in the form of [`distinct_id`].
    pub distinct_id: String,
    /// How they belong together.
    pub kind: ProfileLinkKind,
    /// Arrival of the earliest event that links them, milliseconds since 1970.
    pub first_ms: i64,
}

/// That a session made a link of a person to the session of its anonymous device. The link has the earliest `first_ms` of
/// its sources; an erasure of a session takes away the sources that it made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSource {
    /// The website.
    pub website_id: Uuid,
    /// The session whose events named the person.
    pub by_session: Uuid,
    /// The anonymous session that is linked.
    pub session_id: Uuid,
    /// The person, in the form of [`distinct_id`].
    pub distinct_id: String,
    /// Arrival of the earliest such event, milliseconds since 1970.
    pub first_ms: i64,
}

/// A person.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Person {
    /// The website.
    pub website_id: Uuid,
    /// The person, in the form of [`distinct_id`].
    pub distinct_id: String,
}

/// Key of a trait: of a [`TraitRow`], and of a set of [`WriteRow`]s.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraitKey {
    /// The website.
    pub website_id: Uuid,
    /// The person, in the form of [`distinct_id`].
    pub distinct_id: String,
    /// Dotted path of the leaf.
    pub key: String,
}

/// Key of a [`BaseRow`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseKey {
    /// The session that sends.
    pub session_id: Uuid,
    /// The device that sends.
    pub device: Uuid,
    /// The person that the event named, in the form of [`distinct_id`].
    pub distinct_id: String,
    /// Dotted path of the leaf.
    pub key: String,
}

/// A send that is a difference, or may be one: a row of `profile_write`, named by its trait and stamp. Never changed.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteRow {
    /// The website.
    pub website_id: Uuid,
    /// The person, in the form of [`distinct_id`].
    pub distinct_id: String,
    /// Dotted path of the leaf.
    pub key: String,
    /// When.
    pub stamp: Stamp,
    /// The session that sent it.
    pub session_id: Uuid,
    /// The device that sent it.
    pub device: Uuid,
    /// `None` deletes.
    pub value: Option<DataValue>,
    /// The version that the client had read; then [`settle`] decides whether the row is a write.
    pub base: Option<Stamp>,
}

/// A row of `profile_trait`: the result of [`settle`] for a trait's rows. There is one if and only if there is a row.
#[derive(Debug, Clone, PartialEq)]
pub struct TraitRow {
    /// The website.
    pub website_id: Uuid,
    /// The person, in the form of [`distinct_id`].
    pub distinct_id: String,
    /// Dotted path of the leaf.
    pub key: String,
    /// Its value, and since when it has had it.
    pub settled: Settled,
}

/// A row of `profile_base`: the value that a device of a session last sent that differed from what it had sent before.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseRow {
    /// The session that sent it.
    pub session_id: Uuid,
    /// The device that sent it.
    pub device: Uuid,
    /// The person that the event named, in the form of [`distinct_id`].
    pub distinct_id: String,
    /// Dotted path of the leaf.
    pub key: String,
    /// `None` if it deleted.
    pub value: Option<DataValue>,
    /// When.
    pub stamp: Stamp,
}

macro_rules! trait_key {
    ($($row:ty),*) => {$(
        impl $row {
            /// The trait it is about.
            pub fn trait_key(&self) -> TraitKey {
                let Self { website_id, distinct_id, key, .. } = self;
                TraitKey { website_id: *website_id, distinct_id: distinct_id.clone(), key: key.clone() }
            }
        }
    )*};
}
trait_key!(TraitSend, WriteRow, TraitRow);

macro_rules! base_key {
    ($($row:ty),*) => {$(
        impl $row {
            /// The base it is compared with, or is.
            pub fn base_key(&self) -> BaseKey {
                let Self { session_id, device, distinct_id, key, .. } = self;
                BaseKey {
                    session_id: *session_id,
                    device: *device,
                    distinct_id: distinct_id.clone(),
                    key: key.clone(),
                }
            }
        }
    )*};
}
base_key!(TraitSend, BaseRow);
