//! From a name in RCPT to accounts: accounts, aliases, postmaster. Pure.

use std::collections::{BTreeMap, HashSet};

use types::{AccountId, AccountName, ShardId, SmtpReply};

use super::LocalRecipient;
use super::view::View;

/// Aliases looked at for one recipient: aliases of aliases beyond it are a loop or a mistake.
pub const ALIASES_EXPANDED_MAX: usize = 100;
/// Accounts that one recipient can stand for: a list of more wants list software.
pub const EXPANSION_RECIPIENTS_MAX: usize = 1_000;

/// Accounts to deliver to, each once, never empty.
pub type Resolution = Result<Vec<LocalRecipient>, Refused>;

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// The domain is not hosted here: to take the mail would be to relay.
    #[error("relaying is not allowed")]
    Foreign,
    #[error("no such user here")]
    Unknown,
    /// The alias expands to too many aliases or accounts.
    #[error("the alias expands too far")]
    TooMany,
    /// There is no domain at all: an operator has yet to make one, or has started with the wrong disks. Mail that is refused
    /// for good then would be lost.
    #[error("no domain is set up here yet, try again later")]
    NoDomains,
    /// The directory has not been seen yet.
    #[error("the directory is not known yet, try again later")]
    Unknowable,
}

impl Refused {
    pub fn smtp_reply(self) -> SmtpReply {
        let (code, enhanced) = match self {
            Refused::Foreign => (550, "5.7.1"),
            Refused::Unknown => (550, "5.1.1"),
            // Temporary: an operator can mend it before the sender gives up.
            Refused::TooMany | Refused::NoDomains => (451, "4.3.5"),
            Refused::Unknowable => (451, "4.3.0"),
        };
        SmtpReply { code, enhanced, text: self.to_string() }
    }
}

/// Why nothing is taken for a name that no account and no alias can have.
pub(super) fn refusal(view: &View, domain: &str) -> Refused {
    if view.is_hosted(domain) { Refused::Unknown } else { foreign(view) }
}

fn foreign(view: &View) -> Refused {
    if view.has_domains() { Refused::Foreign } else { Refused::NoDomains }
}

