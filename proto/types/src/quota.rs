//! What an account holds, and what it may hold.

/// What an account holds, or what is to be added to it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// RFC822.SIZE of all its messages together, whether or not they share a body.
    pub octets: u64,
    pub messages: u64,
}

/// What an account may hold, the limit itself included; `None` is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Quota {
    pub octets: Option<u64>,
    pub messages: Option<u64>,
}

impl Quota {
    pub const NONE: Quota = Quota { octets: None, messages: None };

    /// Whether what holds `used` may take `more`. One that is above a limit already, since that was lowered, may take
    /// nothing that counts against it.
    pub fn has_room(self, used: Usage, more: Usage) -> bool {
        let fits = |max: Option<u64>, used: u64, more: u64| {
            more == 0 || max.is_none_or(|max| used.checked_add(more).is_some_and(|sum| sum <= max))
        };
        fits(self.octets, used.octets, more.octets) && fits(self.messages, used.messages, more.messages)
    }
}

#[cfg(test)]
mod tests {
    use super::{Quota, Usage};

    #[test]
    fn the_last_octet_and_the_last_message_fit_and_no_more() {
        let usage = |octets, messages| Usage { octets, messages };
        let quota = Quota { octets: Some(10), messages: Some(2) };
        assert!(quota.has_room(usage(4, 1), usage(6, 1)));
        assert!(!quota.has_room(usage(4, 1), usage(7, 1)));
        assert!(!quota.has_room(usage(4, 2), usage(1, 1)));
        assert!(!quota.has_room(usage(u64::MAX, 0), usage(u64::MAX, 1)));
        assert!(Quota::NONE.has_room(usage(u64::MAX, u64::MAX), usage(1, 1)));
        assert!(!Quota { octets: Some(0), messages: None }.has_room(usage(0, 0), usage(1, 1)));
        // Above both limits: what adds nothing is let through.
        assert!(quota.has_room(usage(20, 5), usage(0, 0)));
    }
}
