//! Logins: a name and a password against the directory's hashes. Unknown accounts, disabled ones and wrong passwords
//! cannot be told apart, by answer or by time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use argon2::password_hash::PasswordHasher;
use argon2::password_hash::phc::Output;
use argon2::{Algorithm, Argon2, Block, Params, PasswordHash, Version};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use types::{AccountId, AccountName, MailError, MailResult, ShardId};

use crate::cluster::Cluster;
use crate::metrics::Metrics;

/// What verifying one password may cost in memory and passes. A hash that wants more would let one login take what all
/// sessions share: nobody logs in with it.
pub const HASH_MEMORY_KIB_MAX: u32 = 256 * 1024;
pub const HASH_PASSES_MAX: u32 = 16;
/// Logins that wait for a core. A verification takes some 15 ms and 20 MiB; whoever waits longer than this queue
/// would give up anyway.
const QUEUE_MAX: usize = 1_000;
/// Verifications that are remembered: some 6 MiB.
const REMEMBERED_MAX: usize = 65_536;
/// Phones log in every few minutes.
const REMEMBERED: Duration = Duration::from_secs(5 * 60);
/// After the second wrong password on a connection, each answer waits so long.
const FAILURE_DELAY: Duration = Duration::from_secs(1);
const FAILURES_FREE: u32 = 1;

/// Who logged in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Login {
    pub name: AccountName,
    pub account: AccountId,
    pub shard: ShardId,
}

pub struct Auth {
    cluster: Cluster,
    metrics: Arc<Metrics>,
    cores: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Random, so that a dump of the memory says nothing about passwords.
    key: [u8; 32],
    remembered: Mutex<HashMap<[u8; 32], Instant>>,
    /// Verified against where there is no account at all yet.
    dummy: Box<str>,
}

/// Wrong passwords on one connection.
#[derive(Debug, Default)]
pub struct Failures(u32);

impl Failures {
    /// Counts one more and waits before the answer may go out.
    pub async fn failed(&mut self) {
        self.0 = self.0.saturating_add(1);
        if self.0 > FAILURES_FREE {
            tokio::time::sleep(FAILURE_DELAY).await;
        }
    }
}

impl Auth {
    pub fn new(cluster: Cluster, metrics: Arc<Metrics>) -> anyhow::Result<Auth> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
        let dummy = Argon2::default()
            .hash_password_with_salt(&key, b"mailring unknown")
            .map_err(|error| anyhow::anyhow!("cannot hash: {error}"))?;
        // Blocking work shares these cores with everything else; twice as many keep them busy.
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get()) * 2;
        Ok(Auth {
            cluster,
            metrics,
            cores: Arc::new(Semaphore::new(cores)),
            waiting: AtomicUsize::new(0),
            key,
            remembered: Mutex::default(),
            dummy: dummy.to_string().into(),
        })
    }

    /// `authorization` is the identity to act as, where the client named another than its own: nobody may.
    /// Errors: `Denied` (for whatever reason), `Busy`, `Unavailable`.
    pub async fn login(&self, user: &str, authorization: Option<&str>, password: &str) -> MailResult<Login> {
        let result = self.verify(user, authorization, password).await;
        self.metrics.login(match &result {
            Ok(_) => "ok",
            Err(MailError::Denied) => "denied",
            Err(MailError::Busy) => "busy",
            Err(_) => "unavailable",
        });
        result
    }

    async fn verify(&self, user: &str, authorization: Option<&str>, password: &str) -> MailResult<Login> {
        if !self.cluster.is_ready() {
            return Err(MailError::Unavailable);
        }
        let name = AccountName::parse(user).ok();
        let account = name.as_ref().and_then(|name| self.cluster.account(name));
        let hash = match &account {
            Some(account) => account.password_hash.clone(),
            // Another account's hash costs what a true one costs.
            None => self.cluster.with_view(|view| view.sample_hash()).unwrap_or_else(|| self.dummy.clone()),
        };
        let known = account.filter(|account| account.enabled).zip(name);
        let right = match &known {
            Some((account, _)) => self.check_remembering(account.id, hash, password).await?,
            None => {
                self.check(hash, password).await?;
                false
            }
        };
        let (account, name) = known.filter(|_| right).ok_or(MailError::Denied)?;
        match authorization {
            Some(other) if AccountName::parse(other).ok().as_ref() != Some(&name) => Err(MailError::Denied),
            _ => Ok(Login { name, account: account.id, shard: account.shard }),
        }
    }

    async fn check_remembering(&self, account: AccountId, hash: Box<str>, password: &str) -> MailResult<bool> {
        let mark = self.mark(account, &hash, password);
        if self.remembered.lock().get(&mark).is_some_and(|until| *until > Instant::now()) {
            return Ok(true);
        }
        let right = self.check(hash, password).await?;
        if right {
            self.remember(mark);
        }
        Ok(right)
    }

    /// A changed password has another hash, and so another mark.
    fn mark(&self, account: AccountId, hash: &str, password: &str) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&account.0.to_le_bytes());
        hasher.update(&(hash.len() as u64).to_le_bytes());
        hasher.update(hash.as_bytes());
        hasher.update(password.as_bytes());
        *hasher.finalize().as_bytes()
    }

    fn remember(&self, mark: [u8; 32]) {
        let now = Instant::now();
        let mut remembered = self.remembered.lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, until| *until > now);
        }
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(mark, now + REMEMBERED);
    }

    /// The work itself, off the async threads.
    async fn check(&self, hash: Box<str>, password: &str) -> MailResult<bool> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(MailError::Busy);
        }
        let waiting = Waiting(&self.waiting);
        let permit = self.cores.clone().acquire_owned().await.map_err(|_| MailError::Busy)?;
        drop(waiting);
        let password = password.to_owned();
        tokio::task::spawn_blocking(move || {
            let right = verifies(&hash, password.as_bytes()).unwrap_or(false);
            drop(permit);
            right
        })
        .await
        .map_err(|error| MailError::Internal(error.to_string()))
    }
}

