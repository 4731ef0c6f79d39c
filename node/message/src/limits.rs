//! What bounds the work and the size of a digest. Each limit cuts the structure that is shown, never the bytes: the
//! whole message is stored, and BODY[] gives it back whatever these say.

/// Octets of an encoded digest. It travels in the log entry that brings the message, and no entry has more than 512 KiB;
/// what remains is for the recipients. Where the limits below leave more than this, all are lowered by a quarter until they do not.
pub const DIGEST_OCTETS_MAX: usize = 320 * 1024;
/// Levels of multipart and message/rfc822 below the message itself. What nests deeper is shown as one part of
/// application/octet-stream. Dovecot has the same number.
pub const DEPTH_MAX: usize = 100;
/// Nodes in a message's part table, containers included. Parts after the last are left out.
pub const PARTS_MAX: usize = 10_000;
/// Addresses rendered for one field of ENVELOPE; the rest are left out. Real mail stays below a few hundred.
pub const ADDRESSES_MAX: usize = 1_000;
/// Octets of one string in ENVELOPE or BODYSTRUCTURE; longer ones are cut. Well above any subject that people write.
pub const STRING_OCTETS_MAX: usize = 8 * 1024;
/// Octets after which ENVELOPE takes no further address.
pub const ENVELOPE_OCTETS_MAX: usize = 256 * 1024;
/// Octets of parameters, descriptions and nested envelopes after which BODYSTRUCTURE says NIL for what may be NIL.
pub const STRUCTURE_OCTETS_MAX: usize = 512 * 1024;
/// Parameters read from one Content-Type or Content-Disposition field, before RFC 2231 continuations are joined.
pub const PARAMETERS_MAX: usize = 1_000;
/// Octets of a boundary. RFC 2046 §5.1.1 allows 70; some senders go beyond.
pub const BOUNDARY_OCTETS_MAX: usize = 512;
/// Octets of a MIME token (type, subtype, encoding, charset); a longer one counts as broken.
pub const TOKEN_OCTETS_MAX: usize = 127;
/// Message ids kept of a References field: the first, which names the thread, and the last ones.
pub const REFERENCES_MAX: usize = 100;
/// A string of at most so many octets is rendered quoted, a longer one as a literal, so that lines stay short
/// (RFC 2683 §3.2.1.5).
pub const QUOTED_OCTETS_MAX: usize = 1_024;
