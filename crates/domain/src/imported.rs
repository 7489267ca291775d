//! Rows of another store, brought in by an import: what they were made of is lost (the agent, the address), so they lie
//! in the log as they were there.
//!
//! Their record has the envelope of every record ([`crate::record`]) with the type `imported`, the kind of source, and
//! the rows:
//!
//! ```json
//! {"v":1,"id":"<event id>","at":1777623630123,"session":"<uuid>","visit":"<uuid>","type":"imported","source":"umami",
//!  "payload":{"website":"<uuid>","session":{…},"event":{…},"event_data":[{…}],"revenue":[{…}],
//!             "session_data":[{…}],"session_link":[{…}]}}
//! ```
//!
//! Every part but `website` may be absent. Members of a part are columns of its table; those that are null, or that
//! the envelope has, are absent. Times are milliseconds since 1970, decimals are texts. A record with an `event` has
//! the event's id and time; any other has an id of its own and the nil visit. `event_id` in the payload names the
//! event of `event_data` and `revenue` where it is not the record's.

use uuid::Uuid;

use crate::decimal::Decimal;
use crate::flatten::DataType;
use crate::json::{Value, write_string};
use crate::profile;
use crate::record::{DecodeError, Envelope, Fields};
use crate::rows::{
    Campaign, DataValue, EventDataRow, EventRow, EventType, RevenueRow, SessionAttributes, SessionDataRow,
    SessionLinkRow, Vitals,
};
use crate::text::cut_chars;

/// Rows of another store that belong to one session.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The event's id, if there is an event; else an id of the record's own.
    pub record_id: Uuid,
    /// When it happened, milliseconds since 1970.
    pub at_ms: i64,
    /// The session; also the record's key.
    pub session_id: Uuid,
    /// The event's visit; nil without an event.
    pub visit_id: Uuid,
    /// The website, link or pixel of all rows.
    pub website_id: Uuid,
    /// The kind of source, such as `umami`.
    pub source: String,
    /// The session's row, if the source had one.
    pub session: Option<ImportedSession>,
    /// The event's row.
    pub event: Option<EventRow>,
    /// Leaves of an event's data.
    pub event_data: Vec<EventDataRow>,
    /// Revenue of an event.
    pub revenue: Vec<RevenueRow>,
    /// Properties of the session.
    pub session_data: Vec<SessionDataRow>,
    /// Distinct ids that were named in the session.
    pub session_links: Vec<SessionLinkRow>,
}

/// A row of `session` in another store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImportedSession {
    /// Its attributes.
    pub attributes: SessionAttributes,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
}

