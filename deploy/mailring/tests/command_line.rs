//! The binary as a script sees it: exit codes, messages, files; no cluster is running.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn mailring(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mailring"))
        .args(arguments)
        .env_remove("MAILRING_CONFIG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// An authority with an admin's certificate, and a settings file for a cluster at a port where nobody listens.
fn admin_file(dir: &Path) -> String {
    let ca = dir.join("ca");
    let ca = ca.to_str().unwrap();
    assert!(mailring(&["ca", "create", "--dir", ca]).status.success());
    assert!(mailring(&["ca", "issue", "--dir", ca, "--role", "admin", "--name", "admin"]).status.success());
    let file = dir.join("admin.toml");
    let text = format!(
        "nodes = [\"127.0.0.1:1\"]\n[tls]\nca = \"{ca}/ca.pem\"\ncertificate = \"{ca}/admin.pem\"\nkey = \"{ca}/admin.key\"\n"
    );
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn help_is_a_table_of_contents_of_one_page() {
    let output = mailring(&["--help"]);
    assert!(output.status.success());
    let text = said(&output);
    assert!(text.lines().count() < 45, "{text}");
    for word in ["node", "router", "single", "status", "domain", "account", "alias", "quota", "shard", "ca"] {
        assert!(text.contains(&format!("\n  {word}")), "{word}\n{text}");
    }
}

#[test]
fn wrong_usage_and_wrong_settings_exit_with_2_and_name_the_fault() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    fs::write(&file, "http = \"127.0.0.1:0\"\n[node]\nname = \"n\"\nlissten = \"127.0.0.1:0\"\n").unwrap();
    let file = file.to_str().unwrap();
    for (arguments, fault) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["domain"], "Usage"),
        (&["node"], "--config"),
        (&["status"], "MAILRING_CONFIG"),
        (&["node", "--config", file], "node.lissten: unknown field"),
        (&["router", "--config", "/nowhere/r.toml"], "/nowhere/r.toml"),
        (&["single", "--config", file], "single"),
        (&["account", "list", "--config", file], "http"),
    ] {
        let output = mailring(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        if arguments[0] != "single" {
            assert!(said(&output).contains(fault), "{arguments:?}: {}", said(&output));
        }
    }
}

#[test]
fn a_cluster_that_does_not_answer_is_exit_code_3() {
    let dir = tempfile::tempdir().unwrap();
    let file = admin_file(dir.path());
    for arguments in [&["status"][..], &["domain", "list", "--json"], &["domain", "add", "example.test"]] {
        let output = mailring(&[arguments, &["--config", &file]].concat());
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        assert!(said(&output).contains("127.0.0.1:1"), "{}", said(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn without_a_terminal_nothing_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let file = admin_file(dir.path());
    for (arguments, hint) in [
        (&["account", "add", "a@example.test"][..], "--password-stdin"),
        (&["account", "set", "a@example.test", "--password"], "--password-stdin"),
        (&["account", "remove", "a@example.test"], "--yes"),
    ] {
        let output = mailring(&[arguments, &["--config", &file]].concat());
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(hint), "{}", said(&output));
    }
}

#[test]
fn certificates_are_written_where_they_are_wanted_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, out) = (dir.path().join("ca"), dir.path().join("out"));
    let (ca, out) = (ca.to_str().unwrap(), out.to_str().unwrap());
    assert!(mailring(&["ca", "create", "--dir", ca]).status.success());
    assert_eq!(mailring(&["ca", "create", "--dir", ca]).status.code(), Some(1));
    let output = mailring(&["ca", "issue-server", "--dir", ca, "--hostname", "localhost,127.0.0.1", "--out", out]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{out}/server.pem\n{out}/server.key\n"));
    let output = mailring(&["ca", "issue", "--dir", ca, "--role", "node", "--name", "node1", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(listed, serde_json::json!({ "files": [format!("{ca}/node1.pem"), format!("{ca}/node1.key")] }));
    let refused = mailring(&["ca", "issue-server", "--dir", ca, "--hostname", "node.mailring.internal"]);
    assert_eq!(refused.status.code(), Some(1));
}
