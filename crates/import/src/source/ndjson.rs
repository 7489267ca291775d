//! NDJSON: a body of `/api/send` on each line, with members beside it that a request has in its head.
//!
//! ```json
//! {"type":"event","payload":{"website":"…","url":"/a","timestamp":1777636800},
//!  "address":"203.0.113.9","agent":"Mozilla/5.0 …","country":"GB","region":"ENG","city":"London","id":"…"}
//! ```
//!
//! `address`, `agent`, `country`, `region`, `city` and `id` are optional; `ip` and `userAgent` of the payload win over
//! the first two, as they do in a request. `id` is the event's.

use std::borrow::Cow;

use dashi_domain::json::{self, Object, Value};
use dashi_domain::location::Location;
use dashi_domain::submission::Submission;
use uuid::Uuid;

use super::past::{Decided, LineRequest, Requests};
use super::timestamp;

pub(super) fn line(requests: &mut Requests, website: Option<Uuid>, at: u64, bytes: &[u8]) -> Decided {
    match request(requests, website, at, bytes) {
        Ok(decided) => decided,
        Err(reason) => Decided::Refused(reason),
    }
}

fn request(requests: &mut Requests, website: Option<Uuid>, at: u64, bytes: &[u8]) -> Result<Decided, String> {
    let mut object = match json::parse(bytes) {
        Ok(Value::Object(object)) => object,
        Ok(other) => return Err(format!("it is a JSON {}, not an object", other.type_name())),
        Err(error) => return Err(format!("it is no JSON: {error}")),
    };
    let address = text(&mut object, "address")?;
    let agent = text(&mut object, "agent")?;
    let [country, region, city] = ["country", "region", "city"].map(|name| text(&mut object, name));
    let (country, region, city) = (country?, region?, city?);
    let event_id = match text(&mut object, "id")? {
        None => None,
        Some(id) => Some(id.parse::<Uuid>().map_err(|_| format!("its `id` {id:?} is no UUID"))?),
    };
    let payload = match object.remove("payload") {
        Some(Value::Object(payload)) => payload,
        Some(other) => return Err(format!("its `payload` is a {}, not an object", other.type_name())),
        None => return Err("it has no `payload`: a line is a body of /api/send".to_owned()),
    };
    if let Some(reason) = wrong_time(payload.get("timestamp")) {
        return Err(reason);
    }
    let payload = with_website(payload, website);
    let body = Object::from_members(
        object
            .iter()
            .filter(|(key, _)| *key == "type")
            .map(|(key, value)| (Cow::Owned(key.to_owned()), value.clone()))
            .chain([(Cow::Borrowed("payload"), Value::Object(payload))]),
    );
    let submission = Submission::from_value(Value::Object(body), requests.schema())
        .map_err(|error| format!("a collector refuses it: {}", error.to_json()))?;
    let location = country
        .as_deref()
        .map(|country| Location::from_parts(Some(country), region.as_deref(), city.as_deref()));
    let request = LineRequest {
        submission,
        address: address.as_deref().unwrap_or_default(),
        user_agent: agent.as_deref(),
        location,
        event_id,
        host: None,
    };
    Ok(requests.decide(at, bytes, request))
}

/// The payload with the website that lines have which name no source.
fn with_website(payload: Object<'_>, website: Option<Uuid>) -> Object<'_> {
    let names_one = ["website", "link", "pixel"]
        .into_iter()
        .any(|name| payload.get(name).and_then(Value::as_str).is_some_and(|id| !id.is_empty()));
    let Some(website) = website.filter(|_| !names_one) else { return payload };
    let members: Vec<_> =
        payload.iter().map(|(key, value)| (Cow::Owned(key.to_owned()), value.clone())).collect();
    let named = (Cow::Borrowed("website"), Value::String(Cow::Owned(website.to_string())));
    Object::from_members(members.into_iter().chain([named]))
}

/// Why a timestamp is none, beyond what a collector refuses: history needs one.
fn wrong_time(timestamp: Option<&Value<'_>>) -> Option<String> {
    let number = match timestamp {
        None | Some(Value::Null) => {
            return Some(
                "its payload has no `timestamp`: history needs one, in seconds since 1970".to_owned(),
            );
        }
        Some(Value::Number(number)) => *number,
        Some(Value::String(text)) => text.trim().parse().unwrap_or(f64::NAN),
        Some(_) => return None,
    };
    timestamp::other_unit(number)
}

fn text<'a>(object: &mut Object<'a>, name: &str) -> Result<Option<Cow<'a, str>>, String> {
    match object.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
        Some(other) => Err(format!("its `{name}` is {}, not a text", other.to_json())),
    }
}
