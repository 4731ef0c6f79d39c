//! A dumb POP3 client.

use std::net::SocketAddr;

use anyhow::{Result, bail};

use crate::line::LineClient;

pub struct Pop3Client {
    pub line: LineClient,
}

impl Pop3Client {
    pub fn connect(address: SocketAddr) -> Result<Pop3Client> {
        let mut client = Pop3Client { line: LineClient::connect(address)? };
        client.ok()?;
        Ok(client)
    }

    pub fn login(address: SocketAddr, user: &str, password: &str) -> Result<Pop3Client> {
        let mut client = Pop3Client::connect(address)?;
        client.command(&format!("USER {user}"))?;
        client.command(&format!("PASS {password}"))?;
        Ok(client)
    }

    pub fn ok(&mut self) -> Result<String> {
        let line = self.line.line()?;
        match line.strip_prefix("+OK") {
            Some(text) => Ok(text.trim().to_owned()),
            None => bail!("expected +OK, got {line:?}"),
        }
    }

    pub fn command(&mut self, command: &str) -> Result<String> {
        self.line.send(format!("{command}\r\n").as_bytes())?;
        self.ok()
    }

    /// The lines of a multi-line reply, dots unstuffed.
    pub fn lines(&mut self, command: &str) -> Result<Vec<Vec<u8>>> {
        self.command(command)?;
        let mut lines = Vec::new();
        loop {
            let line = self.line.line_bytes()?;
            match line.as_slice() {
                b"." => return Ok(lines),
                [b'.', rest @ ..] => lines.push(rest.to_vec()),
                _ => lines.push(line),
            }
        }
    }

    /// RETR, byte for byte, as RFC 1939 §3 has it.
    pub fn retrieve(&mut self, number: usize) -> Result<Vec<u8>> {
        self.command(&format!("RETR {number}"))?;
        let mut message: Vec<u8> = Vec::new();
        let mut line = Vec::new();
        loop {
            line.push(self.line.exact(1)?[0]);
            if !line.ends_with(b"\r\n") {
                continue;
            }
            if line == b".\r\n" {
                return Ok(message);
            }
            message.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
            line.clear();
        }
    }
}
