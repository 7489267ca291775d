//! Whether a test that a table names is there and runs: of the sections of the contract (`contract`) and of the
//! invariants (`invariants`).
//!
//! A test is named by package, module and function: `it::answers::…` stands in `tests/it/answers.rs`,
//! `domain::agent::bot::…` in `crates/domain/src/agent/bot.rs`, `domain::fold::…` also in
//! `crates/domain/tests/fold.rs`, `domain::submission::…` also in `crates/domain/src/submission/tests.rs`. `tracker::test/token::…` is the title of a test in `tracker/test/token.test.mjs`.

use std::fs;
use std::path::{Path, PathBuf};

use integration_tests::repository;

/// Why this is no test that runs, if it is none.
pub fn missing(test: &str) -> Option<String> {
    if let Some((file, title)) = test.strip_prefix("tracker::").and_then(|test| test.split_once("::")) {
        let file = repository().join("tracker").join(format!("{file}.test.mjs"));
        let text = fs::read_to_string(&file).unwrap_or_default();
        let found = text.lines().any(|line| line.trim_start().starts_with(&format!("test({title:?}")));
        return (!found).then(|| format!("{test}: there is no such test in {}", file.display()));
    }
    let Some((module, function)) = test.rsplit_once("::") else {
        return Some(format!("{test}: no module::test"));
    };
    let Some(first) = source(module) else { return Some(format!("{test}: there is no such module")) };
    let beside = first.to_string_lossy().replace("/src/", "/tests/");
    let inside = first.with_extension("").join("tests.rs");
    let found = [first.clone(), PathBuf::from(beside), inside].iter().any(|file| is_test(file, function));
    (!found).then(|| format!("{test}: there is no such test in {}", first.display()))
}

/// Whether a file has a function of this name that is a test: by its attribute, as a property, or by a list of a macro
/// that makes tests, which may stand in the file of the module above.
fn is_test(file: &Path, function: &str) -> bool {
    let Ok(text) = fs::read_to_string(file) else { return false };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let head = format!("fn {function}(");
    let Some(place) = lines.iter().position(|line| line.contains(&head)) else { return false };
    let above =
        lines[..place].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let attributes: Vec<_> = above.filter(|line| line.starts_with("#[")).collect();
    let marked =
        attributes.iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"));
    let ignored = attributes.iter().any(|line| line.starts_with("#[ignore"));
    let parent = file.parent().map(|folder| folder.with_extension("rs"));
    let text_above = parent.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
    (marked || is_listed(&text, function) || is_listed(&text_above, function)) && !ignored
}

/// Whether a macro's list names this function: on a line of its own, or after `on_both_setups!(`.
fn is_listed(text: &str, function: &str) -> bool {
    text.lines().map(str::trim).any(|line| {
        let list = line.strip_prefix("on_both_setups!(").unwrap_or_default();
        line.strip_suffix(',') == Some(function)
            || list.split([',', ')', ' ']).any(|promise| promise == function)
    })
}

/// The source file of a test's module: the first of those in which it may be.
fn source(module: &str) -> Option<PathBuf> {
    let (package, path) = module.split_once("::")?;
    let path = path.replace("::", "/");
    let candidates = match package {
        "it" => vec![format!("tests/it/{path}.rs"), format!("tests/it/{path}/mod.rs")],
        package => {
            vec![format!("crates/{package}/src/{path}.rs"), format!("crates/{package}/tests/{path}.rs")]
        }
    };
    // Of two files with one name, the one that has the function is meant; the caller looks in both.
    candidates.iter().map(|file| repository().join(file)).find(|file| file.exists())
}

#[test]
fn what_is_no_test_does_not_prove_anything() {
    for name in [
        "it::proofs::missing",
        "it::proofs::no_such_function",
        "it::no_such_module::a_test",
        "domain::fold::unique",
        "nowhere::fold::a_test",
        "a_test",
        "",
        "tracker::test/token::no such title",
    ] {
        assert!(missing(name).is_some(), "{name}");
    }
    assert_eq!(missing("it::proofs::what_is_no_test_does_not_prove_anything"), None);
}
