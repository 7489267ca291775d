//! Names of browsers: an ordered list of rules, the first that matches names the browser.

use super::js_lines;
use crate::javascript::is_space;

/// The browser `ua` names, in Umami's stored words; `None` if no rule matches.
///
/// Tokens are case-sensitive. The order of the rules carries meaning, because almost every agent claims to be several
/// browsers: Edge names Chrome, Chrome names Safari. Source: docs/umami-contract.md §7.3, behaviour of detect-browser
/// 5.3.
pub fn browser(ua: &str) -> Option<&'static str> {
    RULES.iter().find(|(_, matches)| matches(ua)).map(|(name, _)| *name)
}

type Rule = (&'static str, fn(&str) -> bool);

const RULES: &[Rule] = &[
    ("aol", |ua| after(ua, "AOLShield/", loose_version).is_some()),
    ("edge", |ua| after(ua, "Edge/", loose_version).is_some()),
    ("edge-ios", |ua| after(ua, "EdgiOS/", loose_version).is_some()),
    ("yandexbrowser", |ua| after(ua, "YaBrowser/", loose_version).is_some()),
    ("kakaotalk", |ua| after(ua, "KAKAOTALK", spaced_version).is_some()),
    ("samsung", |ua| after(ua, "SamsungBrowser/", version).is_some()),
    ("silk", is_silk),
    ("miui", is_miui),
    ("beaker", |ua| after(ua, "BeakerBrowser/", version).is_some()),
    ("edge-chromium", |ua| after(ua, "Edg/", version).is_some() || after(ua, "EdgA/", version).is_some()),
    ("chromium-webview", |ua| js_lines(ua).filter_map(|line| rest_after(line, "wv)")).any(has_chromium)),
    ("chrome", |ua| js_lines(ua).any(is_chrome)),
    ("phantomjs", |ua| after(ua, "PhantomJS/", closed_version).is_some()),
    ("crios", |ua| after(ua, "CriOS/", closed_version).is_some()),
    ("firefox", |ua| after(ua, "Firefox/", strictly_closed_version).is_some()),
    ("fxios", |ua| after(ua, "FxiOS/", version).is_some()),
    ("opera-mini", |ua| {
        js_lines(ua)
            .filter_map(|line| rest_after(line, "Opera Mini"))
            .any(|rest| after(rest, "Version/", version).is_some())
    }),
    ("opera", |ua| {
        after(ua, "Opera/", strictly_closed_version).is_some() || after(ua, "OPR/", closed_version).is_some()
    }),
    ("pie", is_pocket_ie),
    ("netfront", is_netfront),
    ("ie", is_internet_explorer),
    ("bb10", |ua| {
        js_lines(ua)
            .filter_map(|line| {
                after(line, "BB10;", |rest| rest.strip_prefix(is_space)?.strip_prefix("Touch"))
            })
            .any(|rest| after(rest, "Version/", version).is_some())
    }),
    ("android", |ua| after(ua, "Android", spaced_version).is_some()),
    ("ios", |ua| {
        js_lines(ua)
            .filter_map(|line| rest_after(after(line, "Version/", loose_version)?, "Mobile"))
            .any(|rest| rest.contains("Safari"))
    }),
    ("safari", |ua| {
        js_lines(ua)
            .filter_map(|line| after(line, "Version/", loose_version))
            .any(|rest| rest.contains("Safari"))
    }),
    ("facebook", |ua| after(ua, "FBAV/", version).is_some() || after(ua, "FBSV/", version).is_some()),
    ("instagram", |ua| after(ua, "Instagram", spaced_version).is_some()),
    ("ios-webview", is_webkit_view),
    ("curl", |ua| ua.strip_prefix("curl/").and_then(version).is_some_and(str::is_empty)),
    ("searchbot", |ua| SEARCH_BOTS.iter().any(|token| ua.contains(token))),
];

const SEARCH_BOTS: &[&str] = &[
    "alexa",
    "bot",
    "crawler",
    "crawling",
    "facebookexternalhit",
    "feedburner",
    "google web preview",
    "nagios",
    "postrank",
    "pingdom",
    "slurp",
    "spider",
    "yahoo!",
    "yandex",
];

/// The rest behind the first `token` whose continuation satisfies `read`, as `read` leaves it.
///
/// The first one suffices wherever a rule goes on with "and later …", since it leaves the most text; trying
/// the others as well would make a long hostile agent cost the square of its length.
fn after<'a>(text: &'a str, token: &str, read: fn(&'a str) -> Option<&'a str>) -> Option<&'a str> {
    text.match_indices(token).find_map(|(at, _)| read(&text[at + token.len()..]))
}

