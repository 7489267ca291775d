//! `docker-compose.yml` and `Dockerfile`, as far as they can be checked without an engine.

use std::fs;

use integration_tests::{Dashi, repository};

/// A list of words that a YAML file holds in JSON's form: `command: ["collect", …]`, over any number of lines.
fn word_lists(text: &str, key: &str) -> Vec<Vec<String>> {
    let mut lists = Vec::new();
    for (at, _) in text.match_indices(&format!("{key} [")) {
        let list = &text[at + key.len()..];
        let mut values = serde_json::Deserializer::from_str(list).into_iter::<Vec<String>>();
        let words = values.next().expect("a list follows");
        lists.push(words.unwrap_or_else(|error| panic!("the list after {key} is not JSON: {error}")));
    }
    lists
}

/// Fails on a flag that `dashi <command> --help` does not show.
async fn assert_known(words: &[String]) {
    let (command, rest) = words.split_first().expect("a command has a name");
    let help = Dashi::run(&[command, "--help"], &[]).await;
    assert_eq!(help.code, Some(0), "dashi {command} --help: {}", help.stderr);
    for flag in rest.iter().filter(|word| word.starts_with("--")) {
        let flag = flag.split('=').next().unwrap_or(flag);
        let known = help.stdout.split(|c: char| c.is_whitespace() || c == ',' || c == '=' || c == '[');
        assert!(
            known.into_iter().any(|word| word == flag),
            "dashi {command} knows no {flag}:\n{}",
            help.stdout
        );
    }
}

#[tokio::test]
async fn compose_uses_commands_and_flags_that_dashi_knows() {
    let compose = fs::read_to_string(repository().join("docker-compose.yml")).unwrap();
    let commands = word_lists(&compose, "command:");
    let names: Vec<&str> = commands.iter().map(|words| words[0].as_str()).collect();
    assert_eq!(names, ["collect", "project", "project"]);
    for words in &commands {
        assert_known(words).await;
    }
    let checks = word_lists(&compose, "test:");
    let own: Vec<_> =
        checks.iter().filter(|words| words.get(1).is_some_and(|word| word == "dashi")).collect();
    assert!(!own.is_empty(), "no health check calls dashi");
    for words in own {
        assert_known(&words[2..]).await;
    }
}

#[tokio::test]
async fn the_image_uses_commands_and_flags_that_dashi_knows() {
    let dockerfile = fs::read_to_string(repository().join("Dockerfile")).unwrap();
    for words in word_lists(&dockerfile, "\nCMD") {
        assert_known(&words).await;
    }
    let checks = word_lists(&dockerfile, "    CMD");
    assert_eq!(checks.len(), 1, "one health check");
    for words in checks {
        assert_known(&words[1..]).await;
    }
}
