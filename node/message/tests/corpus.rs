//! Every message of the corpus: what is rendered is valid, and the parts lie where they must.

mod common;

use std::collections::HashMap;

use common::{check_body, check_envelope, corpus, read};
use imap_codec::ResponseCodec;
use imap_codec::decode::Decoder;
use message::{Digest, Needle, PartKind, Section, SectionText, body_contains, header_values, text_contains};

#[test]
fn envelopes_and_structures_are_valid() {
    for (name, raw) in corpus() {
        println!("{name}");
        let digest = Digest::of(&raw);
        check_envelope(&read(&digest.envelope));
        let shown = check_body(&read(&digest.body_structure), true);
        assert_eq!(shown, digest.parts.len(), "{name}: each part is shown");
        assert_eq!(check_body(&read(&digest.body()), false), shown, "{name}");
        assert_eq!(digest.size, raw.len() as u64);
        assert_eq!(Digest::decode(&digest.encode()).as_ref(), Ok(&digest), "{name}");
    }
}

#[test]
fn another_reader_of_imap_agrees() {
    for (name, raw) in corpus() {
        let digest = Digest::of(&raw);
        // Nests bodies to eight levels only.
        if digest.parts.iter().any(|part| part.depth > 6) {
            continue;
        }
        for (item, value) in
            [("ENVELOPE", &digest.envelope), ("BODYSTRUCTURE", &digest.body_structure), ("BODY", &digest.body())]
        {
            let response = [format!("* 1 FETCH ({item} ").as_bytes(), value, b")\r\n"].concat();
            match ResponseCodec::default().decode(&response) {
                Ok((rest, _)) => assert!(rest.is_empty(), "{name}: {item}"),
                Err(error) => panic!("{name}: {item}: {error:?}\n{}", String::from_utf8_lossy(&response)),
            }
        }
    }
}

#[test]
fn parts_lie_within_their_parents_and_between_delimiters() {
    for (name, raw) in corpus() {
        let digest = Digest::of(&raw);
        let octets = |at: std::ops::Range<u64>| &raw[at.start as usize..at.end as usize];
        let mut open: Vec<usize> = Vec::new();
        // Where the last child of each open part ended.
        let mut ends: HashMap<usize, u64> = HashMap::new();
        for (at, part) in digest.parts.iter().enumerate() {
            open.truncate(part.depth);
            assert!(part.header_start <= part.body_start && part.body_start <= part.end, "{name}");
            let Some(&parent_at) = open.last() else {
                assert_eq!((at, part.header_start, part.end), (0, 0, digest.size), "{name}");
                open.push(at);
                continue;
            };
            let parent = &digest.parts[parent_at];
            assert!(parent.body_start <= part.header_start && part.end <= parent.end, "{name}: part {at}");
            let before = ends.insert(parent_at, part.end).unwrap_or(parent.body_start);
            assert!(before <= part.header_start, "{name}: part {at} overlaps its sibling");
            let is_placeholder = part.header().is_empty() && part.body() == parent.body();
            if parent.kind == PartKind::Multipart && !is_placeholder {
                // A delimiter line stands before the part, and after it unless the parent ends there.
                let above = octets(parent.body_start..part.header_start);
                let above = above.strip_suffix(b"\n").expect("a delimiter line ends");
                let line = above.rsplit(|&byte| byte == b'\n').next().unwrap();
                assert!(line.starts_with(b"--"), "{name}: part {at}");
                let below = octets(part.end..parent.end);
                let below = below.strip_prefix(b"\r\n").or(below.strip_prefix(b"\n")).unwrap_or(below);
                assert!(below.is_empty() || below.starts_with(b"--"), "{name}: part {at}");
                let is_leaf = part.kind == PartKind::Leaf;
                assert!(!is_leaf || !octets(part.body()).starts_with(line), "{name}: part {at}");
            }
            open.push(at);
        }
        // Each part has a path, and its path leads to it.
        let mut numbers: Vec<u32> = vec![0];
        let mut path: Vec<u32> = Vec::new();
        let mut parents: Vec<PartKind> = Vec::new();
        for part in &digest.parts {
            numbers.truncate(part.depth + 1);
            parents.truncate(part.depth);
            path.truncate(numbers.len().saturating_sub(1));
            *numbers.last_mut().unwrap() += 1;
            // A multipart that is a message's own body has no number of its own.
            let in_message = parents.last().is_none_or(|kind| *kind == PartKind::Message);
            let numbered = !(in_message && part.kind == PartKind::Multipart);
            path.push(if !numbered {
                0
            } else if in_message {
                1
            } else {
                numbers[part.depth]
            });
            let real: Vec<u32> = path.iter().copied().filter(|number| *number > 0).collect();
            if numbered {
                assert_eq!(digest.section(&real, &SectionText::Full), Some(Section::Octets(part.body())), "{name}");
                assert_eq!(digest.section(&real, &SectionText::Mime), Some(Section::Octets(part.header())), "{name}");
            }
            numbers.push(0);
            parents.push(part.kind);
        }
    }
}

#[test]
fn searches_find_what_is_there() {
    let nowhere = Needle::new("zq\u{fc}-nowhere-\u{1f600}");
    for (name, raw) in corpus() {
        let digest = Digest::of(&raw);
        assert!(!text_contains(&raw, &digest, &nowhere), "{name}");
        let header = &raw[..digest.header().end as usize];
        for subject in header_values(header, "subject") {
            assert!(text_contains(&raw, &digest, &Needle::new(&subject)), "{name}: {subject}");
        }
        // A message in plain ASCII is found by its own first words.
        let is_7bit_charset = |value: String| value.to_ascii_lowercase().contains("utf-7") || value.contains("2022");
        let plain = digest.parts.len() == 1
            && raw.is_ascii()
            && digest.parts[0].is_text
            && !header_values(header, "content-type").any(is_7bit_charset);
        if plain && digest.parts[0].encoding == message::Encoding::Identity {
            let body = String::from_utf8_lossy(&raw[digest.parts[0].body_start as usize..]);
            let words: String = body.chars().take(40).collect();
            assert!(body_contains(&raw, &digest, &Needle::new(&words)), "{name}: {words}");
        }
    }
}

#[test]
fn digests_of_usual_mail_are_small() {
    let mut sizes: Vec<usize> = corpus()
        .into_iter()
        .filter(|(_, raw)| (3_000..5_000).contains(&raw.len()))
        .map(|(_, raw)| Digest::of(&raw).encode().len())
        .collect();
    sizes.sort_unstable();
    if let Some(median) = sizes.get(sizes.len() / 2) {
        println!("median {median}, largest {:?}, of {}", sizes.last(), sizes.len());
        assert!(*median < 1024);
    }
}
