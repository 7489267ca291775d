//! Bodies of requests as anybody may send them: near to what the schema wants, and far from it. As text, since a JSON
//! library would not write doubled keys, lone surrogates or numbers that no double holds.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// The website that most of them are about.
const WEBSITE: &str = "11111111-1111-4111-8111-111111111111";

/// The schema's fields of a payload, and what kind of value each takes.
const FIELDS: &[(&str, Takes)] = &[
    ("data", Takes::Data),
    ("hostname", Takes::Text),
    ("language", Takes::Text),
    ("referrer", Takes::Url),
    ("screen", Takes::Text),
    ("title", Takes::Text),
    ("url", Takes::Url),
    ("name", Takes::Text),
    ("tag", Takes::Text),
    ("ip", Takes::Text),
    ("userAgent", Takes::Text),
    ("timestamp", Takes::Moment),
    ("id", Takes::Text),
    ("browser", Takes::Text),
    ("os", Takes::Text),
    ("device", Takes::Text),
    ("lcp", Takes::Vital),
    ("inp", Takes::Vital),
    ("cls", Takes::Vital),
    ("fcp", Takes::Vital),
    ("ttfb", Takes::Vital),
    ("messageId", Takes::Name),
    ("session", Takes::Text),
    ("__proto__", Takes::Data),
];

#[derive(Debug, Clone, Copy)]
enum Takes {
    Text,
    Url,
    Moment,
    Vital,
    Data,
    /// A name that no other body has.
    Name,
}

/// A body of `/api/send`: mostly a submission with odd fields, now and then any document, or bytes that are none.
pub fn any_body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        16 => submission().prop_map(String::into_bytes),
        2 => document().prop_map(String::into_bytes),
        1 => (submission().prop_map(String::into_bytes), any::<prop::sample::Index>(), any::<u8>()).prop_map(
            |(mut body, place, byte)| {
                let place = place.index(body.len());
                body[place] = byte;
                body
            }
        ),
        1 => (submission(), any::<prop::sample::Index>()).prop_map(|(body, place)| {
            body.as_bytes()[..place.index(body.len())].to_vec()
        }),
    ]
}

