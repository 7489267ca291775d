//! Distinguishes programs from people by the user-agent text.

use crate::javascript::is_space;

/// True if `ua` looks like a program: crawler, HTTP library, monitor, previewer, headless browser.
///
/// An empty text is no bot. Letter case does not matter, and only ASCII letters fold, as in JavaScript.
/// Source: docs/umami-contract.md §7.5, behaviour of isbot 5.1.37.
pub fn is_bot(ua: &str) -> bool {
    if ua.is_empty() {
        return false;
    }
    let ua = ua.to_ascii_lowercase();
    has_the_shape_of_a_program(&ua)
        || OPENINGS.iter().any(|opening| ua.starts_with(opening))
        || (0..ua.len()).any(|at| has_token_at(ua.as_bytes(), at))
}

/// The beginnings of texts by which programs introduce themselves.
const OPENINGS: &[&str] = &[
    "active",
    "ad muncher",
    "amaya",
    "apache/",
    "avsdevicesdk/",
    "azure",
    "biglotron",
    "bot",
    "bw/",
    "clamav ",
    "clamav/",
    "client/",
    "cobweb/",
    "custom",
    "ddg-android",
    "ddg_android",
    "discourse",
    "downcast/",
    "duckduckgo",
    "email",
    "facebook",
    "getright/",
    "gozilla/",
    "hobbit",
    "hotzonu",
    "hwcdn/",
    "igetter/",
    "jeode/",
    "jetty/",
    "jigsaw",
    "microsoft bits",
    "movabletype",
    "navermailapp",
    "netsurf",
    "offline",
    "openai/",
    "owler",
    "php",
    "postman",
    "python",
    "rank",
    "read",
    "reed",
    "rest",
    "rss",
    "snapchat",
    "space bison",
    "svn",
    "swcd ",
    "taringa",
    "thumbor/",
    "track",
    "w3c",
    "webbandit/",
    "webcopier",
    "wget",
    "whatsapp",
    "wordpress",
    "xenu link sleuth",
    "yahoo",
    "yandex",
    "zoom marketplace/",
];

