//! The bodies that `/api/send` and `/api/batch` accept, and the errors of those that they refuse.
//!
//! [`Submission::parse`] is the only way from a body to a [`Submission`]; nothing behind it checks again. The
//! rules are those of Umami's schema (docs/umami-contract.md §2, §3.4 and §4).

use std::borrow::Cow;
use std::fmt;

use uuid::Uuid;

use self::check::Check;
use self::field::Field;
use crate::flatten;
use crate::json::{self, Object, Value};
use crate::schema::{Node, SchemaError, wrong_type};
use crate::umami::Release;

mod check;
mod field;

/// So many elements of a batch are reported at most. Umami reports all, which for 10 MiB of `0,` is an answer of
/// 300 MiB.
pub const BATCH_ERRORS_MAX: usize = 100;

const BAD_KIND: &str = r#"Invalid option: expected one of "event"|"identify"|"performance""#;

/// The checks in which Umami's versions differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaRules {
    /// Whether `hostname`, `language`, `screen`, `name` and `tag` may have any length; they are cut where they are
    /// stored. Else a value that is longer than its column is refused.
    pub any_length: bool,
    /// Whether `name` and `tag` are refused if a spreadsheet would take them for a formula.
    pub no_formulas: bool,
    /// Whether a `timestamp` of 0, or one that JavaScript coerces to 0, is the first second of 1970. Else it is no
    /// timestamp.
    pub zero_is_a_time: bool,
    /// Whether a submission of a type that is not known is taken as it is, see [`Kept`]. Else it is refused.
    pub keep_unknown_types: bool,
}

impl SchemaRules {
    /// Those of a payload in a record: it was checked when it was sent, by the rules of its day.
    pub const RECORDED: Self =
        Self { any_length: true, no_formulas: false, zero_is_a_time: true, keep_unknown_types: false };

    /// Those of a collector that does not know its version yet: nothing is refused that one of them takes.
    pub const UNKNOWN: Self =
        Self { any_length: true, no_formulas: false, zero_is_a_time: false, keep_unknown_types: false };

    /// Those of a version. `cut_long_fields` lets older ones take texts of any length too.
    pub fn of(release: Release, cut_long_fields: bool) -> Self {
        let is_newer = release >= Release::V3_3;
        Self {
            any_length: is_newer || cut_long_fields,
            no_formulas: is_newer,
            zero_is_a_time: release >= Release::V3_4,
            keep_unknown_types: false,
        }
    }

    /// The same, with unknown types kept or refused.
    #[must_use]
    pub fn keeping(self, keep_unknown_types: bool) -> Self {
        Self { keep_unknown_types, ..self }
    }
}

/// The kind of a submission: the field `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubmissionKind {
    /// A page view, or a custom event if it has a name.
    Event,
    /// Data about the session.
    Identify,
    /// Web vitals of a page.
    Performance,
    /// A type that this version does not know, kept as it is: see [`Kept`].
    Kept,
}

impl SubmissionKind {
    /// The value of `type`; for a kept one see [`Kept::kind`].
    pub fn as_str(self) -> &'static str {
        match self {
            SubmissionKind::Event => "event",
            SubmissionKind::Identify => "identify",
            SubmissionKind::Performance => "performance",
            SubmissionKind::Kept => "kept",
        }
    }

    /// The kind with this value of `type`; case matters.
    pub fn parse(text: &str) -> Option<Self> {
        [SubmissionKind::Event, SubmissionKind::Identify, SubmissionKind::Performance]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// The website, link or pixel that collected a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceKind {
    /// A website with a tracker.
    Website,
    /// A tracked redirect.
    Link,
    /// A tracking pixel.
    Pixel,
}

impl SourceKind {
    /// The payload's field that names such a source.
    pub fn as_str(self) -> &'static str {
        self.field().name()
    }

    fn field(self) -> Field {
        match self {
            SourceKind::Website => Field::Website,
            SourceKind::Link => Field::Link,
            SourceKind::Pixel => Field::Pixel,
        }
    }
}

