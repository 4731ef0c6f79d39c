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

    /// RETR, byte for byte up to the line end that belongs to the final dot; messages with bare LF included. Dots are
    /// unstuffed at the start of each line, and where a bare LF is followed by nothing but dots: the server adds one
    /// there too, since many clients take LF for a line end.
    pub fn retrieve(&mut self, number: usize) -> Result<Vec<u8>> {
        self.command(&format!("RETR {number}"))?;
        let mut message: Vec<u8> = Vec::new();
        let mut line = Vec::new();
        loop {
            line.push(self.line.exact(1)?[0]);
            if !line.ends_with(b"\n") {
                continue;
            }
            let starts_line = message.is_empty() || message.ends_with(b"\r\n");
            if starts_line && line == b".\r\n" {
                return Ok(message);
            }
            let dots_only = line.iter().all(|byte| b".\r\n".contains(byte));
            let stuffed = line.starts_with(b".") && (starts_line || (dots_only && line.starts_with(b"..")));
            message.extend_from_slice(&line[usize::from(stuffed)..]);
            line.clear();
        }
    }
}
