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
