//! The house plan, checked from `cargo metadata`: who may depend on whom, and under which licences.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Our crates, and which of ours each may use.
const EDGES: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("proto", &["types"]),
    ("imap", &["types"]),
    ("pop3", &["types"]),
    ("smtp", &["types"]),
    ("message", &["types"]),
    ("directory", &["types"]),
    ("storage", &["types"]),
    ("node", &["types", "proto", "directory", "storage", "message"]),
    ("router", &["types", "proto", "imap", "pop3", "smtp"]),
    ("mailring", &["types", "proto", "node", "router"]),
    ("cluster-tests", &["types", "proto", "node", "router", "message"]),
];

/// Crates that must not know of the network between processes.
const NO_GRPC: &[&str] = &["types", "imap", "pop3", "smtp", "message", "directory", "storage"];
/// Pure crates: no runtime, no sockets.
const NO_RUNTIME: &[&str] = &["types", "imap", "pop3", "smtp", "message", "directory"];
const GRPC: &[&str] = &["tonic", "proto", "openraft"];

/// The licences that are allowed stand in one place, where cargo-deny reads them, too.
fn licences() -> Vec<&'static str> {
    let settings = include_str!("../../deny.toml");
    let list =
        settings.split("\nallow = [").nth(1).and_then(|rest| rest.split(']').next()).expect("a list of licences");
    list.split(',').map(|licence| licence.trim().trim_matches('"')).filter(|licence| !licence.is_empty()).collect()
}

fn metadata() -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path", manifest])
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

/// Each of our crates with the names of its direct dependencies, those for tests left out.
fn ours(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let members: BTreeSet<&str> = array(metadata, "workspace_members").iter().filter_map(Value::as_str).collect();
    array(metadata, "packages")
        .iter()
        .filter(|package| package["id"].as_str().is_some_and(|id| members.contains(id)))
        .map(|package| {
            let dependencies = array(package, "dependencies").iter().filter(|dependency| dependency["kind"].is_null());
            let names = dependencies.map(|dependency| text(dependency, "name")).collect();
            (text(package, "name"), names)
        })
        .collect()
}

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

#[test]
fn crates_depend_on_each_other_as_the_plan_says() {
    let ours = ours(&metadata());
    let planned: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let names: BTreeSet<&str> = ours.keys().map(String::as_str).collect();
    assert_eq!(names, planned.keys().copied().collect(), "crates of the workspace");
    for (name, dependencies) in &ours {
        let allowed = planned[name.as_str()];
        for dependency in dependencies.iter().filter(|dependency| names.contains(dependency.as_str())) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn pure_crates_know_neither_grpc_nor_a_runtime() {
    let ours = ours(&metadata());
    for (names, forbidden) in [(NO_GRPC, GRPC), (NO_RUNTIME, &["tokio", "rocksdb"][..])] {
        for name in names {
            for dependency in &ours[*name] {
                assert!(!forbidden.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
            }
        }
    }
}

#[test]
fn every_dependency_is_under_a_permissive_licence() {
    let (metadata, licences) = (metadata(), licences());
    for package in array(&metadata, "packages") {
        let expression = text(package, "license").replace('/', " OR ");
        // Each alternative is a conjunction; one alternative must be permissive as a whole.
        let permissive = expression
            .replace(['(', ')'], "")
            .split(" OR ")
            .any(|alternative| alternative.split(" AND ").all(|licence| licences.contains(&licence.trim())));
        assert!(permissive, "{} is under {expression:?}", text(package, "name"));
    }
}

#[test]
fn every_external_dependency_says_why_it_is_here() {
    let manifest = include_str!("../../Cargo.toml");
    let section = manifest.split("[workspace.dependencies]").nth(1).and_then(|rest| rest.split("\n[").next());
    for line in section.expect("workspace dependencies").lines() {
        let is_dependency = line.contains(" = ") && !line.starts_with('#') && !line.contains("path = ");
        assert!(!is_dependency || line.contains(" # "), "no reason given: {line}");
    }
}
