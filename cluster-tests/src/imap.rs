//! A dumb IMAP client: sends a command, gives back every response line with its literals.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};

use crate::line::LineClient;

pub struct ImapClient {
    pub line: LineClient,
    next_tag: u32,
}

impl ImapClient {
    pub fn connect(address: SocketAddr) -> Result<ImapClient> {
        ImapClient::greeted(LineClient::connect(address)?)
    }

    pub fn greeted(mut line: LineClient) -> Result<ImapClient> {
        let greeting = line.line()?;
        if !greeting.starts_with("* OK") {
            bail!("not greeted: {greeting:?}");
        }
        Ok(ImapClient { line, next_tag: 0 })
    }

    pub fn login(address: SocketAddr, user: &str, password: &str) -> Result<ImapClient> {
        let mut client = ImapClient::connect(address)?;
        client.ok(&format!("LOGIN {user} {password}"))?;
        Ok(client)
    }

    /// A response with its literals in place, as bytes.
    pub fn response(&mut self) -> Result<Vec<u8>> {
        let mut whole = self.line.line_bytes()?;
        while let Some(octets) = literal_octets(&whole) {
            whole.extend_from_slice(b"\r\n");
            whole.extend_from_slice(&self.line.exact(octets)?);
            whole.extend_from_slice(&self.line.line_bytes()?);
        }
        Ok(whole)
    }

    /// Sends a command; the untagged responses and the tagged one without its tag.
    pub fn command(&mut self, command: &str) -> Result<(Vec<Vec<u8>>, String)> {
        let tag = self.send(command)?;
        self.finish(&tag)
    }

    pub fn send(&mut self, command: &str) -> Result<String> {
        self.next_tag += 1;
        let tag = format!("t{}", self.next_tag);
        self.line.send(format!("{tag} {command}\r\n").as_bytes())?;
        Ok(tag)
    }

    pub fn finish(&mut self, tag: &str) -> Result<(Vec<Vec<u8>>, String)> {
        let mut untagged = Vec::new();
        loop {
            let response = self.response()?;
            match response.strip_prefix(tag.as_bytes()) {
                Some(rest) => return Ok((untagged, String::from_utf8_lossy(rest).trim().to_owned())),
                None => untagged.push(response),
            }
        }
    }

    /// Sends a command that must be answered OK; its untagged responses.
    pub fn ok(&mut self, command: &str) -> Result<Vec<Vec<u8>>> {
        let (untagged, tagged) = self.command(command)?;
        if !tagged.starts_with("OK") {
            bail!("{command:?} was answered {tagged:?}");
        }
        Ok(untagged)
    }

    /// APPEND with a synchronising literal; the UID from APPENDUID.
    pub fn append(&mut self, mailbox: &str, message: &[u8]) -> Result<u32> {
        let tag = self.send(&format!("APPEND {mailbox} {{{}}}", message.len()))?;
        let go_ahead = self.response()?;
        if !go_ahead.starts_with(b"+") {
            bail!("no go-ahead: {:?}", String::from_utf8_lossy(&go_ahead));
        }
        self.line.send(message)?;
        self.line.send(b"\r\n")?;
        let (_, tagged) = self.finish(&tag)?;
        let uid = tagged.split("APPENDUID ").nth(1).and_then(|rest| rest.split([' ', ']']).nth(1));
        uid.with_context(|| format!("APPEND was answered {tagged:?}"))?.parse().context("the UID of APPENDUID")
    }

    /// Makes a mailbox, which may be there from an attempt whose answer was lost.
    pub fn create(&mut self, mailbox: &str) -> Result<()> {
        let created = self.ok(&format!("CREATE {mailbox}"));
        created.or_else(|_| self.ok(&format!("STATUS {mailbox} (MESSAGES)"))).map(drop)
    }

    /// EXISTS of a mailbox that is selected by this.
    pub fn select(&mut self, mailbox: &str) -> Result<u32> {
        let untagged = self.ok(&format!("SELECT {mailbox}"))?;
        let exists = untagged
            .iter()
            .find_map(|line| String::from_utf8_lossy(line).strip_prefix("* ")?.strip_suffix(" EXISTS")?.parse().ok());
        exists.context("SELECT without EXISTS")
    }

    /// The body of a message in the selected mailbox; None if there is none with that UID.
    pub fn body(&mut self, uid: u32) -> Result<Option<Vec<u8>>> {
        let untagged = self.ok(&format!("UID FETCH {uid} BODY.PEEK[]"))?;
        Ok(untagged.iter().find_map(|response| literal(response)))
    }

    /// The UIDs of the selected mailbox.
    pub fn uids(&mut self) -> Result<Vec<u32>> {
        let untagged = self.ok("UID SEARCH ALL")?;
        let line = untagged.iter().find_map(|line| line.strip_prefix(b"* SEARCH")).context("no SEARCH response")?;
        Ok(String::from_utf8_lossy(line).split_whitespace().filter_map(|uid| uid.parse().ok()).collect())
    }
}

fn literal_octets(line: &[u8]) -> Option<usize> {
    let open = line.strip_suffix(b"}")?.iter().rposition(|byte| *byte == b'{')?;
    std::str::from_utf8(&line[open + 1..line.len() - 1]).ok()?.parse().ok()
}

/// The first literal in a response, or the quoted string after `BODY[] `.
pub(crate) fn literal(response: &[u8]) -> Option<Vec<u8>> {
    let brace = response.windows(3).position(|three| three == b"}\r\n")?;
    let octets = literal_octets(&response[..=brace])?;
    response.get(brace + 3..brace + 3 + octets).map(<[u8]>::to_vec)
}
