//! The bodies of requests: templates prepared once, with holes for the mark and the address.

use std::io::Write as _;

use crate::plan::{EventKind, LoadPlan, SESSIONS_MAX};
use crate::random::Random;

/// Event `n` of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) n: u64,
    pub(crate) kind: EventKind,
    pub(crate) session: u64,
    variant: usize,
}

/// Chooses events and writes their bodies.
pub(crate) struct Payloads {
    plan: LoadPlan,
    mark_prefix: String,
    templates: Vec<Template>,
}

impl Payloads {
    pub(crate) fn new(plan: LoadPlan) -> Self {
        // `template` depends on this order of nesting.
        let mut templates = Vec::with_capacity(PROFILES.len() * EventKind::ALL.len() * VARIANTS);
        for profile in &PROFILES {
            for kind in EventKind::ALL {
                for variant in 0..VARIANTS {
                    templates.push(Template::new(&body(&plan, profile, kind, variant)));
                }
            }
        }
        Self { mark_prefix: mark_prefix(plan.seed), plan, templates }
    }

    /// The part of a mark before the number of the event.
    pub(crate) fn mark_prefix(&self) -> &str {
        &self.mark_prefix
    }

    /// Event `n`: a function of the seed, the plan and `n` only.
    pub(crate) fn event(&self, n: u64) -> Event {
        let mut random = Random::new(self.plan.seed, n);
        let kind = self.plan.mix.kind_at(random.below(self.plan.mix.total()));
        let session = match self.plan.new_every {
            None => random.below(self.plan.sessions),
            Some(every) => {
                let newest = n / every;
                let age = random.below(self.plan.sessions.min(newest + 1));
                // There are no more addresses than that.
                (if n.is_multiple_of(every) { newest } else { newest - age }) % SESSIONS_MAX
            }
        };
        Event { n, kind, session, variant: random.below(VARIANTS as u64) as usize }
    }

    /// Appends the JSON of `event` to `out`.
    pub(crate) fn write(&self, event: Event, out: &mut Vec<u8>) {
        let [_, a, b, c] = (event.session as u32).to_be_bytes();
        for piece in &self.template(event).0 {
            // Writing to a Vec does not fail.
            let _ = match piece {
                Piece::Text(text) => out.write_all(text.as_bytes()),
                Piece::Mark => write!(out, "{}{}", self.mark_prefix, event.n),
                Piece::Address => write!(out, "10.{a}.{b}.{c}"),
            };
        }
    }

    fn template(&self, event: Event) -> &Template {
        let profile = event.session as usize % PROFILES.len();
        &self.templates[(profile * EventKind::ALL.len() + event.kind as usize) * VARIANTS + event.variant]
    }
}

/// The part that all marks of the run of `seed` share: everything before the number of the event.
pub(crate) fn mark_prefix(seed: u64) -> String {
    format!("/load/{seed:x}/")
}

struct Template(Vec<Piece>);

enum Piece {
    Text(Box<str>),
    Mark,
    Address,
}

/// Placeholders for the holes while a template is composed; no JSON text holds control characters.
const MARK: &str = "\u{1}";
const ADDRESS: &str = "\u{2}";

impl Template {
    fn new(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find([MARK, ADDRESS].map(|hole| hole.as_bytes()[0] as char)) {
            pieces.push(Piece::Text(rest[..at].into()));
            pieces.push(if rest[at..].starts_with(MARK) { Piece::Mark } else { Piece::Address });
            rest = &rest[at + 1..];
        }
        pieces.push(Piece::Text(rest.into()));
        Self(pieces)
    }
}

/// A visitor's device. No agent counts as a bot.
struct Profile {
    user_agent: &'static str,
    screen: &'static str,
    language: &'static str,
}

#[rustfmt::skip]
const PROFILES: [Profile; 8] = [
    Profile { user_agent: "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36", screen: "1920x1080", language: "en-US" },
    Profile { user_agent: "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4.1 Mobile/15E148 Safari/604.1", screen: "390x844", language: "en-GB" },
    Profile { user_agent: "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Mobile Safari/537.36", screen: "412x915", language: "de-DE" },
    Profile { user_agent: "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36", screen: "1728x1117", language: "fr-FR" },
    Profile { user_agent: "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4.1 Safari/605.1.15", screen: "1440x900", language: "ja-JP" },
    Profile { user_agent: "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:125.0) Gecko/20100101 Firefox/125.0", screen: "2560x1440", language: "pt-BR" },
    Profile { user_agent: "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36 Edg/124.0.0.0", screen: "1366x768", language: "es-ES" },
    Profile { user_agent: "Mozilla/5.0 (X11; Linux x86_64; rv:125.0) Gecko/20100101 Firefox/125.0", screen: "3840x2160", language: "nl-NL" },
];

