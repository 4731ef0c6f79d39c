//! Finds the parts of a message in one pass over its lines, without recursion: the work is linear in the octets, and
//! depth and number of parts are bounded.
//!
//! ```text
//!            ┌──────────── empty line: multipart ───────────► Body (preamble) ──┐
//!  begin ─► Header ─────── empty line: leaf ────────────────► Body              │ delimiter of an open multipart
//!            ▲  │                                                               │
//!            │  └───────── empty line: message/rfc822 ─► begin                  │
//!            └──────────────────────────────────────────────────────────────────┘
//! ```

use std::collections::HashMap;

use crate::limits::{BOUNDARY_OCTETS_MAX, DEPTH_MAX, PARTS_MAX};
use crate::lines::{break_len, count_lf, line_end, without_break};
use crate::mime::Mime;
use crate::part::{Encoding, Part, PartKind};

/// A part with what is needed once, to render it.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    pub part: Part,
    pub mime: Mime<'a>,
    /// Line breaks in the body.
    pub lines: u64,
}

/// The tree in pre-order, at least one node, and the charsets that it names.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    pub nodes: Vec<Node<'a>>,
    pub charsets: Vec<String>,
}

pub(crate) fn scan(raw: &[u8]) -> Tree<'_> {
    let mut scan = Scan {
        raw,
        tree: Tree { nodes: Vec::new(), charsets: Vec::new() },
        open: Vec::new(),
        boundaries: HashMap::new(),
        in_header: None,
        lines: 0,
        charset_numbers: HashMap::new(),
    };
    scan.run();
    scan.tree
}

/// A part whose end has not been seen.
struct Open {
    node: usize,
    /// Line breaks before its body.
    lines_before: u64,
    /// For a multipart that still expects parts.
    boundary: Option<Vec<u8>>,
    is_digest: bool,
    has_children: bool,
}

struct Scan<'a> {
    raw: &'a [u8],
    tree: Tree<'a>,
    open: Vec<Open>,
    /// Boundary to the open multiparts that use it, innermost last. A look-up, so that a line costs the same at any
    /// depth.
    boundaries: HashMap<Vec<u8>, Vec<usize>>,
    /// The node whose header is being read, and whether it stands in a multipart/digest.
    in_header: Option<(usize, bool)>,
    /// Line breaks so far.
    lines: u64,
    charset_numbers: HashMap<String, u32>,
}

impl<'a> Scan<'a> {
    fn run(&mut self) {
        let mut at = 0;
        self.begin(0, false);
        while at < self.raw.len() {
            if self.in_header.is_none() && self.boundaries.is_empty() {
                self.lines += count_lf(self.raw.get(at..).unwrap_or_default());
                break;
            }
            let end = line_end(self.raw, at);
            let whole = self.raw.get(at..end).unwrap_or_default();
            let line = without_break(whole);
            let delimiter = self.delimiter(line);
            let line_breaks = u64::from(whole.len() > line.len());
            if let Some((multipart, is_last)) = delimiter {
                // A header without an empty line has an empty body; if it is a message's, so has what is in it.
                while self.in_header.is_some() {
                    self.body_begins(at);
                }
                self.close_above(multipart, at);
                self.lines += line_breaks;
                if is_last {
                    self.forget_boundary(multipart);
                } else if line_breaks > 0 {
                    self.begin_in(multipart, end);
                }
            } else {
                self.lines += line_breaks;
                if self.in_header.is_some() && line.is_empty() {
                    self.body_begins(end);
                }
            }
            at = end;
        }
        // The message ends amid a header, or a message/rfc822 begins where it ends.
        while self.in_header.is_some() {
            self.body_begins(self.raw.len());
        }
        while !self.open.is_empty() {
            self.close_last(self.raw.len(), 0);
        }
    }

    /// RFC 2046 §5.1.1: `delimiter := "--" boundary *LWSP`, the last one with "--" after the boundary. The whole line
    /// must match, so that a boundary that begins like another is not taken for it. Of two open multiparts with the
    /// same boundary the inner one has it.
    fn delimiter(&self, line: &[u8]) -> Option<(usize, bool)> {
        let text = line.strip_prefix(b"--")?;
        if self.boundaries.is_empty() {
            return None;
        }
        let text = text.trim_ascii_end();
        if text.len() > BOUNDARY_OCTETS_MAX + 2 {
            return None;
        }
        let innermost = |boundary: &[u8]| self.boundaries.get(boundary).and_then(|open| open.last()).copied();
        innermost(text)
            .map(|multipart| (multipart, false))
            .or_else(|| text.strip_suffix(b"--").and_then(innermost).map(|multipart| (multipart, true)))
    }

    /// A part begins at `start`, below the innermost open one.
    fn begin(&mut self, start: usize, in_digest: bool) {
        let start = start as u64;
        self.in_header = Some((self.tree.nodes.len(), in_digest));
        self.tree.nodes.push(Node {
            part: Part {
                depth: self.open.len(),
                kind: PartKind::Leaf,
                header_start: start,
                body_start: start,
                end: start,
                is_text: true,
                encoding: Encoding::Identity,
                charset: None,
            },
            mime: Mime::plain_text(),
            lines: 0,
        });
    }

