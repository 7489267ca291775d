//! The present state: people, one person, a journey, a session.

use std::time::SystemTime;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use dashi_domain::calendar::ms_since_1970;
use dashi_domain::profile::{ProfileLinkKind, Stamp, distinct_id, session_version};
use dashi_domain::rows::SessionAttributes;
use dashi_store::{JourneyEvent, PersonSession, Profile, ProfileSummary, SessionTraits};
use http::StatusCode;
use http::request::Parts;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::answer::{Refusal, json, validated};
use crate::api::Api;
use crate::cursor::{self, List};
use crate::umami;
use crate::write::{Object, array, type_name, value};

/// Rows of a page if the request names no limit, and at most.
const LIMIT: u32 = 50;
const LIMIT_MAX: u32 = 200;

/// Longest text that is searched for; no distinct id is longer.
const QUERY_CHARS_MAX: usize = 50;

/// The parameters of a page of a list.
#[derive(Debug, Default, PartialEq, Eq)]
struct Page {
    query: String,
    limit: u32,
    after: Option<String>,
}

impl Page {
    /// Reads a URL's query. Unknown parameters are ignored; of two with one name the last one counts.
    fn parse(query: Option<&str>) -> Result<Self, Refusal> {
        let mut page = Self { limit: LIMIT, ..Self::default() };
        for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match &*name {
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                    page.limit = limit.ok_or(Refusal::bad("limit must be a number from 1 to 200"))?;
                }
                "after" => page.after = Some(value.into_owned()).filter(|after| !after.is_empty()),
                "query" => page.query = value.into_owned(),
                _ => {}
            }
        }
        if page.query.chars().count() > QUERY_CHARS_MAX {
            return Err(Refusal::bad("query must have at most 50 characters"));
        }
        Ok(page)
    }

    fn moment(&self, list: List) -> Result<Option<(i64, Uuid)>, Refusal> {
        self.after.as_deref().map(|after| cursor::moment(list, after).ok_or(BAD_CURSOR)).transpose()
    }

    /// The number of rows to read: one more than fits the page, which shows whether there is another page.
    fn rows(&self) -> u32 {
        self.limit + 1
    }

    /// Cuts the rows to the page, and returns the cursor of the next page, if there is one.
    fn cut<T>(&self, rows: &mut Vec<T>, cursor: impl FnOnce(&T) -> String) -> Option<String> {
        let more = rows.len() > self.limit as usize;
        rows.truncate(self.limit as usize);
        rows.last().filter(|_| more).map(cursor)
    }
}

const BAD_CURSOR: Refusal = Refusal::bad("after must be the value of next in an earlier page");

/// An id in a path.
pub fn id(text: &str) -> Result<Uuid, Refusal> {
    Uuid::try_parse(text).map_err(|_| Refusal::bad("Invalid UUID"))
}

/// A path's parts. Percent-encoded bytes need not be text.
pub fn parts<T>(path: Result<Path<T>, PathRejection>) -> Result<T, Refusal> {
    path.map(|Path(parts)| parts).map_err(|_| Refusal::bad("the path is not UTF-8"))
}

pub type PathOf<T> = Result<Path<T>, PathRejection>;

/// `GET …/profiles`
pub async fn profiles(State(api): State<Api>, path: PathOf<String>, request: Parts) -> Response {
    let work = async {
        let website_id = id(&parts(path)?)?;
        let page = Page::parse(request.uri.query())?;
        let after = page.after.as_deref().map(|after| cursor::person(after).ok_or(BAD_CURSOR)).transpose()?;
        let reading = api.0.store.profiles(website_id, &page.query, after.as_deref(), page.rows());
        let mut people = api.read(reading).await?;
        let next = page.cut(&mut people, |last| cursor::of_person(&last.distinct_id));
        let list = Object::new()
            .json("profiles", &array(people.iter().map(summary)))
            .optional("next", next.as_deref());
        Ok(json(StatusCode::OK, list.end()))
    };
    api.answer(&request, work).await
}

fn summary(person: &ProfileSummary) -> String {
    Object::new()
        .text("distinctId", &person.distinct_id)
        .moment("createdAt", person.created_at_ms)
        .json("traits", &person.traits.to_string())
        .json("sessions", &person.sessions.to_string())
        .end()
}