/// The one website, link or pixel a submission belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source<'a> {
    /// Its kind.
    pub kind: SourceKind,
    /// The id as sent, which is how it enters the session's hash: another case is another session.
    pub text: Cow<'a, str>,
    /// The id as the database compares it.
    pub id: Uuid,
}

/// Properties of one identify, at most. Each is a row that is looked up, compared and replaced in one transaction, so a
/// body of a million would hold up everybody's; Umami's documentation recommends 50. An event's data has no such limit:
/// its rows are only added.
pub const PROPERTIES_MAX: usize = 10_000;

/// A body `/api/send` accepts.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission<'a> {
    /// The field `type`.
    pub kind: SubmissionKind,
    /// The field `payload`; of a kept type only the fields that identifiers are made of.
    pub payload: Payload<'a>,
    /// The submission as it is kept, for [`SubmissionKind::Kept`].
    pub kept: Option<Kept<'a>>,
}

/// A submission of a type that this version does not know, as it was sent: a later version may make rows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept<'a> {
    /// The value of `type`: 1 to 50 characters, none of them a control character.
    pub kind: Cow<'a, str>,
    /// The whole payload, less the client's address, its agent and the submission's own name, which the record has or does
    /// without.
    pub payload: Object<'a>,
}

/// Characters of a type that is kept, at most.
const KEPT_KIND_MAX: usize = 50;

/// Types that other versions of Umami have, and the name for all others.
const UNKNOWN_KINDS: [&str; 6] = ["engagement", "error", "commerce", "heatmap", "record", "other"];

/// One of a few names for a type that is not known.
fn unknown_kind(kind: &str) -> &'static str {
    UNKNOWN_KINDS.into_iter().find(|known| *known == kind).unwrap_or("other")
}

impl<'a> Kept<'a> {
    /// One of a few names for its type, for counting.
    pub fn counted_as(&self) -> &'static str {
        unknown_kind(&self.kind)
    }

    /// The fields that identifiers are made of are checked, all others are not looked at.
    fn submission(kind: Cow<'a, str>, sent: Object<'a>, rules: SchemaRules) -> Result<Submission<'a>, Node> {
        let named = ["website", "link", "pixel", "ip", "userAgent", "timestamp", "id", "messageId"];
        let known = sent.iter().filter(|(key, _)| named.contains(key));
        let known = known.map(|(key, value)| (Cow::Owned(key.to_owned()), value.clone()));
        let payload = Payload::from_object(Object::from_members(known.collect::<Vec<_>>()), rules)?;
        let mut sent = sent;
        for key in ["ip", "userAgent", "messageId"] {
            sent.remove(key);
        }
        Ok(Submission { kind: SubmissionKind::Kept, payload, kept: Some(Kept { kind, payload: sent }) })
    }
}

