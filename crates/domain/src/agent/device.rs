//! Kinds of devices, derived from the platform that an agent names and from the model in it.
//!
//! The rules are our own: they follow the answers recorded in docs/umami-contract.md §7.4 and §25 and what makers
//! publish about their agents.

use crate::javascript::is_space;

/// Kind of device an agent runs on, before its screen is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A computer, or any device that names no kind.
    Desktop,
    /// A phone.
    Mobile,
    /// A tablet or reader.
    Tablet,
    /// A television, or a box or stick at one.
    SmartTv,
    /// A game console.
    Console,
    /// A watch or glasses.
    Wearable,
    /// A device built into something else, such as a car.
    Embedded,
    /// A headset.
    Xr,
}

/// The stored kind of the device that sent `ua` from `screen` (`<width>x<height>`).
///
/// Source: docs/umami-contract.md §7.4.
pub fn device(ua: Option<&str>, screen: Option<&str>) -> &'static str {
    Device::of(ua.unwrap_or_default()).on_screen(screen)
}

impl Device {
    /// Reads the kind from the agent; letter case does not matter.
    pub fn of(ua: &str) -> Self {
        let agent = Lower(&ua.to_ascii_lowercase());
        // Platforms that are recognised at once go first: they are most of the traffic, and apps on them like to carry
        // words ("TV", "Watch", "Xbox") that would mislead the later rules.
        agent
            .apple()
            .or_else(|| agent.windows())
            .or_else(|| agent.special())
            .or_else(|| agent.android())
            .or_else(|| agent.portable())
            .unwrap_or(Self::Desktop)
    }

    /// The stored word; a desktop with a narrow screen is stored as `laptop`.
    pub fn on_screen(self, screen: Option<&str>) -> &'static str {
        match self {
            Self::Desktop if screen.is_some_and(is_narrow) => "laptop",
            Self::Desktop => "desktop",
            Self::Mobile => "mobile",
            Self::Tablet => "tablet",
            Self::SmartTv => "smarttv",
            Self::Console => "console",
            Self::Wearable => "wearable",
            Self::Embedded => "embedded",
            Self::Xr => "xr",
        }
    }
}

const LAPTOP_WIDTH_MAX: f64 = 1920.0;

/// True if the text before the first `x` is a number of at most 1920. An empty `screen` has no width, but
/// `x1080` has the width zero.
fn is_narrow(screen: &str) -> bool {
    let width = screen.split('x').next().unwrap_or_default();
    !screen.is_empty() && js_number(width).is_some_and(|width| width <= LAPTOP_WIDTH_MAX)
}

/// JavaScript's `Number(text)`, `None` for NaN.
fn js_number(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    if text.is_empty() {
        return Some(0.0);
    }
    let radix = match text.get(..2) {
        Some("0X" | "0x") => Some(16),
        Some("0O" | "0o") => Some(8),
        Some("0B" | "0b") => Some(2),
        _ => None,
    };
    if let Some(radix) = radix {
        let digits = &text[2..];
        let step = |value: f64, c: char| Some(value * f64::from(radix) + f64::from(c.to_digit(radix)?));
        return if digits.is_empty() { None } else { digits.chars().try_fold(0.0, step) };
    }
    match text {
        "Infinity" | "+Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        // Rust also reads "inf" and "nan" in any case, which JavaScript does not.
        _ if text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) => text.parse().ok(),
        _ => None,
    }
}

/// An agent in lower case.
struct Lower<'a>(&'a str);