/// `GET …/profiles/{distinctId}`
pub async fn profile(State(api): State<Api>, path: PathOf<(String, String)>, request: Parts) -> Response {
    let work = async {
        let (website, person) = parts(path)?;
        let (website_id, person) = (id(&website)?, distinct_id(&person));
        let page = Page::parse(request.uri.query())?;
        let after = page.moment(List::Sessions)?;
        let profile = api.read(api.0.store.profile(website_id, &person)).await?.ok_or(Refusal::NotFound)?;
        let reading = api.0.store.person_sessions(website_id, &person, after, page.rows());
        let mut sessions = api.read(reading).await?;
        let next = page.cut(&mut sessions, |last| {
            cursor::of_moment(List::Sessions, (last.first_at_ms, last.session_id))
        });
        let live_since_ms = now_ms().saturating_sub(api.0.settings.live.as_millis() as i64);
        let body = person_json(&profile, &sessions, next.as_deref(), live_since_ms);
        // Sessions begin, go on and end without a change of the traits, so the version alone would not show whether the
        // client's copy is still valid.
        let tag = format!("{}.{}", profile.version, hash(&body));
        Ok(validated(&request.headers, &tag, body))
    };
    api.answer(&request, work).await
}

fn person_json(
    profile: &Profile,
    sessions: &[PersonSession],
    next: Option<&str>,
    live_since_ms: i64,
) -> String {
    let (mut traits, mut deleted) = (Object::new(), Object::new());
    for row in &profile.traits {
        let settled = &row.settled;
        let since = |object: Object| {
            object
                .moment("changedAt", settled.changed.received_at_ms)
                .text("changedBy", &settled.changed_by.to_string())
                .end()
        };
        match &settled.value {
            Some(now) => {
                let object = Object::new().json("value", &value(now)).text("type", type_name(now));
                traits = traits.json(&row.key, &since(object));
            }
            None if settled.changed != Stamp::NEVER => {
                deleted = deleted.json(&row.key, &since(Object::new()));
            }
            // Nothing was ever written: every value that was sent equalled the one that its sender had read.
            None => {}
        }
    }
    Object::new()
        .text("websiteId", &profile.person.website_id.to_string())
        .text("distinctId", &profile.person.distinct_id)
        .moment("createdAt", profile.created_at_ms)
        .text("version", &profile.version)
        .json("traits", &traits.end())
        .json("deleted", &deleted.end())
        .json("sessions", &array(sessions.iter().map(|session| session_json(session, live_since_ms))))
        .optional("sessionsNext", next)
        .end()
}

fn session_json(session: &PersonSession, live_since_ms: i64) -> String {
    let kind = match session.kind {
        ProfileLinkKind::Own => "own",
        ProfileLinkKind::Anonymous => "anonymous",
    };
    let unknown = SessionAttributes::default();
    let SessionAttributes { browser, os, device, screen, language, country, region, city, distinct_id: _ } =
        session.attributes.as_ref().unwrap_or(&unknown);
    let mut object = Object::new().text("sessionId", &session.session_id.to_string()).text("kind", kind);
    for (name, attribute) in [
        ("browser", browser),
        ("os", os),
        ("device", device),
        ("screen", screen),
        ("language", language),
        ("country", country),
        ("region", region),
        ("city", city),
    ] {
        object = object.optional(name, attribute.as_deref());
    }
    object = object.moment("firstAt", session.first_at_ms);
    object = match session.last_at_ms {
        Some(last_at_ms) => object.moment("lastAt", last_at_ms),
        None => object.json("lastAt", "null"),
    };
    let live = session.last_at_ms.is_some_and(|last_at_ms| last_at_ms > live_since_ms);
    object.json("live", if live { "true" } else { "false" }).end()
}

/// `GET …/profiles/{distinctId}/journey`
pub async fn journey(State(api): State<Api>, path: PathOf<(String, String)>, request: Parts) -> Response {
    let work = async {
        let (website, person) = parts(path)?;
        let (website_id, person) = (id(&website)?, distinct_id(&person));
        let page = Page::parse(request.uri.query())?;
        let after = page.moment(List::Journey)?;
        let mut events = api.read(api.0.store.journey(website_id, &person, after, page.rows())).await?;
        // A person may exist and have no event behind the cursor.
        if events.is_empty() && api.read(api.0.store.profile(website_id, &person)).await?.is_none() {
            return Err(Refusal::NotFound);
        }
        let next = page
            .cut(&mut events, |last| cursor::of_moment(List::Journey, (last.created_at_ms, last.event_id)));
        let list = Object::new()
            .json("events", &array(events.iter().map(event_json)))
            .optional("next", next.as_deref());
        Ok(json(StatusCode::OK, list.end()))
    };
    api.answer(&request, work).await
}

