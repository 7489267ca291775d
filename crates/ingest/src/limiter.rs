//! The limits of what is taken in: the block list, rates and daily numbers by website and by address, and shedding while
//! the backlog is too old. Each of them is off unless it is set, and all of them fail open: whatever they do not know,
//! they take.
//!
//! The decisions are pure functions in `dashi_domain` (`rate`, `backlog`, `networks`); here they meet the memory that they
//! decide by. Nothing here waits.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use dashi_domain::client_address::parse_lenient;
use dashi_domain::networks::sender;
use dashi_domain::rate::{Exceeded, Moment, RateLimit};
use dashi_http::Repeated;
use uuid::Uuid;

use crate::answer::{Limit, Listed, Rejection};
use crate::backlog::BacklogGate;
use crate::frame::Decision;
use crate::limits_file::{LimitsFile, LimitsFileKeeper, WatchedFile};
use crate::now::Now;
use crate::usages::Usages;

/// Websites, links and pixels whose usage is kept.
const SOURCES_MAX: usize = 65_536;

/// Settings of a [`Limiter`]. The default limits nothing.
#[derive(Debug, Clone, Default)]
pub struct LimiterSettings {
    /// What each website, link and pixel may send, unless the file gives it another limit.
    pub website: RateLimit,
    /// What each address may send, unless the file gives it another limit.
    pub address: RateLimit,
    /// Addresses whose usage is kept; past that the ones that used least are forgotten.
    pub addresses_max: usize,
    /// The file with the block list, priorities and limits of single websites and addresses.
    pub file: Option<PathBuf>,
    /// Shedding by the age of the backlog.
    pub backlog: BacklogGate,
}

/// Decides whether an event may be taken. Cheap to clone; clones are one.
#[derive(Clone, Default)]
pub struct Limiter(Option<Arc<Shared>>);

struct Shared {
    website: RateLimit,
    address: RateLimit,
    file: Option<WatchedFile>,
    backlog: BacklogGate,
    sources: Usages<Uuid>,
    addresses: Usages<Sender>,
    began: Instant,
    of_sources: Repeated,
    of_addresses: Repeated,
}

/// Whoever sends: an address (of IPv6 64 bits), or the text that stands in its place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Sender {
    Address(IpAddr),
    Text(String),
}

impl Limiter {
    /// A limiter, and the keeper of its file if it has one. The file is read at once; one that is wrong or missing at the
    /// start blocks nothing until it is right.
    pub fn open(settings: LimiterSettings) -> (Self, Option<LimitsFileKeeper>) {
        let LimiterSettings { website, address, addresses_max, file, backlog } = settings;
        if website.is_none() && address.is_none() && file.is_none() && !backlog.sheds() {
            return (Self(None), None);
        }
        let (file, keeper) = file.map(WatchedFile::open).unzip();
        let shared = Shared {
            website,
            address,
            file,
            backlog,
            sources: Usages::new(SOURCES_MAX),
            addresses: Usages::new(addresses_max),
            began: Instant::now(),
            of_sources: Repeated::default(),
            of_addresses: Repeated::default(),
        };
        (Self(Some(Arc::new(shared))), keeper)
    }

    /// The limits of a request that was whole at `now`, from a client with this address. `None` if there are no limits.
    pub(crate) fn of_request<'r>(&'r self, address: &'r str, now: Now) -> Option<RequestLimits<'r>> {
        let shared = self.0.as_deref()?;
        let elapsed = now.instant.saturating_duration_since(shared.began);
        let elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        Some(RequestLimits {
            shared,
            file: shared.file.as_ref().map(WatchedFile::current),
            address,
            ip: parse_lenient(address).map(|address| address.ip),
            now: Moment { elapsed_ns, ms: now.ms },
            instant: now.instant,
        })
    }
}

/// The limits of one request.
pub(crate) struct RequestLimits<'r> {
    shared: &'r Shared,
    file: Option<Arc<LimitsFile>>,
    /// The client's address, which a trusted proxy may have named, and what it is if it is an address at all.
    address: &'r str,
    ip: Option<IpAddr>,
    now: Moment,
    instant: Instant,
}

