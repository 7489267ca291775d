//! Every command teaches: it has an example that is a valid command line, and `--json`.

use clap::{Command, CommandFactory as _, Parser as _};

use super::Cli;

#[test]
fn the_definition_of_the_command_line_is_sound() {
    Cli::command().debug_assert();
}

/// All commands below this one, each with the words that lead to it.
fn commands(command: &Command, words: &str) -> Vec<(String, Command)> {
    let mut found = vec![(words.to_owned(), command.clone())];
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        found.extend(commands(sub, &format!("{words} {}", sub.get_name())));
    }
    found
}

fn all() -> Vec<(String, Command)> {
    let mut command = Cli::command();
    command.build();
    commands(&command, "dashi")
}

/// The examples of a command: lines that begin with `dashi`, or run it at the end of a pipe.
fn examples(command: &Command) -> Vec<String> {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let lines = help.lines().map(str::trim).filter_map(|line| line.find("dashi ").map(|at| (line, at)));
    // A sentence about it is no example.
    let runs = lines.filter(|(line, at)| *at == 0 || line[..*at].ends_with("| "));
    runs.map(|(line, at)| line[at..].to_owned()).collect()
}

/// The words of a line as a shell reads them: up to a comment, which stands behind two spaces, a pipe or another command.
fn words(line: &str) -> Vec<String> {
    let line = line.split("  ").next().unwrap_or_default();
    let (mut words, mut quote) = (Vec::new(), None);
    let mut word: Option<String> = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '|' | '>' | ';') => break,
            (None, ' ') => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn every_command_has_an_example_that_it_understands() {
    for (name, command) in all() {
        let examples = examples(&command);
        let is_own = |line: &String| *line == name || line.starts_with(&format!("{name} "));
        assert!(examples.iter().any(is_own), "{name} --help has no example of it: {examples:?}");
        for example in examples {
            if let Err(error) = Cli::try_parse_from(words(&example)) {
                panic!("{name} --help has the example {example:?}, which is refused: {error}");
            }
        }
    }
}

#[test]
fn every_command_prints_json() {
    for (name, command) in all() {
        // One that only has commands below it prints nothing itself.
        if command.is_subcommand_required_set() {
            continue;
        }
        let has_json = command.get_arguments().any(|argument| argument.get_long() == Some("json"));
        assert!(has_json, "{name} has no --json");
    }
}

#[test]
fn words_are_those_of_a_shell() {
    let line = "dashi link add --name 'Spring sale' --slug \"\" x | jq   a comment";
    assert_eq!(words(line), ["dashi", "link", "add", "--name", "Spring sale", "--slug", "", "x"]);
}