fn rest_after<'a>(text: &'a str, token: &str) -> Option<&'a str> {
    text.split_once(token).map(|(_, rest)| rest)
}

/// Reads one or more characters of `set`.
fn run(text: &str, set: fn(char) -> bool) -> Option<&str> {
    let rest = text.trim_start_matches(set);
    (rest.len() < text.len()).then_some(rest)
}

fn digits(text: &str) -> Option<&str> {
    run(text, |c| c.is_ascii_digit())
}

fn version(text: &str) -> Option<&str> {
    run(text, |c| c.is_ascii_digit() || c == '.')
}

fn loose_version(text: &str) -> Option<&str> {
    run(text, |c| c.is_ascii_digit() || c == '.' || c == '_')
}

fn spaced_version(text: &str) -> Option<&str> {
    version(text.strip_prefix(is_space)?)
}

/// A version that is the last of its word.
fn strictly_closed_version(text: &str) -> Option<&str> {
    version(text).filter(|rest| rest.is_empty() || rest.starts_with(is_space))
}

/// The same, where a colon may stand before the white space.
fn closed_version(text: &str) -> Option<&str> {
    let rest = version(text)?;
    let spaced = rest.strip_prefix(':').unwrap_or(rest).starts_with(is_space);
    (rest.is_empty() || spaced).then_some(rest)
}

fn has_chromium(line: &str) -> bool {
    after(line, "Chrom", |rest| {
        closed_version(rest.strip_prefix("e/").or_else(|| rest.strip_prefix("ium/"))?)
    })
    .is_some()
}

/// Opera on Chromium names itself after Chrome, so only what follows the last `OPR` can be Chrome itself.
fn is_chrome(line: &str) -> bool {
    has_chromium(line.rfind("OPR").map_or(line, |at| &line[at..]))
}

fn is_silk(ua: &str) -> bool {
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    ua.match_indices("Silk/").any(|(at, token)| {
        let starts_word = !ua.as_bytes()[..at].last().is_some_and(word);
        let rest = &ua.as_bytes()[at + token.len()..];
        let length = rest.iter().take_while(|b| b.is_ascii_digit() || b"._-".contains(b)).count();
        // The version may end at any edge of a word inside it or at its end.
        starts_word && (1..=length).any(|end| word(&rest[end - 1]) != rest.get(end).is_some_and(word))
    })
}

fn is_miui(ua: &str) -> bool {
    let name = ua.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    name.len() < ua.len() && name.ends_with("MiuiBrowser/")
}

fn is_pocket_ie(ua: &str) -> bool {
    let decimal = |text| digits(digits(text)?.strip_prefix('.')?);
    let own_name = || {
        ua.strip_prefix("Microsoft Pocket Internet Explorer/").and_then(decimal).is_some_and(str::is_empty)
    };
    let as_mozilla = || {
        let rest =
            mozilla(ua)?.strip_prefix(is_space)?.strip_prefix("(compatible;")?.strip_prefix(is_space)?;
        let rest =
            ["MSIE ", "MSPIE ", "MSInternet Explorer "].iter().find_map(|name| rest.strip_prefix(name))?;
        let rest = decimal(rest)?.strip_prefix(';')?;
        Some(js_lines(rest).count() == 1 && rest.ends_with(')') && rest.contains("Windows CE"))
    };
    own_name() || as_mozilla().unwrap_or(false)
}

/// Reads `Mozilla/`, one digit, a dot and digits at the very start.
fn mozilla(ua: &str) -> Option<&str> {
    let rest = ua.strip_prefix("Mozilla/")?.strip_prefix(|c: char| c.is_ascii_digit())?;
    digits(rest.strip_prefix('.')?)
}

fn is_netfront(ua: &str) -> bool {
    let line = js_lines(ua).next().unwrap_or_default();
    let number = |rest| {
        let mut chars = str::chars(rest);
        let dotted = [chars.next(), chars.next(), chars.next()];
        matches!(dotted, [Some('0'..='9'), Some(_), Some('0'..='9')]).then_some(rest)
    };
    mozilla(line).is_some_and(|rest| after(rest, "NetFront/", number).is_some())
}