impl RequestLimits<'_> {
    /// The entry of the block list that an event meets, if there is one. `own_address` is the address that its payload
    /// names. Changes nothing.
    pub(crate) fn blocked(
        &self,
        source: Uuid,
        own_address: Option<&str>,
        distinct_id: Option<&str>,
    ) -> Option<Rejection> {
        let file = self.file.as_deref()?;
        let is_blocked = |ip: IpAddr| file.is_address_blocked(ip);
        let own_ip = || parse_lenient(own_address?).map(|address| address.ip);
        let listed = if file.is_source_blocked(source) {
            Listed::Website
        } else if file.blocks_addresses()
            && (self.ip.is_some_and(is_blocked) || own_ip().is_some_and(is_blocked))
        {
            Listed::Address
        } else if distinct_id.is_some_and(|id| file.is_distinct_id_blocked(source, id)) {
            Listed::DistinctId
        } else {
            return None;
        };
        Some(Rejection::Listed(listed))
    }

    /// Refuses an event that was to be appended and exceeds a limit; else counts it as taken. To be called once per event,
    /// when nothing else refuses it.
    pub(crate) fn apply<S, A>(&self, source: Uuid, decision: &mut Decision<S, A>) {
        let taken = match decision {
            Decision::Append(record, _) => self.take(source, Some(record.session_id)),
            // It waits until the backlog is short.
            Decision::Lane(..) => self.take(source, None),
            Decision::Answer(_) | Decision::Refuse(_) => Ok(()),
        };
        if let Err(rejection) = taken {
            *decision = Decision::Refuse(rejection);
        }
    }

    /// Takes an event; `session_id` is that of one that may be shed.
    fn take(&self, source: Uuid, session_id: Option<Uuid>) -> Result<(), Rejection> {
        let shared = self.shared;
        let file = self.file.as_deref();
        let priority = file.map_or(0, |file| file.priority(source));
        let shed = session_id.and_then(|id| shared.backlog.sheds_now(id, priority, self.instant));
        if let Some(retry_after_s) = shed {
            return Err(Rejection::Shed { retry_after_s });
        }
        let of_address = file.and_then(|file| file.address_limit(self.ip?)).unwrap_or(shared.address);
        let of_source = file.and_then(|file| file.source_limit(source)).unwrap_or(shared.website);
        let sender = || {
            self.ip.map_or_else(|| Sender::Text(self.address.to_owned()), |ip| Sender::Address(sender(ip)))
        };
        let sender = (!of_address.is_none()).then(sender);
        if let Some(sender) = &sender {
            shared.addresses.take(sender, &of_address, self.now).map_err(|exceeded| {
                if let Some(times) = shared.of_addresses.due() {
                    tracing::warn!(
                        times,
                        "addresses send more than their limits; logged again with a count while it goes on"
                    );
                }
                limited(exceeded, Limit::AddressRate, Limit::AddressDay)
            })?;
        }
        if of_source.is_none() {
            return Ok(());
        }
        shared.sources.take(&source, &of_source, self.now).map_err(|exceeded| {
            if let Some(sender) = &sender {
                shared.addresses.give_back(sender, &of_address);
            }
            if let Some(times) = shared.of_sources.due() {
                tracing::warn!(
                    last = %source, times,
                    "websites get more events than their limits; logged again with a count while it goes on"
                );
            }
            limited(exceeded, Limit::WebsiteRate, Limit::WebsiteDay)
        })
    }
}

