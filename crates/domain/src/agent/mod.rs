//! The facts in a user-agent text: browser, operating system, kind of device, and whether a program sent it.
//!
//! The stored words are those of Umami, because dashboards map them to labels and icons.
//! Source: docs/umami-contract.md §7.3 (browser, os), §7.4 (device), §7.5 (bot).

mod bot;
mod browser;
mod cache;
mod device;
mod os;

use bot::is_bot;
use browser::browser;
pub use device::{Device, device};
use os::os;

/// All facts in one user-agent text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agent {
    /// Stored name of the browser, `None` if no rule knows it.
    pub browser: Option<&'static str>,
    /// Stored name of the operating system, `None` if no rule knows it.
    pub os: Option<&'static str>,
    /// Kind of device; the screen may still turn a desktop into a laptop.
    pub device: Device,
    /// True if a program rather than a person sent the request.
    pub bot: bool,
}

impl Agent {
    /// The facts in `ua`, as [`Agent::parse`] reads it, from memory if it was seen lately.
    pub fn of(ua: Option<&str>) -> Self {
        cache::agent(ua.unwrap_or_default())
    }

    /// Reads `ua`; an absent text reads like an empty one: a desktop of which nothing else is known.
    pub fn parse(ua: Option<&str>) -> Self {
        let ua = ua.unwrap_or_default();
        Self { browser: browser(ua), os: os(ua), device: Device::of(ua), bot: is_bot(ua) }
    }
}

/// The pieces over which a JavaScript `.` can reach; it stops at each of these four characters.
fn js_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split(['\n', '\r', '\u{2028}', '\u{2029}'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Agents in the form `bot⇥browser⇥os⇥device without screen⇥agent`; bot, browser and os were recorded
    /// from isbot 5.1.37 and detect-browser 5.3.0, the device was judged by hand.
    const AGENTS: &str = include_str!("agents.tsv");

    fn or_dash(word: Option<&'static str>) -> &'static str {
        word.unwrap_or("-")
    }

    #[test]
    fn the_recorded_answers_of_umami_are_given() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/umami-vectors.json")).unwrap();
        let agents = vectors["user_agents"].as_object().unwrap();
        assert!(agents.len() > 30);
        for (name, expected) in agents {
            let ua = expected["userAgent"].as_str().unwrap();
            let agent = Agent::parse(Some(ua));
            assert_eq!(agent.bot, expected["isBot"], "bot of {name}");
            assert_eq!(agent.browser, expected["browser"].as_str(), "browser of {name}");
            assert_eq!(agent.os, expected["os"].as_str(), "os of {name}");
            let screens = [
                (None, "device_no_screen"),
                (Some("1920x1080"), "device_1920x1080"),
                (Some("2560x1440"), "device_2560x1440"),
            ];
            for (screen, key) in screens {
                assert_eq!(device(Some(ua), screen), expected[key], "device of {name}, {key}");
            }
        }
    }

    #[test]
    fn agents_seen_in_the_wild_get_the_names_the_original_gives_them() {
        for (number, line) in AGENTS.lines().enumerate() {
            let [bot, browser_name, os_name, device_name, ua] = line.split('\t').collect::<Vec<_>>()[..]
            else {
                panic!("agents.tsv line {}: five columns expected", number + 1);
            };
            let found = Agent::parse(Some(ua));
            assert_eq!(found.bot, bot == "bot", "bot of {ua}");
            assert_eq!(or_dash(found.browser), browser_name, "browser of {ua}");
            assert_eq!(or_dash(found.os), os_name, "os of {ua}");
            assert_eq!(device(Some(ua), None), device_name, "device of {ua}");
        }
    }

    #[test]
    fn an_absent_agent_is_a_desktop_nobody_suspects() {
        let nothing = Agent { browser: None, os: None, device: Device::Desktop, bot: false };
        assert_eq!(Agent::parse(None), nothing);
        assert_eq!(Agent::parse(Some("")), nothing);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(ua in ".*", screen in ".*") {
            Agent::parse(Some(&ua));
            device(Some(&ua), Some(&screen));
        }

        #[test]
        fn pieces_of_agents_are_read_without_a_panic(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "Mozilla/5.0", " (", "compatible; ", "Chrome/", "Chrom", "OPR/1", "wv)", "1.0", "é", "\n", "\u{a0}", ":",
                "MSIE ", "Version/", "Silk/", "-", "_", "bot", "news", "google", "@a", ".ai", "%", ")", "rv:", "Gecko",
                "Windows NT ", "Trident/7.0", "Android ", " AFT", "SM-", "Quest", "NetFront/", "FBAV/", "FB",
            ]), 0..12)
        ) {
            Agent::parse(Some(&pieces.concat()));
        }
    }
}