fn is_internet_explorer(ua: &str) -> bool {
    let eleven = |line| {
        let rest = after(rest_after(line, "Trident/7.0")?, "rv:", version)?;
        rest_after(rest, ")").filter(|rest| rest.ends_with("Gecko"))
    };
    let eight_to_ten = |line| {
        let rest = after(line, "MSIE", |rest| spaced_version(rest)?.strip_prefix(';'))?;
        after(rest, "Trident/", |rest| {
            let mut chars = rest.strip_prefix(['4', '5', '6', '7'])?.chars();
            chars.next()?;
            chars.as_str().strip_prefix('0')
        })
    };
    js_lines(ua).last().and_then(eleven).is_some()
        || js_lines(ua).any(|line| eight_to_ten(line).is_some())
        || after(ua, "MSIE", |rest| rest.strip_prefix(is_space)?.strip_prefix("7.0")).is_some()
}

/// A page inside another iPhone app, or WebKit that names no browser at all.
fn is_webkit_view(ua: &str) -> bool {
    let in_app =
        js_lines(ua).any(|line| after(line, "AppleWebKit/", version).is_some_and(|r| r.contains("Mobile")));
    let nameless = || js_lines(ua).last().and_then(|line| after(line, "AppleWebKit/", version));
    in_app || nameless().is_some_and(|rest| rest.ends_with("Gecko)"))
}

#[cfg(test)]
mod tests {
    use super::browser;

    #[test]
    fn opera_on_chromium_is_not_chrome() {
        assert_eq!(browser("Chrome/119.0 Safari/537.36 OPR/105.0.0.0"), Some("opera"));
        assert_eq!(browser("OPR/105.0x Chrome/119.0 Safari/537.36"), Some("chrome"));
    }

    #[test]
    fn a_version_is_needed_and_ends_with_its_word() {
        assert_eq!(browser("Chrome/ x"), None);
        assert_eq!(browser("Chrome/119.0b"), None);
        assert_eq!(browser("Chrome/119.0: x"), Some("chrome"));
        assert_eq!(browser("Chrome/119.0:"), None);
        assert_eq!(browser("Firefox/119.0: x"), None);
        assert_eq!(browser("curl/8.5.0"), Some("curl"));
        assert_eq!(browser("curl/8.5.0 x"), None);
    }

    #[test]
    fn miui_counts_only_as_the_last_word() {
        assert_eq!(browser("XiaoMi/MiuiBrowser/14.4.0"), Some("miui"));
        assert_eq!(browser("XiaoMi/MiuiBrowser/14.4.0-gn"), None);
        assert_eq!(browser("XiaoMi/MiuiBrowser/"), None);
    }

    #[test]
    fn silk_is_a_whole_word() {
        assert_eq!(browser("Silk/44.1"), Some("silk"));
        assert_eq!(browser("xSilk/44.1"), None);
        assert_eq!(browser("Silk/44.x"), Some("silk"));
        assert_eq!(browser("Silk/44x"), None);
        assert_eq!(browser("Silk/..."), None);
    }

    #[test]
    fn tokens_in_different_lines_do_not_make_one_browser() {
        assert_eq!(browser("Version/4.0 Safari"), Some("safari"));
        assert_eq!(browser("Version/4.0\nSafari"), None);
    }

    #[test]
    fn a_long_hostile_agent_takes_linear_time() {
        // The best of three, for a busy machine makes any one run slow. Ten times the text takes ten times as long;
        // rules that look at every pair of places would take a hundred times.
        let best_of_three = |piece: &str, count: usize| {
            let text = piece.repeat(count);
            let run = |_| {
                let started = std::time::Instant::now();
                browser(&text);
                started.elapsed()
            };
            (0..3).map(run).min().unwrap_or_default()
        };
        for piece in
            ["Version/1 ", "Chrome/1 ", "MSIE 7.1;", "Silk/", "Chrome/1 OPR", "AppleWebKit/1", "BB10; Touch"]
        {
            let (short, long) = (best_of_three(piece, 1_000), best_of_three(piece, 10_000));
            assert!(long < 40 * short, "{piece}: {short:?}, {long:?}");
        }
    }
}
