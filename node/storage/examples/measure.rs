//! Measures what the design promises: `cargo run --release -p storage --example measure [DIRECTORY]`.

use std::sync::mpsc;
use std::time::Instant;

use bytes::Bytes;
use storage::{BodySource, Command, GroupId, LogEntry, Recipient, Stamp, Volume, VolumeOptions};
use types::{AccountId, InternalDate, MailboxName, Quota, UidSet, format};

const MESSAGES: u64 = 30_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "measure.tmp".to_owned());
    let volume = Volume::open(VolumeOptions::new(&directory))?;
    let group = volume.group(GroupId(0))?;
    let shard = group.shard();
    let account = AccountId(1);
    let body = Bytes::from(vec![b'm'; 4096]);

    let started = Instant::now();
    let (sender, receiver) = mpsc::channel();
    let mut commands = Vec::new();
    for index in 1..=MESSAGES {
        let mut fingerprint = [0; 32];
        fingerprint[..8].copy_from_slice(&index.to_be_bytes());
        let command = Command::Deliver {
            recipients: vec![Recipient { account, fingerprint, quota: Quota::NONE }],
            body: BodySource::Inline,
            digest: Bytes::from(vec![0; 200]),
            date: InternalDate::default(),
            settle: Vec::new(),
        };
        let head = command.encode(Stamp { unix_ms: 1_700_000_000_000, seed: 0, format: format::known() }, 0).into();
        let sender = sender.clone();
        let done = Box::new(move |result| drop(sender.send(result)));
        group.append(vec![LogEntry { index, head, body: Some(body.clone()) }], done)?;
        commands.push(command);
    }
    drop(sender);
    receiver.iter().collect::<Result<Vec<()>, _>>()?;
    println!("append of {MESSAGES} entries of 4 KiB: {:?}, {:?}", started.elapsed(), volume.statistics());

    let started = Instant::now();
    for (command, index) in commands.into_iter().zip(1u64..) {
        let stamp = Stamp { unix_ms: 1_700_000_000_000, seed: 0, format: format::known() };
        let marker = Bytes::copy_from_slice(&index.to_be_bytes());
        shard.apply(index, stamp, command, Some(body.len() as u64), marker)?.0?;
    }
    println!("apply of a delivery: {:?}", started.elapsed() / MESSAGES as u32);

    let inbox = shard.mailbox(account, &MailboxName::inbox())?.ok_or("no INBOX")?.id;
    for round in ["first", "warm", "warm"] {
        let started = Instant::now();
        let selection = shard.select(account, inbox)?;
        println!("{round} select of {} messages: {:?}", selection.uids.len(), started.elapsed());
    }
    let started = Instant::now();
    let mut visited = 0;
    shard.messages(account, inbox, &UidSet::from_range(1, u32::MAX), |_| {
        visited += 1;
        true
    })?;
    println!("visit of {visited} message records: {:?}", started.elapsed());
    let started = Instant::now();
    let bytes: usize = group.export()?.blocks.map(|block| block.map_or(0, |block| block.len())).sum();
    println!("export of {bytes} bytes: {:?}", started.elapsed());
    Ok(())
}
