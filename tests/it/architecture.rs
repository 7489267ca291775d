//! ARCHITECTURE.md draws every dependency between crates; nothing else may exist.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use integration_tests::repository;
use serde_json::Value;

type Edges = BTreeMap<String, BTreeSet<String>>;

/// The block of ARCHITECTURE.md that is marked `edges`.
fn drawn() -> Edges {
    let text = std::fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let block =
        text.split("```edges\n").nth(1).expect("a block of edges").split("```").next().expect("its end");
    block
        .lines()
        .map(|line| {
            let (from, to) = line.split_once(" -> ").expect("from -> to, to");
            (from.to_owned(), to.split(", ").map(str::to_owned).collect())
        })
        .collect()
}

/// The edges of `cargo metadata`, for all kinds of dependencies.
fn actual() -> Edges {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(repository())
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let short = |name: &str| match name {
        "dashi" => "cli".to_owned(),
        other => other.trim_start_matches("dashi-").to_owned(),
    };
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let names = dependencies.iter().filter_map(|dependency| dependency["name"].as_str());
            let ours = names.filter(|name| ours.contains(name)).map(short).collect::<BTreeSet<_>>();
            (short(package["name"].as_str().expect("a name")), ours)
        })
        .filter(|(_, to)| !to.is_empty())
        .collect()
}

#[test]
fn crates_depend_on_each_other_as_drawn_and_in_no_other_way() {
    assert_eq!(actual(), drawn(), "left: cargo metadata, right: ARCHITECTURE.md");
}

/// Files whose public futures are the way into what is done for each request, record or row.
const WAYS_IN: [&str; 15] = [
    "http/src/server.rs",
    "event-log/src/lib.rs",
    "event-log/src/lane.rs",
    "event-log/src/membership.rs",
    "event-log/src/embedded/mod.rs",
    "event-log/src/kafka/mod.rs",
    "store/src/snapshot.rs",
    "store/src/compare.rs",
    "projector/src/projector.rs",
    "archive/src/archiver.rs",
    "archive/src/export/mod.rs",
    "archive/src/read.rs",
    "archive/src/rewrite.rs",
    "archive/src/verify.rs",
    "import/src/importer.rs",
];

/// Functions of a file that are `pub async`, not generic, and have no `#[boxed]`.
fn unboxed(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_boxed = false;
    for (place, line) in source.lines().enumerate() {
        let line = line.trim();
        if let Some(function) = line.strip_prefix("pub async fn ") {
            let signature: String =
                source.lines().skip(place).take_while(|line| !line.trim_end().ends_with('{')).collect();
            let name = function.split(['(', '<']).next().unwrap_or_default();
            let is_generic = function[name.len()..].starts_with('<') || signature.contains("impl ");
            if !is_boxed && !is_generic {
                found.push(name.to_owned());
            }
        }
        is_boxed = line == "#[boxed]" || (is_boxed && (line.starts_with("#[") || line.starts_with("///")));
    }
    found
}

/// The release build of the binary's own crate is not optimised, and the compiler makes the code of a future where it is
/// polled, unless it is boxed before that (ARCHITECTURE.md, "Public futures").
#[test]
fn what_is_done_often_is_compiled_in_its_crate() {
    assert_eq!(unboxed("#[boxed]\npub async fn a() {\n}\npub async fn b() {\n}"), ["b"]);
    let crates = repository().join("crates");
    let of_store = std::fs::read_dir(crates.join("store/src/store")).expect("the store's methods");
    let of_store = of_store.map(|entry| entry.expect("an entry").path());
    for path in of_store.chain(WAYS_IN.map(|path| crates.join(path))) {
        let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        assert_eq!(unboxed(&source), Vec::<String>::new(), "{path:?} needs #[boxed] for these");
    }
    let partition = std::fs::read_to_string(crates.join("projector/src/partition.rs")).expect("a file");
    assert!(!unboxed(&partition).contains(&"run".to_owned()), "the way into a partition's projection");
}