impl Lower<'_> {
    fn has(&self, token: &str) -> bool {
        self.0.contains(token)
    }

    fn has_any(&self, tokens: &[&str]) -> bool {
        tokens.iter().any(|token| self.has(token))
    }

    /// True if `start` begins a word and `then` accepts what follows it.
    fn has_word_start(&self, start: &str, then: fn(&str) -> bool) -> bool {
        self.0.match_indices(start).any(|(at, _)| {
            !self.0[..at].ends_with(|c: char| c.is_ascii_alphanumeric()) && then(&self.0[at + start.len()..])
        })
    }

    fn has_word(&self, word: &str) -> bool {
        self.has_word_start(word, |rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    }

    fn has_any_word(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.has_word(word))
    }

    /// True if one of `starts` begins a word and a digit follows at once.
    fn has_any_numbered(&self, starts: &[&str]) -> bool {
        starts
            .iter()
            .any(|start| self.has_word_start(start, |rest| rest.starts_with(|c: char| c.is_ascii_digit())))
    }

    fn apple(&self) -> Option<Device> {
        if self.has("windows phone") {
            // These claim to be an iPhone too.
            return Some(Device::Mobile);
        }
        if self.has("ipad") {
            return Some(Device::Tablet);
        }
        // The watch counts as a phone, as in Umami.
        if self.has_any(&["iphone", "ipod", "apple watch", "watchos"]) {
            return Some(Device::Mobile);
        }
        // A page in an app on an iPad that asks for desktop pages calls itself a Mac, but keeps this word.
        self.has("macintosh").then(|| if self.has_word("mobile") { Device::Mobile } else { Device::Desktop })
    }

    fn windows(&self) -> Option<Device> {
        if self.has("cros ") {
            return Some(Device::Desktop);
        }
        self.has("windows nt").then(|| {
            if self.has("xbox") {
                Device::Console
            } else if self.has("hololens") {
                Device::Xr
            } else if self.has_any(&["wpdesktop", "iemobile"]) {
                Device::Mobile
            } else {
                Device::Desktop
            }
        })
    }

    /// Devices whose agents name the kind of device; most of them run Linux or Android and would pass for those.
    fn special(&self) -> Option<Device> {
        let headset =
            self.has_any(&["oculus", "picobrowser", "wolvic", "hololens", "magic leap", "visionos"])
                || self.has_any_word(&["quest", "vr"])
                || self.has_any(&["; pico ", "; vive ", "htc vive"]);
        if headset {
            return Some(Device::Xr);
        }
        if self.has_any(&["tesla/", "qtcarbrowser", "automotive", "polestar"]) {
            return Some(Device::Embedded);
        }
        if self.has_any(&["playstation", "nintendo", "xbox", "ouya", "dreamcast"]) {
            return Some(Device::Console);
        }
        let worn = self.has_any_numbered(&["sm-r"])
            || self.has_any_word(&["watch", "wearos", "fitbit"])
            || self.has_any(&["android wear", "wear os", "; glass "]);
        if worn {
            return Some(Device::Wearable);
        }
        self.is_television().then_some(Device::SmartTv)
    }

    fn is_television(&self) -> bool {
        let by_kind = [
            "smart-tv",
            "smarttv",
            "smart_tv",
            "hbbtv",
            "netcast",
            "appletv",
            "androidtv",
            "googletv",
            "firetv",
        ];
        let by_maker = [
            "web0s",
            "webostv",
            "webos.tv",
            "bravia",
            "roku",
            "crkey",
            "chromecast",
            "viera",
            "aquostv",
            "aquosbrowser",
            "philipstv",
            "vidaa",
            "vizio",
            "smartcast",
            "inettvbrowser",
            "sonycebrowser",
            "nettv",
            "dtvnetbrowser",
            "mitv",
            "mibox",
            "mi box",
            "nexus player",
            "large screen",
            "tvos",
        ];
        // Fire TV sticks and sets carry a model of AFT and some letters.
        let fire_tv = || {
            self.has_word_start("aft", |rest| {
                let model = rest.bytes().take_while(u8::is_ascii_alphanumeric).count();
                (1..=6).contains(&model) && !rest.starts_with("er")
            })
        };
        // Samsung's other Tizen devices are phones, which name themselves so, and watches, which went before.
        let tizen = || self.has("tizen") && !self.has("mobile");
        self.has_any(&by_kind)
            || self.has_any(&by_maker)
            || self.has_any_word(&["tv", "dtv", "stb"])
            || fire_tv()
            || tizen()
    }

    fn android(&self) -> Option<Device> {
        if !self.has("android") {
            return None;
        }
        if self.is_tablet_model() {
            return Some(Device::Tablet);
        }
        // Browsers write Mobile on phones and leave it out on tablets; apps write neither, so that only the model shows
        // a phone.
        let is_phone = self.has("mobi") || self.has("opera mini") || self.is_phone_model();
        Some(if is_phone { Device::Mobile } else { Device::Tablet })
    }

    fn is_tablet_model(&self) -> bool {
        let samsung = ["sm-t", "sm-x", "sm-p", "gt-p", "gt-n80", "gt-n51"];
        let named = [
            "nexus 7",
            "nexus 9",
            "nexus 10",
            "pixel tablet",
            "pixel c",
            "tablet",
            "tab",
            "pad",
            "mipad",
            "mediapad",
            "matepad",
            "xoom",
            "kindle",
            "nook",
            "kobo",
            "tolino",
        ];
        let fire_tablet =
            || self.has_word_start("kf", |rest| rest.bytes().take_while(u8::is_ascii_lowercase).count() >= 2);
        let lenovo = || self.has_word_start("tb-", |_| true) || self.has_word_start("lenovo tb", |_| true);
        self.has_any_word(&named)
            || self.has_any_numbered(&samsung)
            || self.has_any_numbered(&["tb"])
            || lenovo()
            || fire_tablet()
    }

    fn is_phone_model(&self) -> bool {
        let samsung = ["sm-a", "sm-c", "sm-e", "sm-f", "sm-g", "sm-j", "sm-m", "sm-n", "sm-s", "gt-i"];
        self.has_any_numbered(&samsung)
            || self.has_any_numbered(&["pixel ", "nexus "])
            || self.has_any_word(&["pixel", "redmi", "poco", "oneplus", "moto", "xperia", "iqoo"])
    }

    /// Everything else that is carried around.
    fn portable(&self) -> Option<Device> {
        let tablet = self.has_any(&["playbook", "touchpad", "hp-tablet", "kindle", "tolino", "kobo"])
            || (self.has("silk/") && !self.has("mobile"))
            // "Tablet PC" is a Windows that has a pen.
            || self.has_word_start("tablet", |rest| !rest.starts_with(" pc"));
        if tablet {
            return Some(Device::Tablet);
        }
        let phone = [
            "mobi",
            "iemobile",
            "opera mini",
            "blackberry",
            "bb10",
            "symbian",
            "symbos",
            "series60",
            "series 60",
            "nokia",
            "j2me",
            "midp",
            "up.browser",
            "up.link",
            "kaios",
            "meego",
            "maemo",
            "bada/",
            "palmos",
            "palmsource",
            "webos",
            "windows ce",
            "docomo",
            "kddi-",
            "sonyericsson",
            "netfront",
            "fennec",
        ];
        (self.has_any(&phone) || self.has_word("phone")).then_some(Device::Mobile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_desktop_with_a_narrow_screen_is_a_laptop() {
        let cases = [
            (None, "desktop"),
            (Some(""), "desktop"),
            (Some("1920x1080"), "laptop"),
            (Some("1921x1080"), "desktop"),
            (Some("1920.5x1"), "desktop"),
            (Some("1e3x5"), "laptop"),
            (Some(" 800 x600"), "laptop"),
            (Some("x"), "laptop"),
            (Some(" "), "laptop"),
            (Some("x1080"), "laptop"),
            (Some("wide"), "desktop"),
            (Some("nanx1"), "desktop"),
            (Some("-infx1"), "desktop"),
            (Some("-Infinityx1"), "laptop"),
            (Some("Infinityx1"), "desktop"),
            (Some("1366X768"), "desktop"),
            (Some("1366"), "laptop"),
            (Some("0X10"), "laptop"),
            (Some("0X1000"), "desktop"),
            (Some("0X"), "desktop"),
            (Some("0b11"), "laptop"),
            (Some(".5"), "laptop"),
            (Some("5."), "laptop"),
            (Some("-1x"), "laptop"),
            (Some("1_0"), "desktop"),
            (Some("1920,1080"), "desktop"),
        ];
        for (screen, stored) in cases {
            assert_eq!(device(None, screen), stored, "{screen:?}");
        }
    }

    #[test]
    fn the_screen_changes_nothing_but_desktops() {
        let phone = "Mozilla/5.0 (Linux; Android 14; SM-S918B) Chrome/124.0.0.0 Mobile Safari/537.36";
        assert_eq!(device(Some(phone), Some("390x844")), "mobile");
    }
}
