//! Every invariant of ARCHITECTURE.md has tests, and they exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::{fs, io};

use integration_tests::repository;

use crate::proofs::missing;

/// The block of ARCHITECTURE.md that is marked `invariants`: a line that begins with an invariant's name, and on it and
/// the indented lines after it one test each.
fn tests_by_invariant(text: &str) -> BTreeMap<String, Vec<String>> {
    let block = text.split("```invariants\n").nth(1).expect("a block of invariants");
    let block = block.split("```").next().expect("its end");
    let mut tests: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in block.lines() {
        let mut words = line.split_whitespace().peekable();
        if !line.starts_with(' ') {
            name = words.next().expect("no empty line").to_owned();
            assert!(tests.insert(name.clone(), Vec::new()).is_none(), "{name} is there twice");
        }
        let of = tests.get_mut(&name).expect("the first line names an invariant");
        of.push(words.next().unwrap_or_else(|| panic!("no test on the line {line:?}")).to_owned());
        assert_eq!(words.next(), None, "a line names one test: {line:?}");
    }
    tests
}

/// The names of the invariants as the text states them: `- **I1 Answered means durable.** …`.
fn stated(text: &str) -> BTreeSet<String> {
    let names = text.lines().filter_map(|line| line.strip_prefix("- **I")?.split(' ').next());
    names.filter(|number| number.parse::<u8>().is_ok()).map(|number| format!("I{number}")).collect()
}

#[test]
fn every_invariant_has_tests_and_they_exist() {
    let text = fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let tests = tests_by_invariant(&text);
    let mut out = String::from("\nThe invariants, and what proves them:\n");
    for (name, tests) in &tests {
        writeln!(out, "  {name}: {} tests", tests.len()).expect("a text can be written to");
        for test in tests {
            writeln!(out, "      {test}").expect("a text can be written to");
        }
    }
    // Past the capture of a passing test's output: this is meant to be read.
    io::stderr().write_all(out.as_bytes()).expect("standard error is open");

    let stated = stated(&text);
    assert!(stated.len() >= 9, "{stated:?}");
    assert_eq!(tests.keys().cloned().collect::<BTreeSet<_>>(), stated, "left: with tests, right: stated");
    let missing: Vec<_> = tests.values().flatten().filter_map(|test| missing(test)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn a_table_of_invariants_is_read_line_by_line() {
    let text =
        "- **I1 A.** Text.\n- **I2 B.** Text.\n```invariants\nI1 it::a::b\n   it::c::d\nI2 it::e::f\n```\n";
    let tests = tests_by_invariant(text);
    assert_eq!(tests["I1"], ["it::a::b", "it::c::d"]);
    assert_eq!(tests["I2"], ["it::e::f"]);
    assert_eq!(stated(text), tests.keys().cloned().collect());
}
