//! `dashi doctor`: examines settings, log, store and machine, and names the remedy of what it finds.

mod machine;
mod servers;

use std::collections::HashSet;
use std::fmt;
use std::io::IsTerminal as _;

use dashi_config::{IDENTITY_KEY_CHARS_MIN, Loaded};
use dashi_domain::api_key::{self, KeyEntry};
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::exit::Exit;
use crate::output::print;
use crate::progress::within;
use crate::settings;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// It works, and something may go wrong later.
    Warn,
    /// It does not work, or loses events.
    Fail,
}

/// A line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    level: Level,
    /// Its subject: `settings`, `secret`, `keys`, `identity`, `log`, `topic`, `store`, `rights`, `clock`, `projection`, `disk`, `files`.
    subject: &'static str,
    found: String,
    /// The remedy; none if it is as it should be.
    remedy: Option<String>,
}

impl Finding {
    fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, subject, found: found.into(), remedy: None }
    }

    fn warn(subject: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warn, subject, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn fail(subject: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Fail, subject, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// Prints the findings. Exit code 3 if one of them is a failure.
pub async fn run(loaded: &Loaded, args: &DoctorArgs) -> anyhow::Result<Exit> {
    let mut findings = of_settings(loaded);
    findings.push(of_secret(loaded.settings.secret_text()));
    let settings = &loaded.settings;
    findings.push(of_keys(settings.api.keys.expose()));
    findings.extend(of_identity_key(settings.profiles.identity_key.expose(), settings.secret_text()));
    // Without valid addresses there is nothing to reach; the settings' own lines say so.
    let both = async { tokio::join!(servers::store(settings), servers::log(settings)) };
    let (store, log) = within(args.json, "asking log and store", servers::LONGEST, both).await;
    findings.extend(log.findings);
    findings.extend(store.findings);
    if let (Some(log), Some(store)) = (&log.opened, &store.opened) {
        findings.extend(servers::projection(log, store).await);
    }
    if let Some(store) = store.opened {
        store.close().await;
    }
    if let Some(log) = log.opened {
        log.close().await;
    }
    findings.extend(machine::disks(settings));
    findings.push(machine::files(settings));
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    print(&if args.json {
        format!("{}\n", serde_json::to_string(&findings)?)
    } else {
        let is_coloured = std::io::stdout().is_terminal();
        findings.iter().map(|finding| Shown { finding, is_coloured }.to_string()).collect()
    });
    Ok(if worst == Level::Fail { Exit::No } else { Exit::Done })
}

/// The settings that must not run, or warnings about those that may.
fn of_settings(loaded: &Loaded) -> Vec<Finding> {
    match settings::examine(loaded) {
        Ok(warnings) if warnings.is_empty() => vec![Finding::ok("settings", "valid")],
        Ok(warnings) => warnings.iter().map(|warning| split(Level::Warn, &warning.to_string())).collect(),
        Err(errors) => errors.iter().map(|error| split(Level::Fail, &error.to_string())).collect(),
    }
}

/// A message about a setting: its remedy stands behind the last semicolon.
fn split(level: Level, message: &str) -> Finding {
    let (found, remedy) = message.rsplit_once("; ").unwrap_or((message, "correct the setting"));
    Finding { level, subject: "settings", found: found.to_owned(), remedy: Some(remedy.to_owned()) }
}

/// Characters of a secret that nobody guesses.
const SECRET_CHARS: usize = 16;

/// Secrets of examples, which everybody knows.
const KNOWN_SECRETS: [&str; 6] =
    ["replace-me-with-a-random-string", "changeme", "change-me", "secret", "password", "umami"];

fn of_secret(secret: Option<&str>) -> Finding {
    let keep = "set one of `openssl rand -hex 32`, before the first event: session ids depend on it (where Umami has run, \
                it has to be Umami's)";
    match secret {
        None => Finding::ok("secret", "none is set: one is made beside the embedded log"),
        Some(secret) if KNOWN_SECRETS.contains(&secret.to_lowercase().as_str()) => {
            Finding::fail("secret", "it is that of an example: anybody can make tokens and session ids", keep)
        }
        Some(secret) if secret.chars().count() < SECRET_CHARS => Finding::warn(
            "secret",
            format!("it has fewer than {SECRET_CHARS} characters and can be guessed"),
            keep,
        ),
        Some(_) => Finding::ok("secret", "set"),
    }
}

/// Characters of a key in plain text below which it is likely to be somebody's invention: 128 bits as hexadecimal digits.
const PLAIN_KEY_CHARS: usize = 32;

/// The entries of `api.keys`. Those that must not run have their lines with the settings.
fn of_keys(list: &str) -> Finding {
    let entries: Vec<_> = api_key::entries(list).collect();
    let plain = |is_counted: fn(&str) -> bool| {
        entries.iter().filter(|entry| matches!(entry, Ok(KeyEntry::Plain(key)) if is_counted(key))).count()
    };
    let (all, in_plain, short) = (entries.len(), plain(|_| true), plain(|key| key.len() < PLAIN_KEY_CHARS));
    match (in_plain, short) {
        _ if all == 0 => Finding::ok("keys", "api.keys is empty: at most this machine can read"),
        (0, _) => Finding::ok("keys", format!("{all} in api.keys, as hashes")),
        (_, 0) => Finding::warn(
            "keys",
            format!(
                "{in_plain} of {all} in api.keys stand in plain text: whoever reads the settings has them"
            ),
            "put their hashes there (`printf %s \"$KEY\" | dashi keys hash`); their users go on as before",
        ),
        _ => Finding::warn(
            "keys",
            format!(
                "{short} of {all} in api.keys stand in plain text with fewer than {PLAIN_KEY_CHARS} characters"
            ),
            "make long ones with `dashi keys new`, and put their hashes there",
        ),
    }
}

/// Different characters of an identity key of which random ones have more: 32 hexadecimal digits have about 14.
const IDENTITY_CHARS: usize = 10;

/// The secret of `profiles.identity_key`. One that must not run has its line with the settings, and none here.
fn of_identity_key(key: &str, secret: Option<&str>) -> Option<Finding> {
    let random = "set the output of `openssl rand -hex 32`; every website then needs its new key (`dashi website identity-key \
                  ID`, docs/follow.md)";
    if key.is_empty() {
        let found = "profiles.identity_key is empty: no page reads the traits of its person";
        return Some(Finding::ok("identity", found));
    }
    let different = key.chars().collect::<HashSet<_>>().len();
    if secret == Some(key) {
        return Some(Finding::warn(
            "identity",
            "profiles.identity_key is the secret of tokens and session ids, too: whoever learns one has both",
            random,
        ));
    }
    if key.len() < IDENTITY_KEY_CHARS_MIN {
        return None;
    }
    Some(if different < IDENTITY_CHARS {
        Finding::warn(
            "identity",
            format!(
                "profiles.identity_key has {different} different characters only: who guesses it can sign for every person"
            ),
            random,
        )
    } else {
        Finding::ok("identity", "profiles.identity_key is set")
    })
}

/// A finding as people read it.
struct Shown<'f> {
    finding: &'f Finding,
    is_coloured: bool,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { level, subject, found, remedy } = self.finding;
        let (word, colour) = match level {
            Level::Ok => ("ok", "32"),
            Level::Warn => ("warn", "33"),
            Level::Fail => ("fail", "31"),
        };
        if self.is_coloured {
            write!(f, "\x1b[{colour}m{word:<5}\x1b[0m")?;
        } else {
            write!(f, "{word:<5}")?;
        }
        writeln!(f, " {subject:<11} {found}")?;
        match remedy {
            Some(remedy) => writeln!(f, "{:18}remedy: {remedy}", ""),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_examples_fail_and_short_ones_are_warned_of() {
        for (secret, level) in [
            (None, Level::Ok),
            (Some("replace-me-with-a-random-string"), Level::Fail),
            (Some("Changeme"), Level::Fail),
            (Some("fifteen letters"), Level::Warn),
            (Some("5f1c9a3e77e0c0ff"), Level::Ok),
        ] {
            let finding = of_secret(secret);
            assert_eq!(finding.level, level, "{secret:?}");
            assert_eq!(finding.remedy.is_none(), level == Level::Ok, "{secret:?}");
            assert!(secret.is_none_or(|secret| !finding.found.contains(secret)), "it shows {secret:?}");
        }
    }

    #[test]
    fn keys_in_plain_text_are_warned_of_and_not_shown() {
        let hash = api_key::hashed_entry("hunter2-hunter2-hunter2");
        let long = "5f1c9a3e77e0c0ff5f1c9a3e77e0c0ff";
        for (keys, level, part) in [
            ("", Level::Ok, "is empty"),
            (&hash, Level::Ok, "1 in api.keys, as hashes"),
            (&format!("{hash},{long}"), Level::Warn, "1 of 2 in api.keys stand in plain text: "),
            (
                &format!("{long},hunter2-hunter2,{hash}"),
                Level::Warn,
                "1 of 3 in api.keys stand in plain text with fewer",
            ),
        ] {
            let finding = of_keys(keys);
            assert_eq!(finding.level, level, "{keys:?}");
            assert!(finding.found.contains(part), "{}", finding.found);
            assert!(!finding.found.contains("hunter2") && !finding.found.contains(long), "{}", finding.found);
        }
    }

    #[test]
    fn identity_keys_that_can_be_guessed_are_warned_of_and_not_shown() {
        let random = "5f1c9a3e77e0c0ff5f1c9a3e77e0c0ff";
        for (key, secret, level, part) in [
            ("", None, Some(Level::Ok), "is empty"),
            (random, Some("another"), Some(Level::Ok), "is set"),
            (random, Some(random), Some(Level::Warn), "the secret of tokens"),
            ("abcabcabcabcabcabcabcabcabcabcabcabc", None, Some(Level::Warn), "has 3 different characters"),
            // Refused by the settings, whose line says so.
            ("hunter2", None, None, ""),
        ] {
            let finding = of_identity_key(key, secret);
            assert_eq!(finding.as_ref().map(|finding| finding.level), level, "{key:?}");
            let Some(finding) = finding else { continue };
            assert!(finding.found.contains(part), "{}", finding.found);
            assert_eq!(finding.remedy.is_none(), level == Some(Level::Ok), "{key:?}");
            assert!(key.is_empty() || !finding.found.contains(key), "{}", finding.found);
        }
    }

    #[test]
    fn a_remedy_stands_behind_its_finding() {
        let finding = Finding::warn("disk", "2 % are free", "make room");
        let text = Shown { finding: &finding, is_coloured: false }.to_string();
        assert_eq!(text, "warn  disk        2 % are free\n                  remedy: make room\n");
        assert_eq!(
            split(Level::Fail, "a = 0: too small; set 1 or more").remedy.as_deref(),
            Some("set 1 or more")
        );
    }
}