impl Imported {
    /// The people that its rows name for the session, in the form of [`profile::distinct_id`], and when, in milliseconds since
    /// 1970.
    pub fn people(&self) -> impl Iterator<Item = (String, i64)> {
        let at = self.session.as_ref().map_or(self.at_ms, |session| session.created_at_ms);
        let of_session = self.session.iter().filter_map(|session| session.attributes.distinct_id.as_ref());
        let linked = self.session_links.iter().map(|link| (&link.distinct_id, link.created_at_ms));
        let identified =
            self.session_data.iter().filter_map(|row| Some((row.distinct_id.as_ref()?, row.created_at_ms)));
        let named = of_session.map(move |id| (id, at)).chain(linked).chain(identified);
        named.filter(|(id, _)| !id.is_empty()).map(|(id, at_ms)| (profile::distinct_id(id), at_ms))
    }

    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        let Self { record_id, at_ms, session_id, visit_id, website_id, .. } = self;
        let mut out = format!(
            r#"{{"v":1,"id":"{record_id}","at":{at_ms},"session":"{session_id}","visit":"{visit_id}","type":"imported","source":"#
        );
        write_string(&self.source, &mut out);
        out.push_str(&format!(r#","payload":{{"website":"{website_id}""#));
        if let Some(of) = self.of_event().filter(|of| of != record_id) {
            out.push_str(&format!(r#","event_id":"{of}""#));
        }
        if let Some(session) = &self.session {
            out.push_str(",\"session\":");
            let mut row = Writer::begin(&mut out);
            row.texts(&session_texts(&session.attributes));
            row.integer("created_at", session.created_at_ms);
            row.end();
        }
        if let Some(event) = &self.event {
            out.push_str(",\"event\":");
            let mut row = Writer::begin(&mut out);
            row.text("url_path", &event.url_path);
            row.texts(&event_texts(event));
            row.integer("event_type", i64::from(event.event_type as i32));
            for (name, value) in VITALS.into_iter().zip(vitals(&event.vitals)) {
                row.decimal(name.0, value);
            }
            row.end();
        }
        list(&mut out, "event_data", &self.event_data, |row, of| {
            row.uuid("event_data_id", of.event_data_id);
            row.data(&of.data_key, &of.value, of.created_at_ms);
        });
        list(&mut out, "revenue", &self.revenue, |row, of| {
            row.uuid("revenue_id", of.revenue_id);
            row.text("event_name", &of.event_name);
            row.text("currency", &of.currency);
            row.decimal("revenue", Some(of.revenue));
            row.integer("created_at", of.created_at_ms);
        });
        list(&mut out, "session_data", &self.session_data, |row, of| {
            row.uuid("session_data_id", of.session_data_id);
            row.data(&of.data_key, &of.value, of.created_at_ms);
            row.texts(&[("distinct_id", &of.distinct_id)]);
        });
        list(&mut out, "session_link", &self.session_links, |row, of| {
            row.text("distinct_id", &of.distinct_id);
            row.integer("created_at", of.created_at_ms);
        });
        out.push_str("}}");
        out.into_bytes()
    }

    /// The event that data and revenue are of.
    fn of_event(&self) -> Option<Uuid> {
        let data = self.event_data.first().map(|row| row.website_event_id);
        data.or_else(|| self.revenue.first().map(|row| row.event_id))
    }

    /// Reads the rest of a record whose type is `imported`. Texts are cut to the widths of their columns.
    pub(crate) fn decode(envelope: Envelope, mut fields: Fields<'_>) -> Result<Self, DecodeError> {
        let Envelope { event_id: record_id, received_at_ms: at_ms, session_id, visit_id } = envelope;
        let source = fields.text("source")?.unwrap_or_default().into_owned();
        let mut payload = match fields.0.remove("payload") {
            Some(Value::Object(payload)) => Fields(payload),
            other => return Err(DecodeError::field("payload", other.as_ref(), "an object")),
        };
        let website_id = payload.uuid("website")?;
        let of_event = match payload.0.get("event_id") {
            Some(_) => payload.uuid("event_id")?,
            None => record_id,
        };
        let session = object(&mut payload, "session")?.map(session_row).transpose()?;
        let event = object(&mut payload, "event")?;
        let event = event.map(|row| event_row(row, record_id, website_id, session_id, visit_id, at_ms));
        let event_data = rows(&mut payload, "event_data", |mut row| {
            let (data_key, value, created_at_ms) = data(&mut row)?;
            let event_data_id = row.uuid("event_data_id")?;
            Ok(EventDataRow {
                event_data_id,
                website_id,
                website_event_id: of_event,
                data_key,
                value,
                created_at_ms,
            })
        })?;
        let revenue = rows(&mut payload, "revenue", |mut row| {
            Ok(RevenueRow {
                revenue_id: row.uuid("revenue_id")?,
                website_id,
                session_id,
                event_id: of_event,
                event_name: text(&mut row, "event_name", 50)?.unwrap_or_default(),
                currency: text(&mut row, "currency", 10)?.unwrap_or_default(),
                revenue: decimal(&mut row, "revenue", 4)?
                    .ok_or_else(|| DecodeError::field("revenue", None, "a decimal"))?,
                created_at_ms: row.integer("created_at")?,
            })
        })?;
        let session_data = rows(&mut payload, "session_data", |mut row| {
            let (data_key, value, created_at_ms) = data(&mut row)?;
            let distinct_id = text(&mut row, "distinct_id", 50)?;
            let session_data_id = row.uuid("session_data_id")?;
            Ok(SessionDataRow {
                session_data_id,
                website_id,
                session_id,
                data_key,
                value,
                distinct_id,
                created_at_ms,
            })
        })?;
        let session_links = rows(&mut payload, "session_link", |mut row| {
            let distinct_id = text(&mut row, "distinct_id", 50)?.filter(|id| !id.is_empty());
            Ok(SessionLinkRow {
                website_id,
                session_id,
                distinct_id: distinct_id
                    .ok_or_else(|| DecodeError::field("distinct_id", None, "a text that is not empty"))?,
                created_at_ms: row.integer("created_at")?,
            })
        })?;
        Ok(Self {
            record_id,
            at_ms,
            session_id,
            visit_id,
            website_id,
            source,
            session,
            event: event.transpose()?,
            event_data,
            revenue,
            session_data,
            session_links,
        })
    }
}

/// Name and value of a text column.
type TextColumn<'r> = (&'static str, &'r Option<String>);

/// Columns of web vitals, with their fractional digits.
const VITALS: [(&str, u8); 5] = [("lcp", 1), ("inp", 1), ("cls", 4), ("fcp", 1), ("ttfb", 1)];

fn vitals(of: &Vitals) -> [Option<Decimal>; 5] {
    let Vitals { lcp, inp, cls, fcp, ttfb } = *of;
    [lcp, inp, cls, fcp, ttfb]
}

fn session_texts(of: &SessionAttributes) -> [TextColumn<'_>; 9] {
    let SessionAttributes { browser, os, device, screen, language, country, region, city, distinct_id } = of;
    [
        ("browser", browser),
        ("os", os),
        ("device", device),
        ("screen", screen),
        ("language", language),
        ("country", country),
        ("region", region),
        ("city", city),
        ("distinct_id", distinct_id),
    ]
}

fn event_texts(of: &EventRow) -> [TextColumn<'_>; 19] {
    let campaign = &of.campaign;
    [
        ("url_query", &of.url_query),
        ("utm_source", &campaign.utm_source),
        ("utm_medium", &campaign.utm_medium),
        ("utm_campaign", &campaign.utm_campaign),
        ("utm_content", &campaign.utm_content),
        ("utm_term", &campaign.utm_term),
        ("gclid", &campaign.gclid),
        ("fbclid", &campaign.fbclid),
        ("msclkid", &campaign.msclkid),
        ("ttclid", &campaign.ttclid),
        ("li_fat_id", &campaign.li_fat_id),
        ("twclid", &campaign.twclid),
        ("referrer_path", &of.referrer_path),
        ("referrer_query", &of.referrer_query),
        ("referrer_domain", &of.referrer_domain),
        ("page_title", &of.page_title),
        ("hostname", &of.hostname),
        ("event_name", &of.event_name),
        ("tag", &of.tag),
    ]
}

fn session_row(mut row: Fields<'_>) -> Result<ImportedSession, DecodeError> {
    let mut text = |name, width| text(&mut row, name, width);
    let attributes = SessionAttributes {
        browser: text("browser", 20)?,
        os: text("os", 20)?,
        device: text("device", 20)?,
        screen: text("screen", 11)?,
        language: text("language", 35)?,
        country: text("country", 2)?,
        region: text("region", 20)?,
        city: text("city", 50)?,
        distinct_id: text("distinct_id", 50)?,
    };
    Ok(ImportedSession { attributes, created_at_ms: row.integer("created_at")? })
}

fn event_row(
    mut row: Fields<'_>,
    event_id: Uuid,
    website_id: Uuid,
    session_id: Uuid,
    visit_id: Uuid,
    created_at_ms: i64,
) -> Result<EventRow, DecodeError> {
    let code = row.integer("event_type")?;
    let event_type = i32::try_from(code).ok().and_then(EventType::from_code);
    let event_type =
        event_type.ok_or_else(|| DecodeError::field("event_type", row.0.get("event_type"), "1 to 5"))?;
    let vitals = Vitals {
        lcp: decimal(&mut row, "lcp", 1)?,
        inp: decimal(&mut row, "inp", 1)?,
        cls: decimal(&mut row, "cls", 4)?,
        fcp: decimal(&mut row, "fcp", 1)?,
        ttfb: decimal(&mut row, "ttfb", 1)?,
    };
    let mut text = |name, width| text(&mut row, name, width);
    Ok(EventRow {
        event_id,
        website_id,
        session_id,
        visit_id,
        created_at_ms,
        url_path: text("url_path", 500)?.unwrap_or_default(),
        url_query: text("url_query", 500)?,
        campaign: Campaign {
            utm_source: text("utm_source", 255)?,
            utm_medium: text("utm_medium", 255)?,
            utm_campaign: text("utm_campaign", 255)?,
            utm_content: text("utm_content", 255)?,
            utm_term: text("utm_term", 255)?,
            gclid: text("gclid", 255)?,
            fbclid: text("fbclid", 255)?,
            msclkid: text("msclkid", 255)?,
            ttclid: text("ttclid", 255)?,
            li_fat_id: text("li_fat_id", 255)?,
            twclid: text("twclid", 255)?,
        },
        referrer_path: text("referrer_path", 500)?,
        referrer_query: text("referrer_query", 500)?,
        referrer_domain: text("referrer_domain", 500)?,
        page_title: text("page_title", 500)?,
        hostname: text("hostname", 100)?,
        event_type,
        event_name: text("event_name", 50)?,
        tag: text("tag", 50)?,
        vitals,
    })
}

/// Key, value and time of a row of data.
fn data(row: &mut Fields<'_>) -> Result<(String, DataValue, i64), DecodeError> {
    let code = row.integer("data_type")?;
    let data_type = i32::try_from(code).ok().and_then(DataType::from_code);
    let value = DataValue {
        data_type: data_type
            .ok_or_else(|| DecodeError::field("data_type", row.0.get("data_type"), "1 to 5"))?,
        string_value: text(row, "string_value", 500)?,
        number_value: decimal(row, "number_value", 4)?,
        date_value_ms: match row.0.get("date_value") {
            Some(_) => Some(row.integer("date_value")?),
            None => None,
        },
    };
    Ok((text(row, "data_key", 500)?.unwrap_or_default(), value, row.integer("created_at")?))
}

fn text(row: &mut Fields<'_>, name: &'static str, width: usize) -> Result<Option<String>, DecodeError> {
    Ok(row.text(name)?.map(|text| cut_chars(text, width).into_owned()))
}

fn decimal(row: &mut Fields<'_>, name: &'static str, scale: u8) -> Result<Option<Decimal>, DecodeError> {
    match row.text(name)? {
        None => Ok(None),
        Some(text) => match Decimal::parse(&text, scale) {
            Some(number) => Ok(Some(number)),
            None => Err(DecodeError::field(name, Some(&Value::String(text)), "a decimal below 10^15")),
        },
    }
}

fn object<'a>(payload: &mut Fields<'a>, name: &'static str) -> Result<Option<Fields<'a>>, DecodeError> {
    match payload.0.remove(name) {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(Fields(object))),
        Some(other) => Err(DecodeError::field(name, Some(&other), "an object or absent")),
    }
}

fn rows<'a, R>(
    payload: &mut Fields<'a>,
    name: &'static str,
    read: impl Fn(Fields<'a>) -> Result<R, DecodeError>,
) -> Result<Vec<R>, DecodeError> {
    let items = match payload.0.remove(name) {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(DecodeError::field(name, Some(&other), "a list or absent")),
    };
    let objects = items.into_iter().map(|item| match item {
        Value::Object(object) => Ok(Fields(object)),
        other => Err(DecodeError::field(name, Some(&other), "a list of objects")),
    });
    objects.map(|object: Result<Fields<'a>, _>| read(object?)).collect()
}

fn list<R>(out: &mut String, name: &str, rows: &[R], write: impl Fn(&mut Writer<'_>, &R)) {
    if rows.is_empty() {
        return;
    }
    out.push_str(&format!(",\"{name}\":["));
    for (place, of) in rows.iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        let mut row = Writer::begin(out);
        write(&mut row, of);
        row.end();
    }
    out.push(']');
}

/// Writes one row as an object; values that are null are left out.
struct Writer<'o> {
    out: &'o mut String,
    is_first: bool,
}

impl<'o> Writer<'o> {
    fn begin(out: &'o mut String) -> Self {
        out.push('{');
        Self { out, is_first: true }
    }

    fn end(self) {
        self.out.push('}');
    }

    fn name(&mut self, name: &str) {
        if !std::mem::take(&mut self.is_first) {
            self.out.push(',');
        }
        self.out.push('"');
        self.out.push_str(name);
        self.out.push_str("\":");
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        write_string(value, self.out);
    }

    fn texts(&mut self, columns: &[TextColumn<'_>]) {
        for (name, value) in columns {
            if let Some(value) = value {
                self.text(name, value);
            }
        }
    }

    fn integer(&mut self, name: &str, value: i64) {
        self.name(name);
        self.out.push_str(&value.to_string());
    }

    fn uuid(&mut self, name: &str, value: Uuid) {
        self.text(name, value.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
    }

    fn decimal(&mut self, name: &str, value: Option<Decimal>) {
        if let Some(value) = value {
            self.text(name, &value.to_string());
        }
    }

    fn data(&mut self, key: &str, value: &DataValue, created_at_ms: i64) {
        self.text("data_key", key);
        self.integer("data_type", i64::from(value.data_type.code()));
        self.texts(&[("string_value", &value.string_value)]);
        self.decimal("number_value", value.number_value);
        if let Some(date) = value.date_value_ms {
            self.integer("date_value", date);
        }
        self.integer("created_at", created_at_ms);
    }
}

impl Imported {
    /// Rows of a session, none yet.
    pub fn of(source: &str, website_id: Uuid, session_id: Uuid) -> Self {
        Self {
            record_id: Uuid::nil(),
            at_ms: 0,
            session_id,
            visit_id: Uuid::nil(),
            website_id,
            source: source.to_owned(),
            session: None,
            event: None,
            event_data: Vec::new(),
            revenue: Vec::new(),
            session_data: Vec::new(),
            session_links: Vec::new(),
        }
    }
}