pub(super) fn resolve(view: &View, name: &AccountName) -> Resolution {
    let Some(domain) = view.domain(name.domain()) else { return Err(foreign(view)) };
    let is_postmaster = name.local() == "postmaster";
    let cluster_wide = if is_postmaster { view.postmaster() } else { "" };
    // The name itself, then what stands for names that nobody has.
    for name in [&format!("{}@{domain}", name.local()), cluster_wide, &format!("*@{domain}")] {
        let found = expand(view, name)?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    if is_postmaster { postmaster_of(view, domain) } else { Err(Refused::Unknown) }
}

/// RFC 5321 §4.5.1: `postmaster` without a domain always reaches somebody.
pub(super) fn resolve_postmaster(view: &View) -> Resolution {
    let found = expand(view, view.postmaster())?;
    if !found.is_empty() {
        return Ok(found);
    }
    if !view.has_domains() {
        return Err(Refused::NoDomains);
    }
    let domain = view.oldest_domain().ok_or(Refused::Unknown)?;
    let found = expand(view, &format!("postmaster@{domain}"))?;
    if found.is_empty() { postmaster_of(view, domain) } else { Ok(found) }
}

/// A domain that names no postmaster: the cluster's, else the domain's first account.
fn postmaster_of(view: &View, domain: &str) -> Resolution {
    let found = expand(view, view.postmaster())?;
    if !found.is_empty() {
        return Ok(found);
    }
    let (account, shard) = view.first_account(domain).ok_or(Refused::Unknown)?;
    Ok(vec![LocalRecipient { shard, account }])
}

/// The accounts behind a name; none where nothing has it. An alias that names itself, or one before it, is looked at
/// once.
fn expand(view: &View, name: &str) -> Resolution {
    let mut accounts: BTreeMap<AccountId, ShardId> = BTreeMap::new();
    let mut aliases: HashSet<&str> = HashSet::new();
    let mut names = vec![name];
    while let Some(name) = names.pop() {
        // An account's own name wins over an alias of the same name.
        if let Some(account) = view.account_named(name) {
            accounts.insert(account.id, account.shard);
            if accounts.len() > EXPANSION_RECIPIENTS_MAX {
                return Err(Refused::TooMany);
            }
            continue;
        }
        let Some((name, targets)) = view.alias_entry(name) else { continue };
        if aliases.insert(name) {
            if aliases.len() > ALIASES_EXPANDED_MAX {
                return Err(Refused::TooMany);
            }
            names.extend(targets.iter().map(|target| &**target));
        }
    }
    Ok(accounts.into_iter().map(|(account, shard)| LocalRecipient { shard, account }).collect())
}

#[cfg(test)]
mod tests {
    use types::AccountName;

    use super::super::view::View;
    use super::super::view::tests::{account, alias, domain, postmaster, view};
    use super::{Refused, refusal, resolve, resolve_postmaster};

    fn ids(view: &View, name: &str) -> Result<Vec<u64>, Refused> {
        let found = resolve(view, &AccountName::parse(name).unwrap())?;
        Ok(found.into_iter().map(|recipient| recipient.account.0).collect())
    }

    #[test]
    fn accounts_and_aliases_resolve_to_each_account_once() {
        let view = view(vec![
            domain("x.test"),
            domain("y.test"),
            account(1, "a@x.test"),
            account(2, "b@y.test"),
            alias("both@x.test", &["a@x.test", "b@y.test", "more@y.test"]),
            alias("more@y.test", &["a@x.test", "gone@y.test"]),
        ]);
        assert_eq!(ids(&view, "A@X.test"), Ok(vec![1]));
        assert_eq!(ids(&view, "both@x.test"), Ok(vec![1, 2]));
        assert_eq!(ids(&view, "nobody@x.test"), Err(Refused::Unknown));
        assert_eq!(ids(&view, "a@z.test"), Err(Refused::Foreign));
        assert_eq!(ids(&view, "a%z.test@x.test"), Err(Refused::Unknown));
    }

    #[test]
    fn alias_loops_end_and_expansion_is_bounded() {
        let mut changes = vec![
            domain("x.test"),
            account(1, "a@x.test"),
            alias("l1@x.test", &["l2@x.test"]),
            alias("l2@x.test", &["l1@x.test"]),
            alias("l3@x.test", &["l3@x.test", "a@x.test"]),
        ];
        changes.extend((0..200).map(|i| alias(&format!("c{i}@x.test"), &[&format!("c{}@x.test", i + 1)])));
        let many: Vec<String> = (0..1_001).map(|i| format!("m{i}@x.test")).collect();
        changes.extend(many.iter().enumerate().map(|(i, name)| account(100 + i as u64, name)));
        changes.push(alias("many@x.test", &many.iter().map(String::as_str).collect::<Vec<_>>()));
        let view = view(changes);
        assert_eq!(ids(&view, "l1@x.test"), Err(Refused::Unknown));
        assert_eq!(ids(&view, "l3@x.test"), Ok(vec![1]));
        assert_eq!(ids(&view, "c0@x.test"), Err(Refused::TooMany));
        assert_eq!(ids(&view, "c150@x.test"), Err(Refused::Unknown));
        assert_eq!(ids(&view, "many@x.test"), Err(Refused::TooMany));
    }

    #[test]
    fn a_catch_all_takes_what_no_other_name_does() {
        let mut changes = vec![
            domain("x.test"),
            domain("y.test"),
            account(1, "a@x.test"),
            account(2, "b@x.test"),
            account(3, "c@y.test"),
        ];
        changes.push(alias("*@x.test", &["b@x.test"]));
        let view = view(changes);
        assert_eq!(ids(&view, "a@x.test"), Ok(vec![1]));
        assert_eq!(ids(&view, "nobody@x.test"), Ok(vec![2]));
        assert_eq!(ids(&view, "postmaster@x.test"), Ok(vec![2]));
        assert_eq!(ids(&view, "nobody@y.test"), Err(Refused::Unknown));
        assert_eq!(ids(&view, "nobody@z.test"), Err(Refused::Foreign));
    }

    #[test]
    fn without_any_domain_nothing_is_refused_for_good() {
        let name = |name: &str| AccountName::parse(name).unwrap();
        let empty = View::default();
        assert_eq!(resolve(&empty, &name("a@x.test")), Err(Refused::NoDomains));
        assert_eq!(resolve(&empty, &name("postmaster@x.test")), Err(Refused::NoDomains));
        assert_eq!(resolve_postmaster(&empty), Err(Refused::NoDomains));
        assert_eq!(refusal(&empty, "x.test"), Refused::NoDomains);
        let reply = Refused::NoDomains.smtp_reply();
        assert_eq!((reply.code, reply.enhanced), (451, "4.3.5"));
        // With the first one, what is not of it is not ours.
        let first = view(vec![domain("x.test")]);
        assert_eq!(resolve(&first, &name("a@z.test")), Err(Refused::Foreign));
        assert_eq!((refusal(&first, "z.test"), refusal(&first, "x.test")), (Refused::Foreign, Refused::Unknown));
        assert_eq!(resolve_postmaster(&first), Err(Refused::Unknown));
    }

    #[test]
    fn postmaster_always_reaches_somebody() {
        let accounts = || vec![domain("x.test"), domain("y.test"), account(5, "a@x.test"), account(4, "b@y.test")];
        let bare = |view: &View| resolve_postmaster(view).map(|found| found[0].account.0);

        let plain = view(accounts());
        assert_eq!(ids(&plain, "postmaster@x.test"), Ok(vec![5]));
        assert_eq!(ids(&plain, "PostMaster@y.test"), Ok(vec![4]));
        assert_eq!(bare(&plain), Ok(4));

        let set = view([accounts(), vec![postmaster("a@x.test")]].concat());
        assert_eq!(ids(&set, "postmaster@y.test"), Ok(vec![5]));
        assert_eq!(bare(&set), Ok(5));

        let named = view([accounts(), vec![alias("postmaster@y.test", &["b@y.test"])]].concat());
        assert_eq!(ids(&named, "postmaster@y.test"), Ok(vec![4]));
        assert_eq!(bare(&view(vec![domain("x.test")])), Err(Refused::Unknown));
        assert_eq!(ids(&set, "postmaster@z.test"), Err(Refused::Foreign));
    }
}