/// Texts of each list below; a variant takes one of each.
const VARIANTS: usize = 6;

const HOSTNAME: &str = "shop.example.com";

const TITLES: [&str; VARIANTS] = [
    "Overview – Example Shop",
    "Running shoes for rain and snow – Example Shop",
    "Pricing – Example Shop",
    "サイズ表 – Example Shop",
    "How we ship: parcels, pallets and patience – Example Shop",
    "Your basket – Example Shop",
];

const QUERIES: [&str; VARIANTS] = [
    "",
    "?utm_source=newsletter&utm_medium=email&utm_campaign=autumn",
    "?color=blue&size=42",
    "",
    "?utm_source=google&utm_medium=cpc&gclid=Cj0KCQjw8J6wBhDXARIsAPo7QA9",
    "?page=2",
];

const REFERRERS: [&str; VARIANTS] = [
    "https://www.google.com/",
    "",
    "https://shop.example.com/products/running-shoes?color=blue",
    "https://news.ycombinator.com/item?id=40000000",
    "https://www.google.com/",
    "https://shop.example.com/",
];

const NAMES: [&str; VARIANTS] = ["signup", "add-to-cart", "checkout", "purchase", "search", "video-play"];

const DATA: [&str; VARIANTS] = [
    r#"{"plan":"team","seats":12,"annual":true,"trial":{"days":14,"card":false}}"#,
    r#"{"sku":"RS-2042-BL","price":89.95,"quantity":1,"gift":false,"attributes":{"size":42,"color":"blue"}}"#,
    r#"{"step":2,"method":"invoice","returning":true,"basket":{"items":3,"weight_kg":2.75}}"#,
    r#"{"revenue":129.9,"currency":"EUR","order":"A-10442","coupon":true,"shipping":{"carrier":"post","cost":4.9}}"#,
    r#"{"query":"waterproof shoes","results":37,"filtered":false,"filter":{"brand":"any","below":120}}"#,
    r#"{"title":"Lacing in wet weather","position_s":31.5,"muted":true,"player":{"quality":"720p","rate":1.25}}"#,
];

const PROPERTIES: [&str; VARIANTS] = [
    r#""plan":"free","seats":1"#,
    r#""plan":"team","seats":12"#,
    r#""company":"Acme Ltd.","verified":true"#,
    r#""tier":"gold","points":1840.5"#,
    r#""plan":"trial","seats":3"#,
    r#""cohort":"2026-11","newsletter":false"#,
];

const VITALS: [&str; VARIANTS] = [
    r#""lcp":1834.5,"inp":96,"cls":0.0213,"fcp":912.3,"ttfb":187.6"#,
    r#""lcp":2710,"inp":184,"cls":0.1042,"fcp":1403.9,"ttfb":402.1"#,
    r#""lcp":988.1,"inp":40,"cls":0,"fcp":604.8,"ttfb":88.2"#,
    r#""lcp":5210.7,"inp":312,"cls":0.3127,"fcp":2904.4,"ttfb":1190.5"#,
    r#""lcp":1502.4,"cls":0.0008,"fcp":801.5,"ttfb":143.3"#,
    r#""lcp":2204.9,"inp":72,"cls":0.0574,"fcp":1188,"ttfb":260.7"#,
];

