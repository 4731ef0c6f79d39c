//! LIST and LSUB patterns (RFC 3501 §6.3.8): `*` stands for anything, `%` for anything without the separator.

/// A pattern made once and held against many names.
#[derive(Clone, Debug)]
pub struct Pattern {
    tokens: Vec<Token>,
    /// Octets that a name needs at least; none shorter can match.
    literal_octets: usize,
    separator: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    Octet(u8),
    /// `%`
    WithinLevel,
    /// `*`
    Anything,
}

impl Pattern {
    /// The reference is put before the pattern as it is; both in UTF-8. `separator` is ASCII.
    pub fn new(reference: &str, pattern: &str, separator: char) -> Pattern {
        let mut tokens: Vec<Token> = Vec::with_capacity(pattern.len());
        tokens.extend(reference.bytes().map(Token::Octet));
        for octet in pattern.bytes() {
            let token = match octet {
                b'*' => Token::Anything,
                b'%' => Token::WithinLevel,
                octet => Token::Octet(octet),
            };
            // A run of wildcards says no more than its strongest, so at most every second token is one.
            match (tokens.last_mut(), token) {
                (Some(Token::Anything), Token::Anything | Token::WithinLevel)
                | (Some(Token::WithinLevel), Token::WithinLevel) => {}
                (Some(last @ Token::WithinLevel), Token::Anything) => *last = Token::Anything,
                _ => tokens.push(token),
            }
        }
        let literal_octets = tokens.iter().filter(|token| matches!(token, Token::Octet(_))).count();
        Pattern { tokens, literal_octets, separator: u8::try_from(separator).unwrap_or(b'/') }
    }

    /// Follows all ways through the pattern at once: time is at most the name's length times the pattern's, and a
    /// pattern with more plain octets than the name is turned down at once. INBOX matches in any case, also as the
    /// first level of a name.
    pub fn matches(&self, name: &str) -> bool {
        if self.literal_octets > name.len() {
            return false;
        }
        let inbox =
            name.split(char::from(self.separator)).next().is_some_and(|level| level.eq_ignore_ascii_case("INBOX"));
        // reached[n]: the first n tokens match the octets so far.
        let mut reached = vec![false; self.tokens.len() + 1];
        let mut next = reached.clone();
        self.reach(&mut reached, 0);
        for (at, octet) in name.bytes().enumerate() {
            next.fill(false);
            for (n, token) in self.tokens.iter().enumerate() {
                if !reached.get(n).is_some_and(|yes| *yes) {
                    continue;
                }
                let same = |o: u8| o == octet || (inbox && at < "INBOX".len() && o.eq_ignore_ascii_case(&octet));
                match token {
                    Token::Octet(o) if same(*o) => self.reach(&mut next, n + 1),
                    Token::Anything => self.reach(&mut next, n),
                    Token::WithinLevel if octet != self.separator => self.reach(&mut next, n),
                    Token::Octet(_) | Token::WithinLevel => {}
                }
            }
            std::mem::swap(&mut reached, &mut next);
        }
        reached.last().is_some_and(|yes| *yes)
    }

    /// Marks `n`, and what follows if the next token may stand for nothing; two wildcards never adjoin.
    fn reach(&self, reached: &mut [bool], n: usize) {
        let may_be_empty = matches!(self.tokens.get(n), Some(Token::Anything | Token::WithinLevel));
        for at in n..=n + usize::from(may_be_empty) {
            if let Some(place) = reached.get_mut(at) {
                *place = true;
            }
        }
    }
}

/// Whether `name` is among what LIST `reference` `pattern` asks for.
pub fn matches(reference: &str, pattern: &str, name: &str, separator: char) -> bool {
    Pattern::new(reference, pattern, separator).matches(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::matches;

    /// The meaning in its plainest words, exponential and all.
    fn model(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => model(rest, name) || !name.is_empty() && model(pattern, &name[1..]),
            (Some((b'%', rest)), _) => {
                model(rest, name) || !name.is_empty() && name[0] != b'/' && model(pattern, &name[1..])
            }
            (Some((p, rest)), Some((n, tail))) => p == n && model(rest, tail),
            _ => false,
        }
    }

    #[test]
    fn percent_stops_at_the_separator_and_star_does_not() {
        assert!(matches("", "*", "a/b/c", '/'));
        assert!(matches("", "%", "a", '/'));
        assert!(!matches("", "%", "a/b", '/'));
        assert!(matches("", "%/%", "a/b", '/'));
        assert!(matches("a/", "%", "a/b", '/'));
        assert!(!matches("a/", "%", "a/b/c", '/'));
        assert!(matches("", "%b*d", "aab/c/d", '/'));
        assert!(!matches("", "", "a", '/'));
        assert!(matches("", "Entw*", "Entwürfe", '/'));
        assert!(matches("", "%.%", "a.b", '.'));
        assert!(!matches("a*", "x", "abx", '/'), "a wildcard in the reference is plain text");
    }

    #[test]
    fn inbox_matches_in_any_case_and_other_names_do_not() {
        assert!(matches("", "inbox", "INBOX", '/'));
        assert!(matches("", "InB%", "INBOX", '/'));
        assert!(matches("", "inbox/%", "INBOX/Sub", '/'));
        assert!(!matches("", "inbox/sub", "INBOX/Sub", '/'));
        assert!(!matches("", "sent", "Sent", '/'));
        assert!(!matches("", "inboxes", "INBOXES", '/'));
    }

    #[test]
    fn a_thousand_wildcards_need_no_more_than_a_walk() {
        let name = "a".repeat(500);
        assert!(!matches("", &("*a".repeat(400) + "b"), &name, '/'));
        assert!(!matches("", &"*a".repeat(1_000), &name, '/'));
        assert!(matches("", &"%*".repeat(30_000), &name, '/'));
        assert!(matches("", &"*a".repeat(500), &name, '/'));
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_plain_definition(
            pattern in proptest::collection::vec(proptest::sample::select(&b"ab/%*"[..]), 0..9),
            name in proptest::collection::vec(proptest::sample::select(&b"ab/"[..]), 0..9),
        ) {
            let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).unwrap();
            assert_eq!(matches("", &text(&pattern), &text(&name), '/'), model(&pattern, &name));
        }
    }
}