/// True if a token that gives a bot away starts at `at`. One pass with a look at the first letter is several times
/// cheaper than one search per token, and most agents are searched to their end in vain.
fn has_token_at(ua: &[u8], at: usize) -> bool {
    let (before, here) = ua.split_at(at);
    let starts_word = !before.last().is_some_and(is_word);
    // `token` with nothing attached to its end.
    let ends_word = |token: &str| {
        here.strip_prefix(token.as_bytes()).is_some_and(|rest| !rest.first().is_some_and(is_word))
    };
    let any = |tokens: &[&str]| tokens.iter().any(|token| here.starts_with(token.as_bytes()));
    let digit_after = |token: &str| {
        here.strip_prefix(token.as_bytes()).is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit))
    };

    match here.first() {
        Some(b' ') => any(&[" daum ", " daum/", " deusu/"]),
        Some(b'(') => any(&["()"]),
        Some(b'|') => true,
        Some(b'@') => is_mail_host(&here[1..]),
        // An address ending in .com, or a name ending in .ai.
        Some(b'.') => ends_word(".com") || (!starts_word && any(&[".ai"])),
        Some(b'2') => any(&["24x7"]),
        Some(b'a') => {
            any(&["advisor", "analyzer", "archive", "ask jeeves/teoma", "audit"]) || ends_word("agent")
        }
        Some(b'b') => {
            any(&["bit.ly/", "bluecoat drtr", "browsex", "burpcollaborator"])
                || (is_bot_word(here) && !before.ends_with(b" cu"))
        }
        Some(b'c') => {
            any(&[
                "capture",
                "catch",
                "checker",
                "chrome-lighthouse",
                "chromeframe",
                "classifier",
                "cloudflare",
                "convertify",
                "crawl",
                "cypress/",
            ]) || ends_word("check")
        }
        Some(b'd') => {
            any(&["dareboost", "datanyze", "dejaclick", "detect", "dmbrowser", "download"])
                || (at == 0 && digit_after("dispatch/"))
        }
        Some(b'e') => any(&["exaleadcloudview"]),
        Some(b'f') => any(&["feed", "fetcher", "firephp", "functionize"]),
        Some(b'g') => {
            any(&["grab"])
                // Phones made by Google and its apps carry the name without being bots.
                || (any(&["google"])
                    && !any(&["googleapp", "google/google", "google pixel"])
                    && !before.ends_with(b" channel/")
                    && !before.ends_with(b" google/"))
        }
        Some(b'h') => {
            any(&["headless", "httrack", "hubspot marketing grader"])
                || (any(&["http"]) && !before.ends_with(b"lib"))
        }
        Some(b'i') => any(&["ibisbrowser", "infrawatch", "insight", "inspect", "iplabel"]),
        // Old browsers list "Java;" among their features.
        Some(b'j') => any(&["java"]) && !any(&["java;"]),
        Some(b'l') => any(&["library", "linkcheck"]),
        Some(b'm') => {
            any(&["mail.ru/", "manager", "measure"])
                || ends_word("monitor")
                || (starts_word && any(&["manus-user/"]))
        }
        Some(b'n') => {
            any(&["neustar wpm", "nutch"])
                || ends_word("node")
                || (any(&["news"]) && !any(&["newssapphire"]) && !before.ends_with(b"g"))
        }
        Some(b'o') => any(&["offbyone", "onetrust", "optimize"]) || (starts_word && any(&["ort/"])),
        Some(b'p') => {
            any(&[
                "pageburst",
                "pagespeed",
                "parser",
                "phantomjs",
                "pingdom",
                "powermarks",
                "preview",
                "proxy",
            ]) || digit_after("ptst ")
                || digit_after("ptst/")
                || (starts_word && ends_word("perl"))
        }
        Some(b'r') => any(&["retriever", "rexx;", "rigor"]) || ends_word("rss"),
        Some(b's') => {
            any(&[
                "scrape",
                "server",
                "sogou",
                "sparkler/",
                "speedcurve",
                "spider",
                "splash",
                "statuscake",
                "supercleaner",
                "synapse",
                "synthetic",
            ]) || (any(&["scan"]) && !before.ends_with(b"cam"))
                || (starts_word && ends_word("securityheaders"))
        }
        Some(b't') => any(&["tools", "torrent", "transcoder"]) || (starts_word && any(&["time/"])),
        Some(b'u') => any(&["url"]),
        Some(b'v') => any(&["validator", "virtuoso"]),
        Some(b'w') => any(&["wappalyzer", "webglance", "webkit2png", "whatcms/"]),
        Some(b'x') => any(&["xtate/"]),
        Some(b'z') => at == 0 && digit_after("zdm/"),
        _ => false,
    }
}

/// `bot` or `bots` at the end of a word or before an underscore.
fn is_bot_word(here: &[u8]) -> bool {
    here.strip_prefix(b"bot").is_some_and(|rest| {
        let rest = rest.strip_prefix(b"s").unwrap_or(rest);
        rest.first().is_none_or(|next| *next == b'_' || !is_word(next))
    })
}

/// The part of a mail address after its `@`, as operators of crawlers leave it.
fn is_mail_host(rest: &[u8]) -> bool {
    let name = rest.iter().take_while(|b| is_word(b) || **b == b'-').count();
    name >= 2 && rest[0].is_ascii_alphabetic() && rest.get(name) == Some(&b'.')
}

/// Texts no browser would send, whatever their words are.
fn has_the_shape_of_a_program(ua: &str) -> bool {
    let bytes = ua.as_bytes();
    let word = bytes.iter().take_while(|b| is_word(b)).count();
    let number = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
    let starts_with_other_than_a_word = word == 0;
    let starts_with_a_whole_number = number > 0 && number == word;
    let starts_with_search = bytes[..word].ends_with(b"search");
    let one_long_word = || !ua.contains(' ') && ua.encode_utf16().count() >= 50;
    starts_with_other_than_a_word
        || starts_with_a_whole_number
        || starts_with_search
        || is_lone_name(bytes)
        || is_lone_word_pair(bytes, word)
        || is_name_with_short_comment(ua, word)
        || is_mozilla_with_little_else(ua)
        || one_long_word()
}

