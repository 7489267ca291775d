//! The bodies of requests, of the mix and the sizes of `dashi bench`: of 25 events 20 page views, 3 custom events with
//! data, an identify and a performance event. Body `n` is a function of `n`.

use crate::WEBSITE;

/// A visitor's device. No agent counts as a bot.
pub struct Device {
    pub user_agent: &'static str,
    screen: &'static str,
    language: &'static str,
}

#[rustfmt::skip]
const DEVICES: [Device; 5] = [
    Device { user_agent: "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36", screen: "1920x1080", language: "en-US" },
    Device { user_agent: "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4.1 Mobile/15E148 Safari/604.1", screen: "390x844", language: "en-GB" },
    Device { user_agent: "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Mobile Safari/537.36", screen: "412x915", language: "de-DE" },
    Device { user_agent: "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4.1 Safari/605.1.15", screen: "1440x900", language: "ja-JP" },
    Device { user_agent: "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:125.0) Gecko/20100101 Firefox/125.0", screen: "2560x1440", language: "pt-BR" },
];

const QUERIES: [&str; 4] =
    ["", "?utm_source=newsletter&utm_medium=email&utm_campaign=spring", "?gclid=Cj0KCQjw", "?page=2"];

const REFERRERS: [&str; 4] = [
    "",
    "https://www.google.com/",
    "https://news.ycombinator.com/item?id=40000000",
    "https://shop.example.com/",
];

const DATA: [&str; 3] = [
    r#""name":"signup","data":{"plan":"team","seats":12,"annual":true,"trial":{"days":14,"card":false}}"#,
    r#""name":"purchase","data":{"revenue":129.9,"currency":"EUR","order":"A-10442","coupon":true,"shipping":{"carrier":"post","cost":4.9}}"#,
    r#""name":"search","data":{"query":"waterproof shoes","results":37,"filtered":false,"filter":{"brand":"any","below":120}}"#,
];

const PROPERTIES: &str = r#""data":{"plan":"team","seats":12,"verified":true,"points":1840.5}"#;

const VITALS: &str = r#""lcp":1834.5,"inp":96,"cls":0.0213,"fcp":912.3,"ttfb":187.6"#;

/// An event by its number.
pub struct Event {
    pub address: String,
    pub device: &'static Device,
    pub body: String,
}

/// Event `n` of as many visitors; the same visitor has the same device and address.
pub fn event(n: usize, visitors: usize) -> Event {
    // Visits to pages, in an order that looks random and has each visitor about as often as any other.
    let visitor = n.wrapping_mul(7_919) % visitors;
    let device = &DEVICES[visitor % DEVICES.len()];
    let (kind, more) = match n % 25 {
        0 => ("identify", PROPERTIES),
        1 => ("performance", VITALS),
        2..5 => ("event", DATA[n % DATA.len()]),
        _ => ("event", r#""tag":"a""#),
    };
    let Device { screen, language, .. } = device;
    let (query, referrer) = (QUERIES[n / 25 % 4], REFERRERS[n / 100 % 4]);
    let body = format!(
        concat!(
            r#"{{"type":"{kind}","payload":{{"website":"{website}","screen":"{screen}","language":"{language}","#,
            r#""title":"Running shoes for rain and snow – Example Shop","hostname":"shop.example.com","#,
            r#""url":"https://shop.example.com/products/{page}{query}","referrer":"{referrer}",{more}}}}}"#,
        ),
        kind = kind,
        website = WEBSITE,
        screen = screen,
        language = language,
        page = 1_000 + n % 4_000,
        query = query,
        referrer = referrer,
        more = more,
    );
    Event { address: format!("203.0.{}.{}", 100 + visitor / 100, 100 + visitor % 100), device, body }
}