fn body(plan: &LoadPlan, profile: &Profile, kind: EventKind, variant: usize) -> String {
    let (kind_name, path, query) = match kind {
        EventKind::PageView | EventKind::CustomEvent => ("event", MARK, QUERIES[variant]),
        EventKind::Identify => ("identify", "/account", ""),
        EventKind::Performance => ("performance", MARK, ""),
    };
    let more = match kind {
        EventKind::PageView => String::new(),
        EventKind::CustomEvent => format!(r#","name":"{}","data":{}"#, NAMES[variant], DATA[variant]),
        EventKind::Identify if plan.record_acknowledged.is_some() => {
            format!(r#","data":{{{},"{MARK}":true}}"#, PROPERTIES[variant])
        }
        EventKind::Identify => format!(r#","data":{{{},"mark":"{MARK}"}}"#, PROPERTIES[variant]),
        EventKind::Performance => format!(",{}", VITALS[variant]),
    };
    format!(
        concat!(
            r#"{{"type":"{kind}","payload":{{"website":"{website}","screen":"{screen}","language":"{language}","#,
            r#""title":"{title}","hostname":"{host}","url":"https://{host}{path}{query}","referrer":"{referrer}","#,
            r#""ip":"{ip}","userAgent":"{agent}"{more}}}}}"#,
        ),
        kind = kind_name,
        website = plan.website,
        screen = profile.screen,
        language = profile.language,
        title = TITLES[variant],
        host = HOSTNAME,
        path = path,
        query = query,
        referrer = REFERRERS[variant],
        ip = ADDRESS,
        agent = profile.user_agent,
        more = more,
    )
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value;

    use super::*;

    fn plan() -> LoadPlan {
        LoadPlan { seed: 0xbeef, sessions: 300, ..LoadPlan::new("x", "11111111-1111-4111-8111-111111111111") }
    }

    fn bodies(plan: LoadPlan, count: u64) -> Vec<(Event, String)> {
        let payloads = Payloads::new(plan);
        (0..count)
            .map(|n| {
                let mut out = Vec::new();
                let event = payloads.event(n);
                payloads.write(event, &mut out);
                (event, String::from_utf8(out).unwrap())
            })
            .collect()
    }

    #[test]
    fn every_body_is_json_of_its_kind_with_its_mark_and_visitor() {
        let mut kinds = BTreeSet::new();
        let mut visitors = BTreeMap::new();
        for (event, text) in bodies(plan(), 5_000) {
            let json: Value = serde_json::from_str(&text).unwrap();
            let payload = &json["payload"];
            let mark = format!("/load/beef/{}", event.n);
            let url = payload["url"].as_str().unwrap();
            match event.kind {
                EventKind::Identify => {
                    assert_eq!(json["type"], "identify");
                    assert_eq!(payload["data"]["mark"], mark);
                    assert_eq!(payload["data"].as_object().unwrap().len(), 3);
                }
                EventKind::Performance => {
                    assert_eq!(json["type"], "performance");
                    assert!(payload["lcp"].is_number() && url.ends_with(&mark), "{text}");
                }
                kind => {
                    assert_eq!(json["type"], "event");
                    let path = url.strip_prefix("https://shop.example.com").unwrap();
                    assert_eq!(path.split('?').next(), Some(mark.as_str()));
                    assert_eq!(payload["data"].is_object(), kind == EventKind::CustomEvent);
                    assert_eq!(payload["name"].is_string(), kind == EventKind::CustomEvent);
                }
            }
            if event.kind == EventKind::PageView {
                assert!((350..=600).contains(&text.len()), "{} bytes: {text}", text.len());
            }
            let visitor = (payload["ip"].to_string(), payload["userAgent"].to_string());
            assert_eq!(visitors.entry(event.session).or_insert_with(|| visitor.clone()), &visitor);
            kinds.insert(event.kind);
        }
        assert_eq!(kinds.len(), 4);
        assert_eq!(visitors.len(), 300);
        assert_eq!(visitors.values().collect::<BTreeSet<_>>().len(), 300);
    }

    #[test]
    fn new_visitors_come_in_proportion_and_the_others_are_of_the_newest() {
        let plan = LoadPlan { new_every: Some(4), sessions: 10, ..plan() };
        let payloads = Payloads::new(plan.clone());
        let mut seen = BTreeSet::new();
        for n in 0..2_000 {
            let session = payloads.event(n).session;
            assert_eq!(seen.insert(session), n % 4 == 0, "{n}: {session}");
            assert!(session <= n / 4 && session + 10 > n / 4, "{n}: {session}");
        }
        assert_eq!(seen.len(), 500);
        let of_its_own = Payloads::new(LoadPlan { new_every: Some(1), ..plan });
        assert!((0..500).all(|n| of_its_own.event(n).session == n));
        assert_eq!(of_its_own.event(SESSIONS_MAX + 3).session, 3);
    }

    #[test]
    fn a_recorded_identify_has_a_key_of_its_own() {
        let plan = LoadPlan { record_acknowledged: Some("marks".into()), ..plan() };
        for (event, text) in bodies(plan, 2_000).iter().filter(|(event, _)| event.kind == EventKind::Identify)
        {
            let json: Value = serde_json::from_str(text).unwrap();
            assert_eq!(json["payload"]["data"][format!("/load/beef/{}", event.n)], true);
        }
    }

    #[test]
    fn properties_number_three_to_six_with_every_type() {
        for data in DATA {
            let data: Value = serde_json::from_str(data).unwrap();
            let data = data.as_object().unwrap();
            assert!((3..=6).contains(&data.len()));
            assert!(data.values().any(Value::is_number));
            assert!(data.values().any(Value::is_string));
            assert!(data.values().any(Value::is_boolean));
            assert!(data.values().any(Value::is_object));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bodies() {
        assert_eq!(bodies(plan(), 500), bodies(plan(), 500));
        assert_ne!(bodies(plan(), 500), bodies(LoadPlan { seed: 1, ..plan() }, 500));
    }
}
