//! Measures changes of a large mailbox, each as one command and in parts:
//! `cargo run --release -p storage --example changes [MESSAGES] [DIRECTORY]`.

use std::fs;
use std::time::{Duration, Instant};

use bytes::Bytes;
use storage::{BodySource, Command, GroupId, LogEntry, Outcome, ShardState, Stamp, StoreAction, Volume, VolumeOptions};
use types::{AccountId, Flags, InternalDate, MailError, MailboxId, MailboxName, Quota, SystemFlags, UidSet, format};

const ACCOUNT: AccountId = AccountId(1);
/// As `proto::MESSAGES_PER_CHANGE_MAX`.
const PART: u32 = 10_000;
/// As in `node/src/remains.rs`.
const STEP: u32 = 1_000;

type Failure = Box<dyn std::error::Error>;

struct Shard {
    group: storage::Group,
    state: ShardState,
    index: u64,
    format: u32,
}

impl Shard {
    fn run(&mut self, command: Command, body: Option<&Bytes>) -> Result<Outcome, Failure> {
        self.index += 1;
        let stamp = Stamp { unix_ms: 1_700_000_000_000, seed: 0, format: self.format };
        if let Some(body) = body {
            let head = command.encode(stamp, 0).into();
            let entry = LogEntry { index: self.index, head, body: Some(body.clone()) };
            self.group.append(vec![entry], Box::new(drop))?;
        }
        let marker = Bytes::copy_from_slice(&self.index.to_be_bytes());
        let len = body.map(|body| body.len() as u64);
        let (outcome, _) =
            self.state.apply_request(self.index, (stamp, u128::from(self.index)), command, len, marker)?;
        outcome.map_err(|error: MailError| error.into())
    }

    /// Prints what the commands took together, what the longest took, and the most memory beyond what there was before.
    fn measure(&mut self, what: &str, commands: Vec<Command>) -> Result<(), Failure> {
        fs::write("/proc/self/clear_refs", "5")?;
        let before = memory_mib("VmRSS")?;
        let (count, started, mut longest) = (commands.len(), Instant::now(), Duration::ZERO);
        for command in commands {
            let began = Instant::now();
            self.run(command, None)?;
            longest = longest.max(began.elapsed());
        }
        let (took, more) = (started.elapsed(), memory_mib("VmHWM")?.saturating_sub(before));
        println!("{what}: {count} commands in {took:.2?}, the longest {longest:.2?}, {more} MiB more memory");
        Ok(())
    }

    fn id(&self, name: &MailboxName) -> Result<MailboxId, Failure> {
        Ok(self.state.mailbox(ACCOUNT, name)?.ok_or("no such mailbox")?.id)
    }
}

fn memory_mib(field: &str) -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).ok_or("no such field")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let messages: u32 = arguments.next().map_or(Ok(200_000), |text| text.parse())?;
    let directory = arguments.next().unwrap_or_else(|| "changes.tmp".to_owned());
    let volume = Volume::open(VolumeOptions::new(&directory))?;
    let group = volume.group(GroupId(0))?;
    let mut shard = Shard { state: group.shard(), group, index: 0, format: format::known() };
    let (body, inbox) = (Bytes::from(vec![b'm'; 512]), MailboxName::inbox());
    for _ in 0..messages {
        let append = Command::Append {
            account: ACCOUNT,
            mailbox: inbox.clone(),
            flags: Flags::default(),
            date: InternalDate::default(),
            body: BodySource::Inline,
            digest: Bytes::from(vec![0; 200]),
            quota: Quota::NONE,
        };
        shard.run(append, Some(&body))?;
    }
    let mut from = (shard.id(&inbox)?, UidSet::from_range(1, messages));
    let store = |(mailbox, uids): (MailboxId, UidSet), system: SystemFlags| {
        let (action, flags, unchanged_since) = (StoreAction::Add, Flags::system(system), None);
        Command::Store { account: ACCOUNT, mailbox, uids, action, flags, unchanged_since }
    };
    let copy = |(from, uids): (MailboxId, UidSet), to: &MailboxName, remove_source| {
        let (to, quota) = (to.clone(), Quota::NONE);
        Command::Copy { account: ACCOUNT, from, uids, to, remove_source, messages_min: 0, quota }
    };
    let parts = |(id, uids): &(MailboxId, UidSet)| uids.parts(PART).map(|part| (*id, part)).collect::<Vec<_>>();

    shard.measure("STORE at once", vec![store(from.clone(), SystemFlags::SEEN)])?;
    shard
        .measure("STORE in parts", parts(&from).into_iter().map(|part| store(part, SystemFlags::FLAGGED)).collect())?;
    for (name, in_parts) in [("once", false), ("parts", true)] {
        let to = MailboxName::parse(name)?;
        shard.run(Command::CreateMailbox { account: ACCOUNT, name: to.clone(), special_use: None }, None)?;
        let commands = match in_parts {
            false => vec![copy(from.clone(), &to, true)],
            true => parts(&from).into_iter().map(|part| copy(part, &to, true)).collect(),
        };
        shard.measure(&format!("MOVE, {name}"), commands)?;
        from = (shard.id(&to)?, UidSet::from_range(1, messages));
    }
    for size in [10_000, 20_000, 40_000] {
        let some = (from.0, UidSet::from_range(1, size));
        shard.measure(&format!("COPY of {size}"), vec![copy(some, &MailboxName::parse("once")?, false)])?;
    }
    let whole = MailboxName::parse("whole")?;
    for (what, format, steps) in [("of format 1", 1, 0), ("of format 2", 2, messages.div_ceil(STEP) + 1)] {
        shard.format = 2;
        shard.run(Command::CreateMailbox { account: ACCOUNT, name: whole.clone(), special_use: None }, None)?;
        // Copies share bodies: their own are what a DELETE has to do with.
        let move_in = parts(&from).into_iter().map(|part| copy(part, &whole, format == 2)).collect();
        shard.measure("to be deleted", move_in)?;
        shard.format = format;
        shard.measure(
            &format!("DELETE {what}"),
            vec![Command::DeleteMailbox { account: ACCOUNT, name: whole.clone() }],
        )?;
        let step = Command::ClearRemains { messages_max: STEP };
        shard.measure("its remains", vec![step; steps as usize])?;
    }
    Ok(())
}
