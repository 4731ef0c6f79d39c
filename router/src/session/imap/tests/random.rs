//! Two clients do as they please with one mailbox, and keep count the way clients do. What they believe in the end
//! must be so.

use std::collections::BTreeSet;

use super::transcript::{Client, Server};

/// The same choices for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % sides
    }
}

type Flags = BTreeSet<String>;

/// A client's list of messages: UID and flags, as far as it has been told.
#[derive(Default)]
struct Believer {
    messages: Vec<(Option<u32>, Option<Flags>)>,
}

impl Believer {
    async fn command(&mut self, client: &mut Client, command: &str) {
        let lines = client.command(command).await;
        assert!(lines.last().unwrap().starts_with("x OK "), "{command}: {lines:?}");
        let by_number = ["FETCH", "STORE", "SEARCH"].iter().any(|name| command.starts_with(name));
        for line in &lines {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["*", count, "EXISTS"] => {
                    let count: usize = count.parse().unwrap();
                    assert!(count >= self.messages.len(), "EXISTS may not shrink");
                    self.messages.resize(count, (None, None));
                }
                ["*", seq, "EXPUNGE"] => {
                    assert!(!by_number, "{command}: {lines:?}");
                    self.messages.remove(seq.parse::<usize>().unwrap() - 1);
                }
                ["*", seq, "FETCH", ..] => self.told(seq.parse::<usize>().unwrap() - 1, line),
                _ => {}
            }
        }
    }

    fn told(&mut self, index: usize, line: &str) {
        let (uid, flags) = &mut self.messages[index];
        if let Some((_, rest)) = line.split_once("UID ") {
            let told: u32 = rest.split([' ', ')']).next().unwrap().parse().unwrap();
            assert!(uid.is_none_or(|known| known == told), "the number has changed its message");
            *uid = Some(told);
        }
        if let Some((_, rest)) = line.split_once("FLAGS (") {
            let told =
                rest.split(')').next().unwrap().split(' ').filter(|flag| !flag.is_empty() && *flag != "\\Recent");
            *flags = Some(told.map(str::to_owned).collect());
        }
    }

    /// What a client does for itself when it stores in silence.
    fn computed(&mut self, index: usize, flag: &str, add: bool) {
        if let Some(flags) = &mut self.messages[index].1 {
            match add {
                true => flags.insert(flag.to_owned()),
                false => flags.remove(flag),
            };
        }
    }
}

#[tokio::test]
async fn whatever_two_clients_do_each_ends_up_with_the_truth() {
    for seed in 1..=12 {
        eprintln!("seed {seed}");
        play(seed).await;
    }
}

async fn play(seed: u64) {
    let server = Server::start().await;
    let mut dice = Dice(seed);
    for _ in 0..5 {
        server.node.deliver_text("x");
    }
    let mut clients = [server.client().await, server.client().await];
    let mut believers = [Believer::default(), Believer::default()];
    for (client, believer) in clients.iter_mut().zip(&mut believers) {
        believer.command(client, "SELECT INBOX").await;
        believer.command(client, "FETCH 1:* (UID FLAGS)").await;
    }
    for _ in 0..60 {
        let at = dice.below(2) as usize;
        let (client, believer) = (&mut clients[at], &mut believers[at]);
        let count = believer.messages.len();
        if count < 2 || dice.below(8) == 0 {
            server.node.deliver_text("new");
            believer.command(client, "NOOP").await;
            continue;
        }
        let index = dice.below(count as u64) as usize;
        let flag = ["\\Seen", "\\Deleted", "\\Flagged", "$Odd"][dice.below(4) as usize];
        let (seq, uid, add) = (index + 1, believer.messages[index].0, dice.below(3) > 0);
        let sign = if add { '+' } else { '-' };
        match (dice.below(10), uid) {
            (0, _) => believer.command(client, "NOOP").await,
            (1, _) => believer.command(client, "EXPUNGE").await,
            (2, _) => believer.command(client, &format!("FETCH {seq}:* (UID FLAGS)")).await,
            (3, Some(uid)) => believer.command(client, &format!("UID FETCH {uid} (FLAGS)")).await,
            (4, _) => believer.command(client, &format!("STORE {seq} {sign}FLAGS ({flag})")).await,
            (5, Some(uid)) => believer.command(client, &format!("UID STORE {uid} {sign}FLAGS ({flag})")).await,
            (6, _) => believer.command(client, &format!("FETCH {seq} BODY[TEXT]")).await,
            (7, _) => believer.command(client, "SEARCH UNSEEN").await,
            (8, _) => believer.command(client, "UID SEARCH ALL").await,
            _ => {
                // Computed before the answer, which may hold what came after.
                believer.computed(index, flag, add);
                believer.command(client, &format!("STORE {seq} {sign}FLAGS.SILENT ({flag})")).await;
            }
        }
    }
    for (client, believer) in clients.iter_mut().zip(&mut believers) {
        believer.command(client, "NOOP").await;
        let state = server.node.state();
        let messages = &state.boxes[&1].messages;
        assert_eq!(believer.messages.len(), messages.len());
        for ((uid, message), (told, flags)) in messages.iter().zip(&believer.messages) {
            assert!(told.is_none_or(|told| told == *uid));
            let is: Flags = message.flags.names().map(str::to_owned).collect();
            assert!(flags.as_ref().is_none_or(|flags| *flags == is), "uid {uid}: {is:?}, not {flags:?}");
        }
    }
}
