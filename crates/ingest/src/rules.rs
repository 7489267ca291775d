//! The rules by which a collector decides: they are the same for every request.

use dashi_domain::client_address::BlockedAddresses;
use dashi_domain::submission::SchemaRules;
use dashi_domain::token::{TokenClaims, Tokens};

use crate::client::{Client, ClientRules};
use crate::collector::CollectorSettings;
use crate::geo::GeoDatabase;
use crate::session_ids::SessionIds;

/// The rules of a collector.
pub struct Rules {
    /// How ids are computed, and by which version's rules requests are checked.
    pub ids: SessionIds,
    /// Whether texts longer than their columns are accepted also where the rules of Umami's version refuse them.
    pub cut_long_fields: bool,
    /// Whether submissions of unknown types are kept in the log; else they are refused.
    pub keep_unknown_types: bool,
    /// Age, in milliseconds, from which on an event is historical; `None` if none is.
    pub history_age_ms: Option<i64>,
    /// How tokens are signed.
    pub tokens: Tokens,
    /// Addresses that are answered 403.
    pub blocked: BlockedAddresses,
    /// Whether bots are counted as well.
    pub bots_welcome: bool,
    /// The locations of addresses.
    pub geo: GeoDatabase,
    /// How a client is recognised.
    pub client: ClientRules,
}

impl Rules {
    /// The rules that the settings name.
    pub fn new(settings: CollectorSettings) -> Self {
        Self {
            tokens: Tokens::new(&settings.secret),
            ids: settings.ids,
            cut_long_fields: settings.cut_long_fields,
            keep_unknown_types: settings.keep_unknown_types,
            history_age_ms: settings
                .history_age
                .map(|age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX)),
            blocked: settings.blocked,
            bots_welcome: settings.bots_welcome,
            geo: settings.geo,
            client: ClientRules {
                address_header: settings.address_header,
                skip_location_headers: settings.skip_location_headers,
                trusted_proxies: settings.trusted_proxies,
            },
        }
    }

    /// How requests are checked. As long as Umami's version is not known, a request is refused only if every version
    /// refuses it.
    pub fn schema(&self) -> SchemaRules {
        let known = self.ids.release();
        let rules =
            known.map_or(SchemaRules::UNKNOWN, |release| SchemaRules::of(release, self.cut_long_fields));
        rules.keeping(self.keep_unknown_types)
    }

    /// The claims of a client's token; `None` without a token of ours.
    pub fn claims(&self, client: &Client, now_ms: i64) -> Option<TokenClaims> {
        self.tokens.verify(client.token.as_deref()?, now_ms.div_euclid(1_000))
    }
}
