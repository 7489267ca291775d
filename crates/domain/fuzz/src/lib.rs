//! Properties that hold for any bytes that a client sends: shared by the fuzz target and the test that runs its corpus.

use dashi_domain::calendar::SaltRotation;
use dashi_domain::ids::{IdRules, IdentifiedSessions, Secret, Visitor};
use dashi_domain::location::Location;
use dashi_domain::record::{Event, created_at_ms};
use dashi_domain::submission::{BatchError, SchemaRules, Submission, parse_batch};
use dashi_domain::umami::Release;
use uuid::Uuid;

use whole::{MOMENTS_MS, RECEIVED_MS, assert_refusal, assert_whole, zones};

pub mod whole;

/// Takes the bytes for a body of `/api/send`, for one of `/api/batch` and for a record that another producer wrote.
///
/// # Panics
/// If an answer is none of the documented ones, or something that is taken makes no whole event.
pub fn check(bytes: &[u8]) {
    for release in Release::ALL {
        match Submission::parse(bytes, SchemaRules::of(release, false)) {
            Ok(submission) => check_taken(submission),
            Err(error) => assert_refusal(&error.to_json()),
        }
    }
    match parse_batch(bytes, 1_000) {
        Ok(elements) => {
            for element in elements {
                match Submission::from_value(element, SchemaRules::of(Release::V3_4, false)) {
                    Ok(submission) => check_taken(submission),
                    Err(error) => assert_refusal(&error.to_json()),
                }
            }
        }
        Err(BatchError::Schema(error)) => assert_refusal(&error.to_json()),
        Err(BatchError::TooMany { max }) => assert_eq!(max, 1_000),
    }
    match Event::decode(bytes) {
        Ok(event) => {
            // It need not be in the form that we write, but is from then on.
            let written = event.encode();
            assert_whole(&written);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The way of something taken: ids, record, rows.
fn check_taken(submission: Submission<'_>) {
    let payload = &submission.payload;
    for (rotation, zone) in ROTATIONS.iter().zip(zones()) {
        let ids = IdRules {
            secret: Secret::from_text("a secret of the tests"),
            rotation: *rotation,
            zone,
            identified: IdentifiedSessions::Shared,
        };
        let visitor = Visitor {
            source: &payload.source.text,
            address: payload.ip.as_deref().unwrap_or_default(),
            user_agent: payload.user_agent.as_deref().unwrap_or_default(),
            distinct_id: payload.id.as_deref(),
        };
        let created_at_ms = created_at_ms(payload.timestamp, RECEIVED_MS);
        let session_id = ids.session_id(&visitor, created_at_ms);
        let event = Event {
            event_id: Uuid::from_u128(1),
            received_at_ms: RECEIVED_MS,
            session_id,
            visit_id: ids.visit_id(session_id, created_at_ms),
            device: payload.id.as_ref().map(|_| Uuid::from_u128(2)),
            user_agent: payload.user_agent.clone(),
            // Texts of the payload stand in for what a proxy's headers may say.
            location: Location::from_parts(
                payload.language.as_deref(),
                payload.name.as_deref(),
                payload.title.as_deref(),
            ),
            submission: submission.clone(),
        };
        let changes = assert_whole(&event.encode());
        assert!(MOMENTS_MS.contains(&changes.sessions[0].created_at_ms), "{changes:?}");
        assert_eq!(changes.sessions[0].session_id, session_id);
        let mut kept = submission.clone();
        kept.payload.ip = None;
        (kept.payload.user_agent, kept.payload.message_id) = (None, None);
        assert_kept(&event.encode(), &kept);
    }
}

const ROTATIONS: [SaltRotation; 3] = [SaltRotation::Month, SaltRotation::Week, SaltRotation::Day];

/// Asserts that the record holds all that was sent, less what ingest drops.
fn assert_kept(record: &[u8], sent: &Submission<'_>) {
    let read = Event::decode(record).expect("what we write can be read");
    assert_eq!(&read.submission, sent);
}
