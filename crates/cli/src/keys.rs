//! `dashi keys`: makes API keys, and the hashes by which the setting `api.keys` lists them. It reads no settings and keeps
//! nothing.

use std::fmt::Write as _;
use std::io::Read as _;

use anyhow::Context as _;
use dashi_config::API_KEY_CHARS_MIN;
use dashi_domain::api_key::{hashed_entry, key_of};
use serde_json::json;

use crate::args::KeysCommand;
use crate::exit::{Exit, Misuse};
use crate::output::print;
use crate::secret_file::random;

/// Longest key that is read, in bytes: a header of a request can hold it.
const KEY_BYTES_MAX: u64 = 1024;

/// Runs one of the commands.
pub fn run(command: &KeysCommand) -> anyhow::Result<Exit> {
    match command {
        KeysCommand::New { json } => {
            let key = key_of(&random().context("cannot make a key")?);
            let entry = hashed_entry(&key);
            print(&if *json {
                format!("{}\n", json!({"key": key, "hash": entry}))
            } else {
                let mut text = format!("key   {key}\nhash  {entry}\n\n");
                let _ = writeln!(
                    text,
                    "The hash goes into the setting api.keys (DASHI_API_KEYS), the key to its user, who sends"
                );
                let _ = writeln!(
                    text,
                    "`Authorization: Bearer KEY`. The key is kept nowhere and cannot be computed from the hash."
                );
                text
            });
        }
        KeysCommand::Hash { json } => {
            let entry = hashed_entry(&read_key(std::io::stdin().lock())?);
            print(&if *json { format!("{}\n", json!({"hash": entry})) } else { format!("{entry}\n") });
        }
    }
    Ok(Exit::Done)
}

/// One key, with a line's end or without.
fn read_key(from: impl std::io::Read) -> anyhow::Result<String> {
    let mut text = String::new();
    from.take(KEY_BYTES_MAX + 1).read_to_string(&mut text).context("cannot read a key on standard input")?;
    let key = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    let is_key = (API_KEY_CHARS_MIN..=KEY_BYTES_MAX as usize).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
    if !is_key {
        return Err(Misuse(format!(
            "standard input holds no key: give one of {API_KEY_CHARS_MIN} to {KEY_BYTES_MAX} letters, digits and signs without \
             spaces and commas, as in `printf %s \"$KEY\" | dashi keys hash`"
        ))
        .into());
    }
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_with_the_lines_end_or_without() {
        for text in ["a-key-of-16-chars", "a-key-of-16-chars\n", "a-key-of-16-chars\r\n"] {
            assert_eq!(read_key(text.as_bytes()).unwrap(), "a-key-of-16-chars");
        }
        let long = "x".repeat(1025);
        for text in
            ["", "\n", "hunter2", "a key of 16 chars", "a-key-of-16-chars,b", "a-key-of-16-chars\n\n", &long]
        {
            let error = read_key(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("dashi keys hash") && !error.contains("hunter2"), "{error}");
        }
    }
}
