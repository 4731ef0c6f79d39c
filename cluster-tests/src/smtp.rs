//! A dumb SMTP client.

use std::net::SocketAddr;

use anyhow::{Result, bail};

use crate::line::LineClient;

pub struct SmtpClient {
    pub line: LineClient,
}

impl SmtpClient {
    /// Connects, reads the greeting and says EHLO.
    pub fn connect(address: SocketAddr) -> Result<SmtpClient> {
        let mut client = SmtpClient { line: LineClient::connect(address)? };
        client.expect(220)?;
        client.command("EHLO client.test", 250)?;
        Ok(client)
    }

    /// One reply: its code and the text of its lines.
    pub fn reply(&mut self) -> Result<(u16, String)> {
        let mut text = String::new();
        loop {
            let line = self.line.line()?;
            let (Some(Ok(code)), separator) = (line.get(..3).map(str::parse), line.as_bytes().get(3)) else {
                bail!("not an SMTP reply: {line:?}");
            };
            text.push_str(line.get(4..).unwrap_or_default());
            if separator != Some(&b'-') {
                return Ok((code, text));
            }
            text.push('\n');
        }
    }

    pub fn expect(&mut self, expected: u16) -> Result<String> {
        let (code, text) = self.reply()?;
        if code != expected {
            bail!("expected {expected}, got {code} {text}");
        }
        Ok(text)
    }

    pub fn command(&mut self, command: &str, expected: u16) -> Result<String> {
        self.line.send(format!("{command}\r\n").as_bytes())?;
        self.expect(expected)
    }

    /// One mail transaction by DATA; the reply to the message.
    pub fn deliver(&mut self, from: &str, recipients: &[&str], message: &[u8]) -> Result<(u16, String)> {
        self.envelope(from, recipients)?;
        self.command("DATA", 354)?;
        self.line.send(&dot_stuffed(message))?;
        self.reply()
    }

    /// One mail transaction by BDAT, which carries any bytes.
    pub fn deliver_binary(&mut self, from: &str, recipients: &[&str], message: &[u8]) -> Result<(u16, String)> {
        self.envelope(from, recipients)?;
        self.line.send(format!("BDAT {} LAST\r\n", message.len()).as_bytes())?;
        self.line.send(message)?;
        self.reply()
    }

    fn envelope(&mut self, from: &str, recipients: &[&str]) -> Result<()> {
        self.command(&format!("MAIL FROM:<{from}>"), 250)?;
        for recipient in recipients {
            self.command(&format!("RCPT TO:<{recipient}>"), 250)?;
        }
        Ok(())
    }
}

/// A message as it goes after DATA: dots doubled at line starts, ended by a lone dot (RFC 5321 §4.5.2). A message that
/// does not end in CRLF gets one, as DATA cannot say otherwise.
pub fn dot_stuffed(message: &[u8]) -> Vec<u8> {
    let mut stuffed = Vec::with_capacity(message.len() + 16);
    let mut line_start = true;
    let mut previous = 0;
    for &byte in message {
        if line_start && byte == b'.' {
            stuffed.push(b'.');
        }
        stuffed.push(byte);
        line_start = previous == b'\r' && byte == b'\n';
        previous = byte;
    }
    if !message.ends_with(b"\r\n") {
        stuffed.extend_from_slice(b"\r\n");
    }
    stuffed.extend_from_slice(b".\r\n");
    stuffed
}
