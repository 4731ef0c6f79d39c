//! `deploy/local-cluster`, as far as it can be asked without starting anything: wrong arguments are refused before a
//! build, a process or a directory is begun.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn local_cluster(arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../local-cluster");
    Command::new(script).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn inside(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("cluster")
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_begun() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = inside(&dir);
    let path = cluster.to_str().unwrap();
    for (arguments, fault) in [
        (&["up", "--nodes", "2", "--replicas", "3"][..], "--replicas 3"),
        (&["up", "--nodes", "0"], "--nodes 0"),
        (&["up", "--nodes=many"], "--nodes many"),
        (&["up", "--replicas", "6", "--nodes", "9"], "--replicas 6"),
        (&["up", "--shards", "5000"], "--shards 5000"),
        (&["up", "--port-base", "64000", "--routers", "3"], "--port-base 64000"),
        (&["up", "--frobnicate"], "--frobnicate"),
        (&["up", "--nodes"], "--nodes"),
        (&["down", "--nodes", "3"], "--nodes"),
        (&["kill"], "which process"),
        (&["kill", "node1", "node2"], "one process"),
        (&["status", "node1"], "node1"),
        (&["frobnicate"], "frobnicate"),
    ] {
        // Before the others, since an option may lack its value.
        let output = local_cluster(&[&arguments[..1], &["--dir", path], &arguments[1..]].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", error(&output));
        assert!(error(&output).contains(fault), "{arguments:?}: {}", error(&output));
    }
    assert!(!cluster.exists());
}

#[test]
fn only_a_directory_of_its_own_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = inside(&dir);
    std::fs::create_dir(&cluster).unwrap();
    std::fs::write(cluster.join("diary.txt"), "dear diary").unwrap();
    let path = cluster.to_str().unwrap();
    for command in ["up", "destroy", "down", "status", "env", "add-node"] {
        let output = local_cluster(&[command, "--dir", path]);
        assert_eq!(output.status.code(), Some(1), "{command}: {}", error(&output));
    }
    let names: Vec<_> = std::fs::read_dir(&cluster).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["diary.txt"]);
}