/// The known fields of `payload`, each as sent. `None` is "absent"; an empty string stays one.
///
/// Limits are inclusive; lengths are in UTF-16 units. Those of `hostname`, `language`, `screen`, `name` and `tag` hold
/// where [`SchemaRules`] allow it.
#[derive(Clone, PartialEq)]
pub struct Payload<'a> {
    /// `website`, `link` or `pixel`.
    pub source: Source<'a>,
    /// Custom data, of any size and depth below [`json::DEPTH_MAX`].
    pub data: Option<Object<'a>>,
    /// Host of the page; at most 100. Not checked to be one.
    pub hostname: Option<Cow<'a, str>>,
    /// Language of the browser; at most 35.
    pub language: Option<Cow<'a, str>>,
    /// Parses as a URL against `https://localhost`.
    pub referrer: Option<Cow<'a, str>>,
    /// Such as `1920x1080`; at most 11.
    pub screen: Option<Cow<'a, str>>,
    /// Title of the page, maybe percent-encoded.
    pub title: Option<Cow<'a, str>>,
    /// Parses as a URL against `https://localhost`.
    pub url: Option<Cow<'a, str>>,
    /// Name of a custom event; at most 50.
    pub name: Option<Cow<'a, str>>,
    /// At most 50.
    pub tag: Option<Cow<'a, str>>,
    /// Replaces the client's address. Any text.
    pub ip: Option<Cow<'a, str>>,
    /// `userAgent`: replaces the header.
    pub user_agent: Option<Cow<'a, str>>,
    /// Seconds since 1970 (0 only where [`SchemaRules`] take it for a time), from -210866803200 to 8640000000000: what both
    /// PostgreSQL and a JavaScript date can hold.
    pub timestamp: Option<i64>,
    /// The distinct id. Any length.
    pub id: Option<Cow<'a, str>>,
    /// Replaces detection, even when empty.
    pub browser: Option<Cow<'a, str>>,
    /// Replaces detection, even when empty.
    pub os: Option<Cow<'a, str>>,
    /// Replaces detection, even when empty.
    pub device: Option<Cow<'a, str>>,
    /// Largest contentful paint in ms, 0 to 60000.
    pub lcp: Option<f64>,
    /// Interaction to next paint in ms, 0 to 60000.
    pub inp: Option<f64>,
    /// Cumulative layout shift, 0 to 100.
    pub cls: Option<f64>,
    /// First contentful paint in ms, 0 to 60000.
    pub fcp: Option<f64>,
    /// Time to first byte in ms, 0 to 60000.
    pub ttfb: Option<f64>,
    /// `messageId`: the client's own id of this event, at most 100; never empty. Dashi's, not Umami's, which
    /// ignores the key.
    pub message_id: Option<Cow<'a, str>>,
    /// `baseVersion`: the version of the person's profile that the client had read, at most 100; not checked to be
    /// one (see [`crate::profile::parse_version`]). Dashi's, not Umami's, which ignores the key.
    pub base_version: Option<Cow<'a, str>>,
}

impl<'a> Submission<'a> {
    /// Whether this is an identify with more than [`PROPERTIES_MAX`] properties.
    pub fn has_too_many_properties(&self) -> bool {
        self.kind == SubmissionKind::Identify
            && self.payload.source.kind == SourceKind::Website
            && self.payload.data.as_ref().is_some_and(|data| flatten::count(data) > PROPERTIES_MAX)
    }

    /// Reads a body of `/api/send`. Keys it does not know are dropped.
    ///
    /// # Errors
    /// [`SchemaError`] if the body is not JSON (zod sees `undefined` then) or does not fit the schema. Answer
    /// it with a 400; sending the same again gives the same.
    pub fn parse(body: &'a [u8], rules: SchemaRules) -> Result<Self, SchemaError> {
        match json::parse(body) {
            Ok(value) => Self::from_value(value, rules),
            Err(_) => Err(SchemaError(Node::leaf(wrong_type("object", "undefined")))),
        }
    }