fn event_json(event: &JourneyEvent) -> String {
    let kind = match event.event_type {
        0 => "identify",
        1 => "pageview",
        2 => "event",
        3 => "link",
        4 => "pixel",
        5 => "performance",
        _ => "other",
    };
    Object::new()
        .text("eventId", &event.event_id.to_string())
        .text("sessionId", &event.session_id.to_string())
        .optional("visitId", event.visit_id.map(|visit| visit.to_string()).as_deref())
        .moment("createdAt", event.created_at_ms)
        .text("type", kind)
        .optional("urlPath", event.url_path.as_deref())
        .optional("eventName", event.event_name.as_deref())
        .end()
}

/// `GET …/sessions/{sessionId}`: the session as Umami shows it, and its effective traits.
pub async fn session(State(api): State<Api>, path: PathOf<(String, String)>, request: Parts) -> Response {
    let work = async {
        let (website, session) = parts(path)?;
        let (website_id, session_id) = (id(&website)?, id(&session)?);
        let reading = api.0.store.session_traits(website_id, session_id);
        let traits = api.read(reading).await?.ok_or(Refusal::NotFound)?;
        let seen = api.ask(move |questions| async move { questions.session(website_id, session_id).await });
        let body = umami::session_json(seen.await?.as_ref(), &traits);
        // Views and visits go on without a change of the traits.
        let tag = format!("{}.{}", traits.version, hash(&body));
        Ok(validated(&request.headers, &tag, body))
    };
    api.answer(&request, work).await
}

/// A session's effective traits: the data of a stream's event.
pub fn traits_json(session: &SessionTraits) -> String {
    with_traits(Object::new().text("websiteId", &session.website_id.to_string()), session).end()
}

/// The members of a session's effective traits, but its website's id.
pub fn with_traits(object: Object, session: &SessionTraits) -> Object {
    let persons =
        session.traits.iter().filter_map(|row| Some((row.key.as_str(), row.settled.value.as_ref()?)));
    let own = session.own.iter().map(|row| (row.data_key.as_str(), &row.value));
    let mut all: Vec<_> = persons.chain(own).collect();
    all.sort_unstable_by_key(|(key, _)| *key);
    let traits = all.into_iter().fold(Object::new(), |object, (key, now)| object.json(key, &value(now)));
    object
        .text("sessionId", &session.session_id.to_string())
        .optional("person", session.person.as_deref())
        .text("version", &session.version)
        .json("traits", &traits.end())
}

/// The traits of a session of which no event was applied yet: none.
pub fn nothing_known(website_id: Uuid, session_id: Uuid) -> SessionTraits {
    let version = session_version(None, []);
    SessionTraits { website_id, session_id, person: None, traits: Vec::new(), own: Vec::new(), version }
}