fn limited(exceeded: Exceeded, rate: Limit, day: Limit) -> Rejection {
    let limit = if matches!(exceeded, Exceeded::Rate { .. }) { rate } else { day };
    Rejection::Limited { limit, retry_after_s: exceeded.wait_s() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dashi_domain::backlog::BacklogPolicy;
    use dashi_domain::rate::Rate;
    use dashi_event_log::NewRecord;

    use super::*;
    use crate::backlog::{BacklogGateSettings, PartitionAge};

    const SITE: Uuid = Uuid::from_u128(1);

    fn limiter(settings: LimiterSettings) -> Limiter {
        Limiter::open(LimiterSettings { addresses_max: 1_000, ..settings }).0
    }

    fn rate(events_per_s: u64, burst: u64) -> RateLimit {
        RateLimit { rate: Some(Rate::new(events_per_s, burst)), day_max: None }
    }

    /// The label of an event's rejection; `None` if it is taken.
    fn taken(limiter: &Limiter, address: &str, source: Uuid, now: Now) -> Option<&'static str> {
        let record = NewRecord { session_id: Uuid::from_u128(7), value: Vec::new() };
        let mut decision: Decision<(), ()> = Decision::Append(record, ());
        limiter.of_request(address, now)?.apply(source, &mut decision);
        match decision {
            Decision::Refuse(rejection) => Some(rejection.label()),
            _ => None,
        }
    }

    #[test]
    fn without_settings_there_is_nothing_to_ask() {
        assert!(limiter(LimiterSettings::default()).of_request("192.0.2.1", Now::read()).is_none());
        let accepting = BacklogGate::new(BacklogGateSettings::default());
        let settings = LimiterSettings { backlog: accepting, ..LimiterSettings::default() };
        assert!(limiter(settings).of_request("192.0.2.1", Now::read()).is_none());
    }

    #[test]
    fn an_address_has_its_rate_and_64_bits_of_ipv6_are_one_address() {
        let limiter = limiter(LimiterSettings { address: rate(1, 2), ..LimiterSettings::default() });
        let now = Now::read();
        let of = |address| taken(&limiter, address, SITE, now);
        assert_eq!(
            [of("192.0.2.1"), of("::ffff:192.0.2.1"), of("192.0.2.1")],
            [None, None, Some("limited_address_rate")]
        );
        assert_eq!(of("192.0.2.2"), None);
        assert_eq!(
            [of("2001:db8::1"), of("2001:db8::2"), of("2001:db8::3")],
            [None, None, Some("limited_address_rate")]
        );
        assert_eq!(of("2001:db8:0:1::1"), None);
        assert_eq!([of("unknown"), of("unknown"), of("unknown")], [None, None, Some("limited_address_rate")]);
        let later = Now { instant: now.instant + Duration::from_secs(1), ..now };
        assert_eq!(taken(&limiter, "192.0.2.1", SITE, later), None);
    }

    #[test]
    fn an_event_that_its_website_may_not_send_does_not_count_for_its_address() {
        let website = RateLimit { rate: None, day_max: Some(1) };
        let address = RateLimit { rate: None, day_max: Some(2) };
        let limiter = limiter(LimiterSettings { website, address, ..LimiterSettings::default() });
        let now = Now::read();
        let of = |source| taken(&limiter, "192.0.2.1", Uuid::from_u128(source), now);
        assert_eq!([of(1), of(1), of(1)], [None, Some("limited_website_day"), Some("limited_website_day")]);
        assert_eq!([of(2), of(3)], [None, Some("limited_address_day")]);
    }

    #[test]
    fn a_backlog_sheds_while_it_is_known_to_be_too_old() {
        let gate = BacklogGate::new(BacklogGateSettings {
            policy: BacklogPolicy::Shed,
            age_max_ms: 10_000,
            retry_after_s_min: 5,
            retry_after_s_max: 60,
        });
        let limiter = limiter(LimiterSettings { backlog: gate.clone(), ..LimiterSettings::default() });
        let now = Now::read();
        let of = |after_s| {
            taken(
                &limiter,
                "192.0.2.1",
                SITE,
                Now { instant: now.instant + Duration::from_secs(after_s), ..now },
            )
        };
        assert_eq!(of(0), None, "nothing is known yet");
        let age = |age_ms| vec![Some(PartitionAge { age_ms, ..PartitionAge::default() })];
        gate.set(age(10_000), now.instant);
        assert_eq!(of(1), None);
        gate.set(age(10_001), now.instant);
        assert_eq!(of(1), Some("shed"));
        assert_eq!(of(60), None, "what was measured a minute ago is not known now");
        gate.set(vec![None], now.instant);
        assert_eq!(of(1), None, "this partition is not known");
    }
}