    /// Reads one element of a batch, as [`Submission::parse`] reads a body.
    ///
    /// # Errors
    /// [`SchemaError`] if the value does not fit the schema.
    pub fn from_value(value: Value<'a>, rules: SchemaRules) -> Result<Self, SchemaError> {
        let mut object = match value {
            Value::Object(object) => object,
            other => return Err(SchemaError(Node::leaf(wrong_type("object", other.type_name())))),
        };
        let mut tree = Node::default();
        let kind = object.get("type").and_then(Value::as_str).and_then(SubmissionKind::parse);
        if kind.is_none() {
            tree.properties.push(("type", Node::leaf(BAD_KIND)));
            tree.unknown_kind = object.get("type").and_then(Value::as_str).map(unknown_kind);
        }
        let is_kept = |kind: &str| {
            rules.keep_unknown_types
                && (1..=KEPT_KIND_MAX).contains(&kind.chars().count())
                && !kind.chars().any(char::is_control)
        };
        let kept = object.get("type").and_then(Value::as_str).filter(|name| kind.is_none() && is_kept(name));
        if let Some(kept) = kept.map(|kept| Cow::Owned(kept.to_owned())) {
            let payload = match object.remove("payload") {
                Some(Value::Object(fields)) => fields,
                other => {
                    let received = other.as_ref().map_or("undefined", Value::type_name);
                    let payload = Node::leaf(wrong_type("object", received));
                    return Err(SchemaError(Node {
                        properties: vec![("payload", payload)],
                        ..Node::default()
                    }));
                }
            };
            return Kept::submission(kept, payload, rules).map_err(|payload| {
                SchemaError(Node { properties: vec![("payload", payload)], ..Node::default() })
            });
        }
        let payload = match object.remove("payload") {
            Some(Value::Object(fields)) => Payload::from_object(fields, rules),
            Some(other) => Err(Node::leaf(wrong_type("object", other.type_name()))),
            None => Err(Node::leaf(wrong_type("object", "undefined"))),
        };
        match (kind, payload) {
            (Some(kind), Ok(payload)) => Ok(Self { kind, payload, kept: None }),
            (_, Ok(_)) => Err(SchemaError(tree)),
            (_, Err(node)) => {
                tree.properties.push(("payload", node));
                Err(SchemaError(tree))
            }
        }
    }
}

/// Why a body of `/api/batch` is refused as a whole; no element is to be processed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// It is not an array of objects. At most the first [`BATCH_ERRORS_MAX`] wrong elements are named.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// It has more elements than may be; the client should send several batches.
    #[error("a batch has at most {max} elements")]
    TooMany {
        /// So many may be.
        max: usize,
    },
}

/// Reads a body of `/api/batch`: its elements, in order, each an object for [`Submission::from_value`]; at most
/// `elements_max`, inclusive.
///
/// # Errors
/// See [`BatchError`].
pub fn parse_batch(body: &[u8], elements_max: usize) -> Result<Vec<Value<'_>>, BatchError> {
    let wrong = |received| BatchError::Schema(SchemaError(Node::leaf(wrong_type("array", received))));
    let items = match json::parse_elements(body, elements_max) {
        Ok(Value::Array(items)) => items,
        Ok(other) => return Err(wrong(other.type_name())),
        Err(json::Stop::Broken(_)) => return Err(wrong("undefined")),
        Err(json::Stop::TooMany) => return Err(BatchError::TooMany { max: elements_max }),
    };
    let mut wrong = items.iter().enumerate().filter(|(_, item)| item.as_object().is_none());
    let named = wrong.by_ref().take(BATCH_ERRORS_MAX);
    let named = named.map(|(index, item)| (index, Node::leaf(wrong_type("record", item.type_name()))));
    let mut tree = Node { items: named.collect(), ..Node::default() };
    let further = wrong.count();
    if further > 0 {
        tree.errors.push(format!("{further} further elements are no objects").into());
    }
    if tree.is_empty() { Ok(items) } else { Err(SchemaError(tree).into()) }
}

