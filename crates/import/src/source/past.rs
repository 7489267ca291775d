//! Lines that are requests: decided as the collector decides.

use std::collections::HashMap;
use std::path::PathBuf;

use dashi_domain::client_address::BlockedAddresses;
use dashi_domain::ids::{IdRules, Secret};
use dashi_domain::location::Location;
use dashi_domain::submission::{SourceKind, Submission};
use dashi_domain::umami::Release;
use dashi_ingest::{GeoDatabase, Past, PastDecision, PastRequest, PastRules};
use dashi_store::Store;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::ImportError;
use crate::batch::{Item, Wanted};
use crate::equal_lines::EqualLines;

/// The rules by which requests of the past are decided.
#[derive(Debug, Clone)]
pub struct PastSettings {
    /// How ids are computed: as the collectors compute them, so that history and live events share sessions.
    pub ids: IdRules,
    /// The ids' secret.
    pub secret: Secret,
    /// The version of Umami by whose rules bodies are checked.
    pub release: Release,
    /// Whether texts longer than their columns are accepted also where the rules of that version refuse them.
    pub cut_long_fields: bool,
    /// Addresses that are left out.
    pub blocked: BlockedAddresses,
    /// Whether bots are counted as well.
    pub bots_welcome: bool,
    /// The location database, if there is one.
    pub geo: Option<PathBuf>,
}

/// Decides about the lines of a file, in order.
pub(crate) struct Requests {
    past: Past,
    /// Lists of the websites that block addresses.
    blocked: HashMap<Uuid, BlockedAddresses>,
    equal: EqualLines,
    kind: &'static str,
}

/// A line that is a request.
pub(crate) struct LineRequest<'a> {
    pub submission: Submission<'a>,
    pub address: &'a str,
    pub user_agent: Option<&'a str>,
    pub location: Option<Location>,
    pub event_id: Option<Uuid>,
    /// A name for its website, if that is added.
    pub host: Option<&'a str>,
}

/// What becomes of a line.
pub(crate) enum Decided {
    Item(Box<Item>),
    Ignored(&'static str),
    Refused(String),
}

impl Requests {
    pub(crate) async fn new(
        kind: &'static str,
        settings: PastSettings,
        store: &Store,
    ) -> Result<Self, ImportError> {
        let lists = store.websites().await?.into_iter();
        let blocked = lists
            .map(|website| (website.id, BlockedAddresses::of_website(&website.blocked_addresses)))
            .filter(|(_, list)| !list.is_empty())
            .collect();
        let PastSettings { ids, secret, release, cut_long_fields, blocked: by_operator, bots_welcome, geo } =
            settings;
        let geo = geo.map(|path| GeoDatabase::open(path).0).unwrap_or_default();
        let past = Past::new(PastRules {
            ids,
            secret,
            release,
            cut_long_fields,
            blocked: by_operator,
            bots_welcome,
            geo,
        });
        Ok(Self { past, blocked, equal: EqualLines::default(), kind })
    }

    pub(crate) fn schema(&self) -> dashi_domain::submission::SchemaRules {
        self.past.schema()
    }

    /// Decides about the request of a line with these bytes and this number.
    pub(crate) fn decide(&mut self, line: u64, bytes: &[u8], request: LineRequest<'_>) -> Decided {
        let LineRequest { submission, address, user_agent, location, event_id, host } = request;
        let hash = Sha256::digest(bytes);
        let mut short = [0; 16];
        short.copy_from_slice(&hash[..16]);
        let hash = u128::from_be_bytes(short);
        let name = format!("import:{}:{hash:032x}:{}", self.kind, self.equal.number(hash));
        let source = submission.payload.source.id;
        // Without one it is refused.
        let at_ms = submission.payload.timestamp.unwrap_or_default() * 1_000;
        let website = (submission.payload.source.kind == SourceKind::Website).then(|| Wanted {
            id: source,
            name: None,
            domain: submission.payload.hostname.as_deref().or(host).map(str::to_owned),
        });
        let blocked = self.blocked.get(&source);
        let request = PastRequest { submission, address, user_agent, location, event_id, name: &name };
        match self.past.decide(blocked, request) {
            PastDecision::Append(id, record) => {
                Decided::Item(Box::new(Item { line, id, at_ms, website, record }))
            }
            PastDecision::Ignored(reason) => Decided::Ignored(reason),
            PastDecision::Refused(reason) => Decided::Refused(reason),
        }
    }
}