fn submission() -> impl Strategy<Value = String> {
    let kind = prop_oneof![
        20 => select(vec!["event", "event", "identify", "performance"]).prop_map(quoted),
        1 => document(),
    ];
    (kind, payload(), select(vec!["", ",\"duration\":7", ",\"type\":\"event\"", ",\"__proto__\":{}"]))
        .prop_map(|(kind, payload, more)| format!(r#"{{"type":{kind},"payload":{payload}{more}}}"#))
}

fn payload() -> impl Strategy<Value = String> {
    let website = move || quoted(WEBSITE);
    let source = prop_oneof![
        20 => Just(format!(r#""website":{}"#, website())),
        1 => Just(r#""link":"33333333-3333-4333-8333-333333333333""#.to_owned()),
        1 => Just(r#""pixel":"44444444-4444-4444-9444-444444444444""#.to_owned()),
        1 => document().prop_map(|value| format!(r#""website":{value}"#)),
        1 => Just(format!(r#""website":{},"link":{}"#, website(), website())),
    ];
    let fields = vec(prop_oneof![12 => field(0), 1 => field(1)], 0..7);
    (source, fields).prop_map(|(source, fields)| {
        let members: Vec<_> = std::iter::once(source).chain(fields).collect();
        format!("{{{}}}", members.join(","))
    })
}

/// A field with a value of its kind, or with one of any kind.
fn field(wrong: usize) -> impl Strategy<Value = String> {
    select(FIELDS).prop_flat_map(move |(name, takes)| {
        let value = match (wrong, takes) {
            (1, _) => document().boxed(),
            (_, Takes::Text) => text().boxed(),
            (_, Takes::Url) => prop_oneof![url(), url(), text()].boxed(),
            (_, Takes::Moment) => moment().boxed(),
            (_, Takes::Vital) => {
                prop_oneof![4 => (0.0..100.0_f64).prop_map(|n| n.to_string()), 1 => number()].boxed()
            }
            (_, Takes::Data) => data().boxed(),
            (_, Takes::Name) => any::<u64>().prop_map(|n| quoted(format!("m-{n}"))).boxed(),
        };
        value.prop_map(move |value| format!("{}:{value}", quoted(name)))
    })
}

fn moment() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (1_500_000_000..1_900_000_000_i64).prop_map(|at| at.to_string()),
        1 => (1_500_000_000..1_900_000_000_i64).prop_map(|at| quoted(at.to_string())),
        1 => (-210_866_803_300..8_640_000_000_100_i64).prop_map(|at| at.to_string()),
        1 => select(vec![
            "-210866803200", "-210866803201", "8640000000000", "8640000000001", "0", "null", "true", "\"\"", "[1]",
            "253402300799", "253402300800", "-62167219201", "1.5", "\"0x10\"", "9007199254740992",
        ]).prop_map(str::to_owned),
    ]
}

/// Data with keys that the fold looks at, and values of every kind.
fn data() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        4 => select(vec!["revenue", "currency", "a", "a.b", "b", "", "2", "10", "__proto__"]).prop_map(quoted),
        2 => text(),
    ];
    let value = prop_oneof![
        3 => scalar(),
        1 => select(vec!["\"EUR\"", "\"12.5\"", "7", "\"0x10\"", "[7]", "\"currencyname\""]).prop_map(str::to_owned),
        2 => document(),
    ];
    vec((key, value), 0..6).prop_map(object)
}

/// Any document, some levels deep, now and then hundreds.
fn document() -> impl Strategy<Value = String> {
    let nested = scalar().prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            vec((text(), inner), 0..4).prop_map(object),
        ]
    });
    let deep = (1..600_usize, any::<bool>()).prop_map(|(levels, arrays)| {
        let (open, close) = if arrays { ("[", "]") } else { (r#"{"d":"#, "}") };
        format!("{}1{}", open.repeat(levels), close.repeat(levels))
    });
    prop_oneof![30 => nested, 1 => deep]
}

fn object(members: Vec<(String, String)>) -> String {
    let members: Vec<_> = members.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
    format!("{{{}}}", members.join(","))
}

fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![4 => text(), 3 => number(), 1 => select(vec!["null", "true", "false"]).prop_map(str::to_owned)]
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        (-100_000..100_000_i32).prop_map(|n| n.to_string()),
        any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| format!("{n:e}")),
        (any::<u32>(), -330..330_i32).prop_map(|(n, exponent)| format!("{n}e{exponent}")),
        select(vec![
            "0",
            "-0",
            "1e999",
            "-1e999",
            "1e-999",
            "999999999999999.99995",
            "1e15",
            "1e21",
            "0.00005",
            "-0.00001",
            "123456789012345678901234567890",
            "9007199254740993",
            "5e-324",
            "1.7976931348623157e308",
        ])
        .prop_map(str::to_owned),
    ]
}

fn url() -> impl Strategy<Value = String> {
    let host = select(vec![
        "",
        "https://a.example",
        "https://www.b.example:8443",
        "//cdn.example",
        "http://[::1]",
        "about:",
        "data:,",
        "https://",
        "https://bücher.example",
        "https://wwwx.example",
        "javascript:",
    ]);
    let query = select(vec![
        "",
        "?utm_source=x&gclid=%00",
        "?utm_term=%ff+%C3%BC",
        "?q=ü 1",
        "#/h/",
        "?a#b?c",
        "?utm_source=&fbclid",
    ]);
    (host, "[a-z0-9/%.\\\\ ]{0,12}", query, prop_oneof![8 => Just(0), 1 => 1..700_usize])
        .prop_map(|(host, path, query, more)| quoted(format!("{host}/{path}{query}{}", "x".repeat(more))))
}

/// A text in quotes, with escapes.
fn text() -> impl Strategy<Value = String> {
    let agents = select(vec![
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Mobile/15E148 Safari/604.1",
        "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "Googlebot/2.1",
    ]);
    let dates = (
        0..10_000_u16,
        0..15_u8,
        0..34_u8,
        0..26_u8,
        select(vec!["", ".123", ".123Z", ".999+23:59", "Z", ".5"]),
    )
        .prop_map(|(year, month, day, hour, rest)| {
            format!("{year:04}-{month:02}-{day:02}T{hour:02}:20:30{rest}")
        });
    let lengths = select(vec![10_usize, 11, 12, 20, 35, 36, 50, 51, 100, 101, 255, 256, 499, 500, 501, 600]);
    let long =
        (select(vec!["x", "é", "😀", "%41", "\u{0}"]), lengths).prop_map(|(part, times)| part.repeat(times));
    let odd = select(vec![
        "",
        " ",
        "\u{0}",
        "a\u{0}b",
        "%00",
        "%",
        "%ff",
        "%E4%BD%A0",
        "😀",
        "\u{feff}",
        "\u{202e}x",
        "e\u{301}",
        "\u{ffff}",
        "\u{10ffff}",
        "1920x1080",
        "x",
        "1e3x5",
        "en-GB",
        "foo bar",
        "a.example",
        "www.a.example:80",
        "2026-05-01T08:20:30.123Z",
        "127.0.0.1",
        "203.0.113.7:80",
        "::ffff:192.0.2.1",
        "fe80::1%eth0",
        "=1+1",
        "null",
    ]);
    let raw = select(vec![
        r#""\ud800""#,
        r#""\udc00x""#,
        r#""\ud83d\ude00""#,
        r#""\u0000\/\b\f""#,
        r#""t\udfff\ud800""#,
    ]);
    prop_oneof![
        6 => odd.prop_map(quoted),
        3 => any::<String>().prop_map(|text| quoted(&text)),
        2 => long.prop_map(|text| quoted(&text)),
        2 => dates.prop_map(|text| quoted(&text)),
        1 => agents.prop_map(quoted),
        1 => raw.prop_map(str::to_owned),
    ]
}

fn quoted(text: impl AsRef<str>) -> String {
    serde_json::Value::from(text.as_ref()).to_string()
}
