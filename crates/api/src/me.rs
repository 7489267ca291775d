//! A page's own person: read and followed with the signature that the page's website made of the distinct id.
//!
//! The page is of another origin and holds no API key. It sends the signature as `Authorization: Bearer`, and nowhere
//! else: a URL gets into histories and logs of proxies, and so does any header whose name shows no credential.

use axum::extract::State;
use axum::response::Response;
use dashi_domain::profile::{Person, distinct_id, version};
use dashi_domain::rows::DataValue;
use dashi_http::answer::empty;
use dashi_http::headers;
use dashi_store::Profile;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::answer::{Refusal, validated};
use crate::api::Api;
use crate::keys::bearer;
use crate::read::{hash, id};
use crate::stream::{self, Subject};
use crate::write::{Object, value};

/// The header with the distinct id that was signed, percent-encoded: headers hold ASCII only.
const PERSON: HeaderName = HeaderName::from_static("x-dashi-id");

const NO_WEBSITE: Refusal = Refusal::bad("website must be the id of the website that signed");
const NO_PERSON: Refusal =
    Refusal::bad("the header X-Dashi-Id must be the distinct id that was signed, percent-encoded UTF-8");

/// The headers by which pages of every origin may ask, and read the answers. `max_age_s` is how long a browser may keep
/// the answer to a preflight.
pub fn cross_origin(max_age_s: u64) -> HeaderMap {
    let mut shared = headers::cross_origin(max_age_s);
    for (name, value) in [
        // Where all names are allowed by a star, `Authorization` is not.
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, x-dashi-id, if-none-match, last-event-id"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD"),
        // One URL has as many answers as there are people.
        (header::VARY, "Authorization, X-Dashi-Id"),
    ] {
        shared.insert(name, HeaderValue::from_static(value));
    }
    shared
}

/// `OPTIONS /api/me[/stream]`
pub async fn preflight() -> Response {
    empty(StatusCode::NO_CONTENT)
}

/// `GET /api/me`
pub async fn traits(State(api): State<Api>, request: Parts) -> Response {
    let work = async {
        let person = signed(&api, &request)?;
        let profile = api.read(api.0.store.profile(person.website_id, &person.distinct_id)).await?;
        let Shown { version, json, .. } = Shown::of_person(&person, profile);
        // People without traits have one version.
        let tag = format!("{version}.{}", hash(&json));
        Ok(validated(&request.headers, &tag, json))
    };
    api.answer_signed(work).await
}

/// `GET /api/me/stream`
pub async fn follow(State(api): State<Api>, request: Parts) -> Response {
    let opened =
        signed(&api, &request).and_then(|person| stream::start(&api, Subject::Person(person), &request));
    api.finish(opened)
}

/// The person for whom the request has a signature.
fn signed(api: &Api, request: &Parts) -> Result<Person, Refusal> {
    // Without a key there are no routes.
    let key = api.0.settings.identity_key.as_ref().ok_or(Refusal::NotFound)?;
    let sent = request.headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    let signature = sent.ok_or(Refusal::NoKey)?;
    let query = request.uri.query().unwrap_or_default();
    let website = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "website");
    let website_id = website.map(|(_, website)| id(&website)).transpose()?.ok_or(NO_WEBSITE)?;
    let named = request.headers.get(PERSON).and_then(|value| percent_decoded(value.as_bytes()));
    let named = named.filter(|named| !named.is_empty()).ok_or(NO_PERSON)?;
    if !key.verifies(website_id, &named, signature) {
        return Err(Refusal::NoKey);
    }
    Ok(Person { website_id, distinct_id: distinct_id(&named) })
}

/// The text whose UTF-8 bytes these are; bytes stand as themselves or as `%` and two hexadecimal digits.
fn percent_decoded(encoded: &[u8]) -> Option<String> {
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut rest = encoded.iter();
    while let Some(&byte) = rest.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(*rest.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

/// Traits that were read, as an answer and an event show them.
#[derive(Debug)]
pub struct Shown {
    /// The person whose changes change them, by the name that the store has.
    pub person: Option<String>,
    /// A function of the traits.
    pub version: String,
    /// All of it.
    pub json: String,
}

impl Shown {
    /// The traits of a person, of whom the store may know nothing yet: then there are none.
    pub fn of_person(asked: &Person, profile: Option<Profile>) -> Self {
        let (person, version, rows) = match profile {
            Some(profile) => (profile.person.distinct_id, profile.version, profile.traits),
            None => (asked.distinct_id.clone(), version([]), Vec::new()),
        };
        let present = rows.iter().filter_map(|row| Some((&*row.key, row.settled.value.as_ref()?)));
        let traits = present
            .fold(Object::new(), |object, (key, now): (&str, &DataValue)| object.json(key, &value(now)));
        let json = Object::new()
            .text("websiteId", &asked.website_id.to_string())
            .text("distinctId", &person)
            .text("version", &version)
            .json("traits", &traits.end())
            .end();
        Self { person: Some(person), version, json }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_in_a_header_is_text_as_it_is_or_percent_encoded() {
        for (sent, read) in [
            ("ada", Some("ada")),
            ("ada%20l", Some("ada l")),
            ("a+b", Some("a+b")),
            ("Łukasz", Some("Łukasz")),
            ("%C5%81ukasz", Some("Łukasz")),
            ("%c5%81", Some("Ł")),
            ("%25", Some("%")),
            ("", Some("")),
            ("%", None),
            ("%2", None),
            ("%zz", None),
            ("%C5", None),
        ] {
            assert_eq!(percent_decoded(sent.as_bytes()).as_deref(), read, "{sent:?}");
        }
    }

    #[test]
    fn whoever_was_never_seen_has_no_traits() {
        let person = Person { website_id: uuid::Uuid::from_u128(1), distinct_id: "ada\"".to_owned() };
        let shown = Shown::of_person(&person, None);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown.json).unwrap(),
            serde_json::json!({
                "websiteId": "00000000-0000-0000-0000-000000000001", "distinctId": "ada\"", "version": "0", "traits": {}
            })
        );
    }
}
