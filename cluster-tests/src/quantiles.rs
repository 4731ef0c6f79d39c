//! Times that were measured, as the few figures that a reader wants.

use std::fmt;
use std::time::Duration;

/// All zero where nothing was measured, which its text says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quantiles {
    pub count: usize,
    pub p50: Duration,
    pub p99: Duration,
    pub longest: Duration,
}

impl Quantiles {
    /// By the nearest rank: each figure is a time that was measured.
    pub fn of(mut times: Vec<Duration>) -> Quantiles {
        times.sort_unstable();
        let rank = |percent: usize| {
            let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(place).copied().unwrap_or_default()
        };
        Quantiles { count: times.len(), p50: rank(50), p99: rank(99), longest: rank(100) }
    }
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Quantiles { count, p50, p99, longest } = self;
        if *count == 0 {
            return f.write_str("nothing was measured");
        }
        write!(f, "p50 {p50:.1?}, p99 {p99:.1?}, longest {longest:.1?}, of {count}")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Quantiles;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let times = |count: u64| (1..=count).rev().map(Duration::from_secs).collect();
        let figures = |count: u64| {
            let q = Quantiles::of(times(count));
            [q.p50, q.p99, q.longest].map(|t| t.as_secs())
        };
        assert_eq!(figures(1), [1, 1, 1]);
        assert_eq!(figures(4), [2, 4, 4]);
        assert_eq!(figures(100), [50, 99, 100]);
        assert_eq!(figures(1000), [500, 990, 1000]);
        assert_eq!(Quantiles::of(Vec::new()).to_string(), "nothing was measured");
    }
}
