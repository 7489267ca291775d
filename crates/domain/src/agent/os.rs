//! Names of operating systems: an ordered list of rules, the first that matches names the system.

/// The operating system `ua` names, in Umami's stored words; `None` if no rule matches.
///
/// Tokens are case-sensitive; the order of the rules decides, not the order of the tokens in the text.
/// Source: docs/umami-contract.md §7.3, behaviour of detect-browser 5.3.
pub fn os(ua: &str) -> Option<&'static str> {
    RULES.iter().find(|(_, tokens)| tokens.iter().any(|token| token.is_in(ua))).map(|(name, _)| *name)
}

enum Token {
    Text(&'static str),
    /// `Windows NT`, a major version, any one character, and a minor version: the original's pattern leaves
    /// the dot unescaped, so `Windows NT 6_1` is Windows 7 as well.
    Nt(&'static str, char),
}
use Token::{Nt, Text};

impl Token {
    fn is_in(&self, ua: &str) -> bool {
        match self {
            Text(text) => ua.contains(text),
            Nt(major, minor) => ua.match_indices("Windows NT ").any(|(at, name)| {
                let mut rest = match ua[at + name.len()..].strip_prefix(major) {
                    Some(rest) => rest.chars(),
                    None => return false,
                };
                !matches!(rest.next(), None | Some('\n' | '\r' | '\u{2028}' | '\u{2029}'))
                    && rest.next() == Some(*minor)
            }),
        }
    }
}

const RULES: &[(&str, &[Token])] = &[
    ("iOS", &[Text("iPhone"), Text("iPod"), Text("iPad")]),
    ("Android OS", &[Text("Android")]),
    ("BlackBerry OS", &[Text("BlackBerry"), Text("BB10")]),
    ("Windows Mobile", &[Text("IEMobile")]),
    ("Amazon OS", &[Text("Kindle")]),
    ("Windows 3.11", &[Text("Win16")]),
    ("Windows 95", &[Text("Windows 95"), Text("Win95"), Text("Windows_95")]),
    ("Windows 98", &[Text("Windows 98"), Text("Win98")]),
    ("Windows 2000", &[Nt("5", '0'), Text("Windows 2000")]),
    ("Windows XP", &[Nt("5", '1'), Text("Windows XP")]),
    ("Windows Server 2003", &[Nt("5", '2')]),
    ("Windows Vista", &[Nt("6", '0')]),
    ("Windows 7", &[Nt("6", '1')]),
    ("Windows 8", &[Nt("6", '2')]),
    ("Windows 8.1", &[Nt("6", '3')]),
    ("Windows 10", &[Nt("10", '0')]),
    ("Windows ME", &[Text("Windows ME")]),
    ("Windows CE", &[Text("Windows CE"), Text("WinCE"), Text("Microsoft Pocket Internet Explorer")]),
    ("Open BSD", &[Text("OpenBSD")]),
    ("Sun OS", &[Text("SunOS")]),
    ("Chrome OS", &[Text("CrOS")]),
    ("Linux", &[Text("Linux"), Text("X11")]),
    ("Mac OS", &[Text("Mac_PowerPC"), Text("Macintosh")]),
    ("QNX", &[Text("QNX")]),
    ("BeOS", &[Text("BeOS")]),
    ("OS/2", &[Text("OS/2")]),
];

#[cfg(test)]
mod tests {
    use super::os;

    #[test]
    fn every_windows_nt_has_its_name() {
        let names = [
            ("5.0", "Windows 2000"),
            ("5.1", "Windows XP"),
            ("5.2", "Windows Server 2003"),
            ("6.0", "Windows Vista"),
            ("6.1", "Windows 7"),
            ("6.2", "Windows 8"),
            ("6.3", "Windows 8.1"),
            ("10.0", "Windows 10"),
        ];
        for (number, name) in names {
            assert_eq!(os(&format!("Mozilla/5.0 (Windows NT {number}; Win64)")), Some(name));
        }
        assert_eq!(os("Windows NT 4.0"), None);
        assert_eq!(os("Windows NT 6"), None);
    }

    #[test]
    fn an_earlier_rule_wins_over_an_earlier_token() {
        assert_eq!(os("Linux; U; Android 4.0; BlackBerry; iPad"), Some("iOS"));
        assert_eq!(os("X11; CrOS x86_64"), Some("Chrome OS"));
        assert_eq!(os("X11; SunOS i86pc"), Some("Sun OS"));
    }
}
