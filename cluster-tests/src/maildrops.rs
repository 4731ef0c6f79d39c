//! What POP3 shows of every account, against IMAP.

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::imap::ImapClient;
use crate::reading::status;

impl Cluster {
    /// That UIDL names the messages of every INBOX by UIDVALIDITY and UID, in their order, and that the first and the last
    /// have the octets that IMAP shows. Nobody may write meanwhile, and every account has the tests' password.
    pub(crate) fn compare_maildrops(&self) -> Result<()> {
        let accounts = self.json(&["account", "list"])?;
        for account in accounts.as_array().context("accounts")? {
            let name = account["account"].as_str().context("account")?;
            self.compare_maildrop(&mut self.imap_client(name)?, name).with_context(|| format!("{name} over POP3"))?;
        }
        Ok(())
    }

    fn compare_maildrop(&self, imap: &mut ImapClient, account: &str) -> Result<()> {
        let uid_validity = status(imap, "INBOX")?.uid_validity;
        imap.select("INBOX")?;
        let uids = imap.uids()?;
        let mut pop3 = self.pop3_client(account)?;
        let shown = pop3.lines("UIDL")?;
        let expected: Vec<Vec<u8>> =
            (1..).zip(&uids).map(|(number, uid)| format!("{number} {uid_validity}.{uid}").into_bytes()).collect();
        ensure!(shown == expected, "UIDL shows {} messages, IMAP {}", shown.len(), expected.len());
        for (number, uid) in
            [uids.first().map(|uid| (1, *uid)), uids.last().map(|uid| (uids.len(), *uid))].into_iter().flatten()
        {
            let mut body = imap.body(uid)?.with_context(|| format!("no UID {uid}"))?;
            if !body.ends_with(b"\r\n") {
                // Over POP3 the last line is a line, too (RFC 1939 section 3).
                body.extend_from_slice(b"\r\n");
            }
            ensure!(pop3.retrieve(number)? == body, "message {number} has other octets than UID {uid}");
        }
        pop3.command("QUIT").map(drop)
    }
}