/// The first 16 hexadecimal characters.
pub fn hash(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The wall clock, by which a session is live or not, in milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the api is an edge at which time enters")]
pub fn now_ms() -> i64 {
    ms_since_1970(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use dashi_domain::flatten::DataType;
    use dashi_domain::profile::{Person, Settled, TraitRow};
    use dashi_domain::rows::{DataValue, SessionDataRow};
    use serde_json::{Value, json};

    use super::*;

    const WEBSITE: Uuid = Uuid::from_u128(1);
    const SESSION: Uuid = Uuid::from_u128(2);

    fn text(text: &str) -> DataValue {
        let string_value = Some(text.to_owned());
        DataValue { data_type: DataType::String, string_value, number_value: None, date_value_ms: None }
    }

    fn row(key: &str, now: Option<DataValue>, changed: Stamp) -> TraitRow {
        let settled = Settled { value: now, last: changed, changed, changed_by: SESSION, conditional: false };
        TraitRow { website_id: WEBSITE, distinct_id: "ada".to_owned(), key: key.to_owned(), settled }
    }

    fn own(key: &str, now: DataValue) -> SessionDataRow {
        SessionDataRow {
            session_data_id: Uuid::nil(),
            website_id: WEBSITE,
            session_id: SESSION,
            data_key: key.to_owned(),
            value: now,
            distinct_id: None,
            created_at_ms: 0,
        }
    }

    const THEN: Stamp = Stamp { received_at_ms: 1_000, event_id: Uuid::from_u128(9) };

    fn read(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_page_is_asked_by_limit_cursor_and_query() {
        let page = |query: &str| Page::parse(Some(query));
        let asked = |query: &str, limit, after: Option<&str>| Page {
            query: query.to_owned(),
            limit,
            after: after.map(str::to_owned),
        };
        assert_eq!(Page::parse(None), Ok(asked("", 50, None)));
        assert_eq!(page("limit=200&after=abc&query=a%20b+c&other=1"), Ok(asked("a b c", 200, Some("abc"))));
        assert_eq!(page("limit=1&after="), Ok(asked("", 1, None)));
        for limit in ["0", "201", "-1", "1.5", "", "x"] {
            assert!(matches!(page(&format!("limit={limit}")), Err(Refusal::Bad(_))), "{limit:?}");
        }
        assert!(page(&format!("query={}", "x".repeat(50))).is_ok());
        assert!(page(&format!("query={}", "x".repeat(51))).is_err());
        assert_eq!(page("after=%25").unwrap().moment(List::Journey), Err(BAD_CURSOR));
    }

    #[test]
    fn there_is_a_next_page_only_behind_a_full_one_with_more_rows() {
        let page = Page { limit: 2, ..Page::default() };
        assert_eq!(page.rows(), 3);
        for (rows, kept, next) in [(0, 0, None), (1, 1, None), (2, 2, None), (3, 2, Some("1"))] {
            let mut rows: Vec<usize> = (0..rows).collect();
            let cursor = page.cut(&mut rows, usize::to_string);
            assert_eq!((rows.len(), cursor.as_deref()), (kept, next));
        }
    }

    #[test]
    fn a_person_shows_what_is_and_what_was_deleted_but_not_what_never_was() {
        let profile = Profile {
            person: Person { website_id: WEBSITE, distinct_id: "ada".to_owned() },
            created_at_ms: 0,
            version: "v".to_owned(),
            traits: vec![
                row("gone", None, THEN),
                row("name", Some(text("Ada")), THEN),
                row("never", None, Stamp::NEVER),
            ],
        };
        let seen = |last_at_ms| PersonSession {
            session_id: SESSION,
            kind: ProfileLinkKind::Anonymous,
            attributes: None,
            first_at_ms: 5,
            last_at_ms,
        };
        let sessions = [seen(Some(101)), seen(Some(100)), seen(None)];
        let shown = read(&person_json(&profile, &sessions, Some("next"), 100));
        let since = json!({ "changedAt": "1970-01-01T00:00:01.000Z", "changedBy": SESSION });
        assert_eq!(shown["deleted"], json!({ "gone": since }));
        let name = json!({ "value": "Ada", "type": "string", "changedAt": since["changedAt"], "changedBy": SESSION });
        assert_eq!(shown["traits"], json!({ "name": name }));
        assert_eq!(shown["sessionsNext"], "next");
        let live: Vec<_> =
            shown["sessions"].as_array().unwrap().iter().map(|session| &session["live"]).collect();
        assert_eq!(live, [true, false, false]);
        assert_eq!(shown["sessions"][2]["lastAt"], Value::Null);
        assert_eq!(shown["sessions"][0]["kind"], "anonymous");
    }

    #[test]
    fn a_session_has_its_persons_traits_and_its_own_and_no_deleted_one() {
        let session = SessionTraits {
            website_id: WEBSITE,
            session_id: SESSION,
            person: Some("ada".to_owned()),
            traits: vec![row("b", Some(text("person's")), THEN), row("c", None, THEN)],
            own: vec![own("a", text("own"))],
            version: "v".to_owned(),
        };
        let expected = format!(
            r#"{{"websiteId":"{WEBSITE}","sessionId":"{SESSION}","person":"ada","version":"v","traits":{{"a":"own","b":"person's"}}}}"#
        );
        assert_eq!(traits_json(&session), expected);
        let nothing = read(&traits_json(&nothing_known(WEBSITE, SESSION)));
        assert_eq!((&nothing["person"], &nothing["traits"]), (&Value::Null, &json!({})));
        assert!(nothing["version"].as_str().unwrap().starts_with("s-"));
    }
}