impl<'a> Payload<'a> {
    fn from_object(object: Object<'a>, rules: SchemaRules) -> Result<Self, Node> {
        let mut check = Check::new(object, rules);
        let mut named = Vec::with_capacity(1);
        for kind in [SourceKind::Website, SourceKind::Link, SourceKind::Pixel] {
            if let Some((text, id)) = check.uuid(kind.field()) {
                named.push((kind, text, id));
            }
        }
        let data = check.record(Field::Data);
        let hostname = check.column(Field::Hostname, 100);
        let language = check.column(Field::Language, 35);
        let referrer = check.url(Field::Referrer);
        let screen = check.column(Field::Screen, 11);
        let title = check.text(Field::Title);
        let url = check.url(Field::Url);
        let name = check.label(Field::Name, 50);
        let tag = check.label(Field::Tag, 50);
        let ip = check.text(Field::Ip);
        let user_agent = check.text(Field::UserAgent);
        let timestamp = check.timestamp(Field::Timestamp);
        let id = check.text(Field::Id);
        let browser = check.text(Field::Browser);
        let os = check.text(Field::Os);
        let device = check.text(Field::Device);
        let lcp = check.vital(Field::Lcp, 60_000);
        let inp = check.vital(Field::Inp, 60_000);
        let cls = check.vital(Field::Cls, 100);
        let fcp = check.vital(Field::Fcp, 60_000);
        let ttfb = check.vital(Field::Ttfb, 60_000);
        let message_id = check.string(Field::MessageId, 100).filter(|id| !id.is_empty());
        let base_version = check.string(Field::BaseVersion, 100);
        let source = check.source(named);
        // Without a source there is an error in the tree: a wrong type, a wrong id, or that there is not just
        // one.
        match source {
            Some(source) if check.tree.is_empty() => Ok(Self {
                source,
                data,
                hostname,
                language,
                referrer,
                screen,
                title,
                url,
                name,
                tag,
                ip,
                user_agent,
                timestamp,
                id,
                browser,
                os,
                device,
                lcp,
                inp,
                cls,
                fcp,
                ttfb,
                message_id,
                base_version,
            }),
            _ => Err(check.tree),
        }
    }

    /// Appends the payload as compact JSON: the known keys in the order of the contract, absent ones left
    /// out, and never `ip`, `userAgent` and `messageId`. The address is not to be stored; the agent in effect, and
    /// the event's id that the client's is made into, travel elsewhere.
    ///
    /// The written text parses to the same payload without these three.
    pub fn write(&self, out: &mut String) {
        out.push_str("{\"");
        out.push_str(self.source.kind.as_str());
        out.push_str("\":");
        json::write_string(&self.source.text, out);
        if let Some(data) = &self.data {
            write_key(Field::Data, out);
            // A number too large for a double stays one: its row is a number's, without a value.
            data.write_exact(out);
        }
        write_text(Field::Hostname, &self.hostname, out);
        write_text(Field::Language, &self.language, out);
        write_text(Field::Referrer, &self.referrer, out);
        write_text(Field::Screen, &self.screen, out);
        write_text(Field::Title, &self.title, out);
        write_text(Field::Url, &self.url, out);
        write_text(Field::Name, &self.name, out);
        write_text(Field::Tag, &self.tag, out);
        if let Some(timestamp) = self.timestamp {
            write_key(Field::Timestamp, out);
            out.push_str(&timestamp.to_string());
        }
        write_text(Field::Id, &self.id, out);
        write_text(Field::Browser, &self.browser, out);
        write_text(Field::Os, &self.os, out);
        write_text(Field::Device, &self.device, out);
        write_vital(Field::Lcp, self.lcp, out);
        write_vital(Field::Inp, self.inp, out);
        write_vital(Field::Cls, self.cls, out);
        write_vital(Field::Fcp, self.fcp, out);
        write_vital(Field::Ttfb, self.ttfb, out);
        write_text(Field::BaseVersion, &self.base_version, out);
        out.push('}');
    }
}

/// Shows the text of [`Payload::write`], so that a payload in a log or a panic does not show the address.
impl fmt::Debug for Payload<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text);
        out.write_str(&text)
    }
}

/// Writes the key of a member that is not the first. No name needs an escape.
fn write_key(field: Field, out: &mut String) {
    out.push_str(",\"");
    out.push_str(field.name());
    out.push_str("\":");
}

fn write_text(field: Field, text: &Option<Cow<'_, str>>, out: &mut String) {
    if let Some(text) = text {
        write_key(field, out);
        json::write_string(text, out);
    }
}

fn write_vital(field: Field, vital: Option<f64>, out: &mut String) {
    if let Some(vital) = vital {
        write_key(field, out);
        Value::Number(vital).write(out);
    }
}

#[cfg(test)]
mod tests;
