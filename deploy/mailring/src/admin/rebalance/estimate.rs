//! About how long a plan takes, and what that rests on.

use proto::wire::MoveEstimate;
use serde::Serialize;

use crate::output::{octets, span};

#[derive(Debug, Serialize)]
pub struct Estimate {
    seconds: u64,
    /// Of the slowest node that sends.
    octets_per_s: u64,
    /// All that send went so fast lately; else it is what copies begin with.
    seen: bool,
    /// At the rate that the settings allow.
    seconds_min: u64,
    octets_per_s_max: u64,
}

impl Estimate {
    pub fn of(wire: MoveEstimate) -> Estimate {
        let MoveEstimate { seconds, octets_per_s, seen, seconds_min, octets_per_s_max } = wire;
        Estimate { seconds, octets_per_s, seen, seconds_min, octets_per_s_max }
    }

    pub fn sentence(&self) -> String {
        let rests_on = if self.seen { "as was seen of the last copies" } else { "which copies begin with" };
        let (at, at_most) = (octets(self.octets_per_s), octets(self.octets_per_s_max));
        let about = format!("about {} at {at}/s a node, {rests_on}", span(self.seconds));
        match self.octets_per_s < self.octets_per_s_max {
            true => format!("{about}; {} at the {at_most}/s that move_octets_per_s allows", span(self.seconds_min)),
            false => format!("{about}, and all that move_octets_per_s allows"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::wire::MoveEstimate;

    use super::Estimate;

    #[test]
    fn an_estimate_says_what_it_rests_on() {
        let wire = MoveEstimate {
            seconds: 725,
            octets_per_s: 8 << 20,
            seen: false,
            seconds_min: 47,
            octets_per_s_max: 128 << 20,
        };
        assert_eq!(
            Estimate::of(wire).sentence(),
            "about 12 min at 8.0 MiB/s a node, which copies begin with; 47 s at the 128.0 MiB/s that move_octets_per_s allows"
        );
        let bounded = MoveEstimate { seen: true, octets_per_s_max: 8 << 20, seconds_min: 725, ..wire };
        assert_eq!(
            Estimate::of(bounded).sentence(),
            "about 12 min at 8.0 MiB/s a node, as was seen of the last copies, and all that move_octets_per_s allows"
        );
    }
}
