//! Each file of `transcripts/` is a conversation with a running cluster, named after its protocol: `imap-select.txt`.
//! Each gets accounts of its own, `{user}` and `{other}`; `{smtp}`, `{pop3}` and `{imap}` are the listeners.

use std::fs;
use std::path::Path;

use cluster_tests::{Cluster, ClusterOptions, PASSWORD, Transcript, play};

#[test]
fn every_transcript_plays_as_written() {
    let cluster = Cluster::start(ClusterOptions::default()).expect("the cluster starts");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts");
    let mut files: Vec<_> = fs::read_dir(&folder).expect("transcripts").flatten().map(|entry| entry.path()).collect();
    files.sort();
    let names: Vec<String> =
        files.iter().map(|path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned()).collect();
    let accounts: Vec<String> = names.iter().flat_map(|name| [name.clone(), format!("{name}.other")]).collect();
    cluster.add_accounts(&accounts.iter().map(String::as_str).collect::<Vec<_>>()).expect("accounts");
    let mut failures = Vec::new();
    for (path, name) in files.iter().zip(&names) {
        let text = fs::read_to_string(path).expect("transcript");
        let address = match name.split('-').next() {
            Some("imap") => cluster.imap(0),
            Some("pop3") => cluster.pop3(0),
            Some("smtp") => cluster.smtp(0),
            _ => panic!("{name}: which protocol?"),
        };
        let (user, other) = (format!("{name}@example.test"), format!("{name}.other@example.test"));
        let [smtp, pop3, imap] = [cluster.smtp(0), cluster.pop3(0), cluster.imap(0)].map(|address| address.to_string());
        let values = [
            ("user", user.as_str()),
            ("other", &other),
            ("password", PASSWORD),
            ("smtp", &smtp),
            ("pop3", &pop3),
            ("imap", &imap),
        ];
        if let Err(error) = play(&Transcript { name, text: &text }, address, &values) {
            failures.push(format!("{error:#}"));
        }
    }
    assert!(!names.is_empty(), "no transcripts");
    assert!(failures.is_empty(), "{} of {} failed:\n{}", failures.len(), names.len(), failures.join("\n"));
    cluster.check_logs(&[]).expect("nothing that calls for somebody");
    println!("{} transcripts played", names.len());
}