    fn begin_in(&mut self, multipart: usize, start: usize) {
        let room = self.tree.nodes.len() < PARTS_MAX;
        if let Some(open) = self.open.get_mut(multipart)
            && room
        {
            open.has_children = true;
            let is_digest = open.is_digest;
            self.begin(start, is_digest);
        }
    }

    /// The header that is being read ends at `body_start`: decides what the part is.
    fn body_begins(&mut self, body_start: usize) {
        let room = self.open.len() < DEPTH_MAX && self.tree.nodes.len() < PARTS_MAX;
        let Some((at, in_digest)) = self.in_header.take() else { return };
        let Some(node) = self.tree.nodes.get_mut(at) else { return };
        let start = usize::try_from(node.part.header_start).unwrap_or(usize::MAX);
        let mut mime = Mime::read(self.raw.get(start..body_start).unwrap_or_default(), in_digest);
        let encoding = mime.transfer_encoding();
        let kind = if mime.is_multipart() {
            PartKind::Multipart
        } else if mime.is("message", "rfc822") && encoding == Encoding::Identity {
            PartKind::Message
        } else {
            PartKind::Leaf
        };
        // Too deep, too many, or an encoded message (against RFC 2046 §5.2.1), whose parts have no offsets here: shown
        // as something to save, because IMAP has no form for these types without their content's structure.
        let opaque = (kind != PartKind::Leaf && !room) || (kind == PartKind::Leaf && mime.is("message", "rfc822"));
        let kind = if opaque { PartKind::Leaf } else { kind };
        if opaque {
            mime.become_opaque();
        }
        let boundary = if kind == PartKind::Multipart { mime.boundary() } else { None };
        if let Some(boundary) = &boundary {
            self.boundaries.entry(boundary.clone()).or_default().push(self.open.len());
        }
        node.part.kind = kind;
        node.part.body_start = body_start as u64;
        node.part.encoding = encoding;
        node.part.is_text = kind == PartKind::Leaf && mime.is_text();
        if node.part.is_text {
            node.part.charset = mime.charset().map(|name| {
                let next = self.charset_numbers.len() as u32;
                *self.charset_numbers.entry(name).or_insert_with_key(|name| {
                    self.tree.charsets.push(name.clone());
                    next
                })
            });
        }
        let is_digest = mime.is("multipart", "digest");
        node.mime = mime;
        self.open.push(Open { node: at, lines_before: self.lines, boundary, is_digest, has_children: false });
        if kind == PartKind::Message {
            self.begin(body_start, false);
        }
    }

    /// Ends what is open within the multipart, at the delimiter line that begins at `line`.
    fn close_above(&mut self, multipart: usize, line: usize) {
        let line_break = break_len(self.raw.get(..line).unwrap_or_default());
        while self.open.len() > multipart + 1 {
            self.close_last(line - line_break, line_break);
        }
    }

    /// `line_break`: octets of the line break after `end`, which belongs to a delimiter.
    fn close_last(&mut self, end: usize, line_break: usize) {
        let last_end = self.tree.nodes.last().map_or(0, |node| node.part.end);
        let last = self.tree.nodes.len() - 1;
        let Some(open) = self.open.last() else { return };
        let (at, lines_before, childless) = (open.node, open.lines_before, !open.has_children);
        self.forget_boundary(self.open.len() - 1);
        self.open.pop();
        let Some(node) = self.tree.nodes.get_mut(at) else { return };
        let part = &mut node.part;
        // A part without an empty line ends after its parent's text would: the parent is stretched to hold it.
        part.end = part.body_start.max(end as u64);
        if at < last {
            part.end = part.end.max(last_end);
        }
        let own_break = u64::from(line_break > 0 && part.end == end as u64);
        node.lines = if part.end > part.body_start { self.lines.saturating_sub(lines_before + own_break) } else { 0 };
        if part.kind == PartKind::Multipart && childless {
            // RFC 3501 §9 has no form for a multipart without parts: its text is shown as its one part.
            let text = Part {
                depth: part.depth + 1,
                kind: PartKind::Leaf,
                header_start: part.body_start,
                is_text: true,
                encoding: Encoding::Identity,
                charset: None,
                ..*part
            };
            let lines = node.lines;
            self.tree.nodes.push(Node { part: text, mime: Mime::plain_text(), lines });
        }
    }

    /// After the closing delimiter nothing is a delimiter of this multipart any more: the rest is its epilogue.
    fn forget_boundary(&mut self, multipart: usize) {
        let Some(boundary) = self.open.get_mut(multipart).and_then(|open| open.boundary.take()) else { return };
        if let Some(open) = self.boundaries.get_mut(&boundary) {
            open.retain(|&other| other != multipart);
            if open.is_empty() {
                self.boundaries.remove(&boundary);
            }
        }
    }
}