/// `None` for what is no Argon2 hash, or one that costs too much.
fn verifies(hash: &str, password: &[u8]) -> Option<bool> {
    let hash = PasswordHash::new(hash).ok()?;
    let params = Params::try_from(&hash).ok()?;
    if params.m_cost() > HASH_MEMORY_KIB_MAX || params.t_cost() > HASH_PASSES_MAX {
        return None;
    }
    let algorithm = Algorithm::try_from(hash.algorithm.as_str()).ok()?;
    let version = hash.version.map_or(Ok(Version::default()), Version::try_from).ok()?;
    let (salt, expected) = (hash.salt?, hash.hash?);
    let mut output = vec![0; expected.len()];
    // Zeroed here, and not by the allocator: that takes 5,000 fresh pages from the system for each verification, which
    // costs as much again as the verification does.
    let mut memory = vec![Block::new(); params.block_count()];
    Argon2::new(algorithm, version, params)
        .hash_password_into_with_memory(password, &salt, &mut output, &mut memory)
        .ok()?;
    // Output compares in constant time.
    Some(Output::new(&output).ok()? == expected)
}

/// A place in the queue; given back also when the client has gone meanwhile.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use argon2::password_hash::PasswordHasher;
    use argon2::{Algorithm, Argon2, Params, Version};

    use super::{HASH_MEMORY_KIB_MAX, HASH_PASSES_MAX, verifies};

    fn hash(algorithm: Algorithm, output_octets: usize) -> String {
        let params = Params::new(8, 1, 1, Some(output_octets)).unwrap();
        let argon2 = Argon2::new(algorithm, Version::V0x13, params);
        argon2.hash_password_with_salt(b"right", b"saltsaltsalt").unwrap().to_string()
    }

    #[test]
    fn only_the_password_that_was_hashed_verifies() {
        for hash in [hash(Algorithm::Argon2id, 32), hash(Algorithm::Argon2id, 64), hash(Algorithm::Argon2i, 16)] {
            assert_eq!(verifies(&hash, b"right"), Some(true), "{hash}");
            assert_eq!(verifies(&hash, b"wrong"), Some(false), "{hash}");
            assert_eq!(verifies(&hash, b""), Some(false), "{hash}");
        }
    }

    #[test]
    fn what_is_no_hash_or_costs_too_much_verifies_nothing() {
        let good = hash(Algorithm::Argon2id, 32);
        let with = |params: String| good.replacen("m=8,t=1,p=1", &params, 1);
        let costly = [
            with(format!("m={},t=1,p=1", HASH_MEMORY_KIB_MAX + 1)),
            with(format!("m=8,t={},p=1", HASH_PASSES_MAX + 1)),
            with("m=4294967295,t=4294967295,p=1".to_owned()),
        ];
        let broken = [
            "",
            "right",
            "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ",
            "$2b$12$abc",
            "$argon2id$v=19$m=0,t=0,p=0$c2FsdHNhbHQ$aGFzaA",
        ];
        for hash in costly.iter().map(String::as_str).chain(broken) {
            assert_eq!(verifies(hash, b"right"), None, "{hash}");
        }
    }
}
