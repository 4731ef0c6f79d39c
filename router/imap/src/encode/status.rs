//! Status responses and their codes (RFC 3501 §7.1), and continuation requests (§7.5).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, BytesMut};
use types::{Flags, ModSeq, Uid, UidSet, UidValidity};

use super::string::{put_atom, put_display, put_flags, put_text};
use crate::command::Tag;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Ok,
    No,
    Bad,
}

/// `resp-text-code`. An unnamed kind goes as [`Code::Named`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code<'a> {
    Alert,
    /// The charsets that SEARCH knows.
    BadCharset,
    /// As `rules::capabilities` gives them.
    Capability(&'a str),
    /// `new_keywords`: whether STORE may make more (`\*`).
    PermanentFlags {
        flags: &'a Flags,
        new_keywords: bool,
    },
    ReadOnly,
    ReadWrite,
    TryCreate,
    UidNext(Uid),
    UidValidity(UidValidity),
    /// The sequence number of the first unseen message.
    Unseen(u32),
    /// RFC 4315 §3.
    AppendUid {
        validity: UidValidity,
        uids: &'a UidSet,
    },
    /// RFC 4315 §3. The n-th of `from` is the n-th of `to`, and the sets are as large.
    CopyUid {
        validity: UidValidity,
        from: &'a UidSet,
        to: &'a UidSet,
    },
    /// RFC 7162 §3.1.2.1.
    HighestModSeq(ModSeq),
    NoModSeq,
    /// What STORE UNCHANGEDSINCE left alone: sequence numbers, or UIDs for UID STORE (RFC 7162 §3.1.3).
    Modified(&'a UidSet),
    /// RFC 7889 §4.
    TooBig,
    /// RFC 6154 §3.
    UseAttr,
    /// Codes without arguments, such as those of RFC 5530.
    Named(&'static str),
}

/// `response-tagged = tag SP resp-cond-state CRLF`
pub fn tagged(out: &mut BytesMut, tag: &Tag, status: Status, code: Option<Code<'_>>, text: &str) {
    out.put_slice(tag.as_str().as_bytes());
    out.put_u8(b' ');
    condition(out, status.word(), code, text);
}

/// `"*" SP resp-cond-state CRLF`
pub fn untagged(out: &mut BytesMut, status: Status, code: Option<Code<'_>>, text: &str) {
    out.put_slice(b"* ");
    condition(out, status.word(), code, text);
}

pub fn greeting(out: &mut BytesMut, capabilities: &str, text: &str) {
    untagged(out, Status::Ok, Some(Code::Capability(capabilities)), text);
}

pub fn preauth(out: &mut BytesMut, capabilities: &str, text: &str) {
    out.put_slice(b"* ");
    condition(out, "PREAUTH", Some(Code::Capability(capabilities)), text);
}

pub fn bye(out: &mut BytesMut, code: Option<Code<'_>>, text: &str) {
    out.put_slice(b"* ");
    condition(out, "BYE", code, text);
}

/// `continue-req = "+" SP resp-text CRLF`
pub fn continuation(out: &mut BytesMut, text: &str) {
    out.put_slice(b"+ ");
    put_text(out, text);
    out.put_slice(b"\r\n");
}

/// A SASL challenge: `"+" SP base64 CRLF`, the space being there also before nothing (RFC 3501 §6.2.2).
pub fn challenge(out: &mut BytesMut, octets: &[u8]) {
    out.put_slice(b"+ ");
    out.put_slice(STANDARD.encode(octets).as_bytes());
    out.put_slice(b"\r\n");
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::No => "NO",
            Status::Bad => "BAD",
        }
    }
}

/// `resp-text = ["[" resp-text-code "]" SP] text`
fn condition(out: &mut BytesMut, word: &str, code: Option<Code<'_>>, text: &str) {
    out.put_slice(word.as_bytes());
    out.put_u8(b' ');
    if let Some(code) = code {
        out.put_u8(b'[');
        put_code(out, code);
        out.put_slice(b"] ");
    }
    put_text(out, text);
    out.put_slice(b"\r\n");
}

fn put_code(out: &mut BytesMut, code: Code<'_>) {
    match code {
        Code::Alert => out.put_slice(b"ALERT"),
        Code::BadCharset => out.put_slice(b"BADCHARSET (US-ASCII UTF-8)"),
        Code::Capability(names) => {
            out.put_slice(b"CAPABILITY ");
            put_text(out, names);
        }
        Code::PermanentFlags { flags, new_keywords } => {
            out.put_slice(b"PERMANENTFLAGS ");
            put_flags(out, flags, new_keywords.then_some("\\*"));
        }
        Code::ReadOnly => out.put_slice(b"READ-ONLY"),
        Code::ReadWrite => out.put_slice(b"READ-WRITE"),
        Code::TryCreate => out.put_slice(b"TRYCREATE"),
        Code::UidNext(uid) => put_display(out, format_args!("UIDNEXT {uid}")),
        Code::UidValidity(validity) => put_display(out, format_args!("UIDVALIDITY {validity}")),
        Code::Unseen(seq) => put_display(out, format_args!("UNSEEN {seq}")),
        Code::AppendUid { validity, uids } => put_display(out, format_args!("APPENDUID {validity} {uids}")),
        Code::CopyUid { validity, from, to } => put_display(out, format_args!("COPYUID {validity} {from} {to}")),
        Code::HighestModSeq(modseq) => put_display(out, format_args!("HIGHESTMODSEQ {modseq}")),
        Code::NoModSeq => out.put_slice(b"NOMODSEQ"),
        Code::Modified(numbers) => put_display(out, format_args!("MODIFIED {numbers}")),
        Code::TooBig => out.put_slice(b"TOOBIG"),
        Code::UseAttr => out.put_slice(b"USEATTR"),
        Code::Named(name) => put_atom(out, name),
    }
}