/// A name of words and a few signs, perhaps `/` and a version, and nothing more (or nothing more before a
/// comma): `Mozilla/5.0`, `okhttp/4.12.0`, `node`, `My App`.
fn is_lone_name(ua: &[u8]) -> bool {
    let name = ua.iter().take_while(|b| is_word(b) || b" .-(?:)%".contains(b)).count();
    let ends = |rest: &[u8]| rest.first().is_none_or(|b| *b == b',');
    if ends(&ua[name..]) {
        return name > 0;
    }
    let Some(version) = ua[name..].strip_prefix(b"/") else { return false };
    let version = version.strip_prefix(b"v").unwrap_or(version);
    let mut parts = 0;
    let mut rest = version;
    loop {
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        // From its third part on, a longer number is no version but an identifier.
        if digits == 0 || (parts >= 2 && digits > 10) {
            return false;
        }
        parts += 1;
        rest = &rest[digits..];
        match rest.strip_prefix(b".") {
            Some(next) => rest = next,
            None => return name > 0 && ends(rest),
        }
    }
}

/// `word/word` and nothing more.
fn is_lone_word_pair(ua: &[u8], word: usize) -> bool {
    word > 0
        && ua[word..]
            .strip_prefix(b"/")
            .is_some_and(|rest| rest.iter().all(|b| is_word(b) || *b == b'(' || *b == b')'))
}

/// `name/1.0 (word)` and nothing more.
fn is_name_with_short_comment(ua: &str, word: usize) -> bool {
    let comment = || {
        let rest = one_digit_version(ua[word..].strip_prefix('/')?)?;
        rest.strip_prefix(is_space)?.strip_prefix('(')?.strip_suffix(')')
    };
    word > 0
        && comment().is_some_and(|text| !text.is_empty() && text.bytes().all(|b| is_word(&b) || b == b'@'))
}

/// `Mozilla/5.0` and one name, or a comment with at most one product in it.
fn is_mozilla_with_little_else(ua: &str) -> bool {
    let name_byte = |b: u8| is_word(&b) || b == b'.' || b == b'-';
    let rest = || one_digit_version(ua.strip_prefix("mozilla/")?)?.strip_prefix(is_space);
    let Some(rest) = rest() else { return false };
    if !rest.is_empty() && rest.bytes().all(name_byte) {
        return true;
    }
    let Some(comment) = rest.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) else { return false };
    let comment = comment.strip_prefix("compatible;").unwrap_or(comment);
    if comment.is_empty() {
        return true;
    }
    let product = comment.strip_prefix(is_space).unwrap_or(comment);
    let Some((name, version)) = product.split_once('/') else { return false };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_decimal = version.split_once('.').is_some_and(|(whole, part)| is_number(whole) && is_number(part));
    !name.is_empty() && name.bytes().all(name_byte) && is_decimal
}

/// Reads a digit, a dot and a digit.
fn one_digit_version(text: &str) -> Option<&str> {
    let digit = |c: char| c.is_ascii_digit();
    text.strip_prefix(digit)?.strip_prefix('.')?.strip_prefix(digit)
}

fn is_word(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || *byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::is_bot;

    #[test]
    fn phones_and_apps_with_telling_letters_in_their_names_are_no_bots() {
        let people = [
            "Mozilla/5.0 (Linux; Android 9; CUBOT X19) AppleWebKit/537.36 Chrome/120.0.0.0 Mobile Safari/537.36",
            "Mozilla/5.0 (Linux; Android 9; Cubot) AppleWebKit/537.36 Chrome/120.0.0.0 Mobile Safari/537.36",
            "Mozilla/5.0 (Linux; Android 14; Google Pixel 8) Chrome/120.0.0.0 Mobile Safari/537.36",
            "Mozilla/5.0 Umami/v20.20.2",
            "Dart/3.3 (dart:io)",
            "",
        ];
        for ua in people {
            assert!(!is_bot(ua), "{ua}");
        }
    }

    #[test]
    fn letter_case_does_not_matter() {
        for ua in ["CURL/8.5.0", "Curl/8.5.0 x", "x y HEADLESSchrome/1 (x)", "PYTHON-requests/2 (x; y)"] {
            assert_eq!(is_bot(ua), is_bot(&ua.to_lowercase()), "{ua}");
        }
    }

    #[test]
    fn names_without_anything_else_are_programs() {
        for ua in
            ["node", "undici", "Mozilla/5.0", "My App/1.2.3", "okhttp/v4", "12 monkeys (x/y)", "(x; y/z)"]
        {
            assert!(is_bot(ua), "{ua}");
        }
        assert!(!is_bot("app/1.2.12345678901 (x/y)"));
    }
}
