//! How much each node should hold: shares in proportion to weight, as far as the bounds allow.
//!
//! A node holds a shard at most once, and a zone holds at most its due of each shard. Where such a bound keeps
//! somebody below their proportion, the others share what is left in proportion to their weights (progressive
//! filling). Exact, in integers: equal input gives equal shares on every machine.

/// A node as the shares see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub weight: u32,
    /// Index of the zone.
    pub zone: usize,
    /// The most that it can hold.
    pub most: u32,
}

/// The whole numbers around a fair share. Counts within the bands of all nodes always exist that add up to the total.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Band {
    pub low: u32,
    pub high: u32,
}

impl Band {
    pub fn middle(self) -> f64 {
        f64::from(self.low) / 2.0 + f64::from(self.high) / 2.0
    }
}

/// A ratio; `den` is not 0.
#[derive(Clone, Copy)]
struct Ratio {
    num: u64,
    den: u64,
}

impl Ratio {
    fn less_than(self, other: Ratio) -> bool {
        u128::from(self.num) * u128::from(other.den) < u128::from(other.num) * u128::from(self.den)
    }

    /// The share of a weight at this level.
    fn band(self, weight: u32) -> Band {
        let (num, den) = (u128::from(self.num) * u128::from(weight), u128::from(self.den));
        let whole = |number: u128| u32::try_from(number).unwrap_or(u32::MAX);
        Band { low: whole(num / den), high: whole(num.div_ceil(den)) }
    }
}

/// Who is full first when all are filled in proportion to weight.
#[derive(Clone, Copy)]
enum Full {
    Node(usize),
    Zone(usize),
    /// Nobody: the total is shared out before.
    Total,
}

/// Shares of `total` among the claims. `zone_most` bounds what a zone holds in all. `total` is not above what all
/// together can hold; if it were, everybody would be full.
pub(crate) fn bands(total: u64, claims: &[Claim], zone_most: Option<u64>) -> Vec<Band> {
    let zones = claims.iter().map(|claim| claim.zone + 1).max().unwrap_or_default();
    let mut bands: Vec<Option<Band>> = vec![None; claims.len()];
    let mut given = 0u64;
    let mut given_in_zone = vec![0u64; zones];
    loop {
        let mut weight = 0u64;
        let mut weight_in_zone = vec![0u64; zones];
        for (claim, _) in claims.iter().zip(&bands).filter(|(_, band)| band.is_none()) {
            weight += u64::from(claim.weight);
            weight_in_zone[claim.zone] += u64::from(claim.weight);
        }
        if weight == 0 {
            break;
        }
        let mut level = Ratio { num: total.saturating_sub(given), den: weight };
        let mut full = Full::Total;
        for (node, claim) in claims.iter().enumerate().filter(|(node, _)| bands[*node].is_none()) {
            let at = Ratio { num: u64::from(claim.most), den: u64::from(claim.weight.max(1)) };
            if at.less_than(level) {
                (level, full) = (at, Full::Node(node));
            }
        }
        for zone in (0..zones).filter(|zone| weight_in_zone[*zone] > 0) {
            let Some(most) = zone_most else { break };
            let at = Ratio { num: most.saturating_sub(given_in_zone[zone]), den: weight_in_zone[zone] };
            if at.less_than(level) {
                (level, full) = (at, Full::Zone(zone));
            }
        }
        match full {
            Full::Node(node) => {
                let most = claims[node].most;
                bands[node] = Some(Band { low: most, high: most });
                given += u64::from(most);
                given_in_zone[claims[node].zone] += u64::from(most);
            }
            Full::Zone(zone) => {
                let most = zone_most.unwrap_or_default();
                given += most.saturating_sub(given_in_zone[zone]);
                given_in_zone[zone] = most;
                settle(&mut bands, claims, level, |claim| claim.zone == zone);
            }
            Full::Total => settle(&mut bands, claims, level, |_| true),
        }
    }
    bands.into_iter().map(Option::unwrap_or_default).collect()
}

fn settle(bands: &mut [Option<Band>], claims: &[Claim], level: Ratio, concerned: impl Fn(&Claim) -> bool) {
    for (band, claim) in bands.iter_mut().zip(claims).filter(|(band, claim)| band.is_none() && concerned(claim)) {
        let share = level.band(claim.weight);
        *band = Some(Band { low: share.low.min(claim.most), high: share.high.min(claim.most) });
    }
}

#[cfg(test)]
mod tests {
    use super::{Band, Claim, bands};

    fn claims(weights: &[(u32, usize)], most: u32) -> Vec<Claim> {
        weights.iter().map(|&(weight, zone)| Claim { weight, zone, most }).collect()
    }

    fn pairs(bands: Vec<Band>) -> Vec<(u32, u32)> {
        bands.into_iter().map(|band| (band.low, band.high)).collect()
    }

    #[test]
    fn shares_follow_the_weights() {
        assert_eq!(pairs(bands(16, &claims(&[(1, 0), (1, 0), (2, 0)], 16), None)), [(4, 4), (4, 4), (8, 8)]);
        assert_eq!(pairs(bands(16, &claims(&[(1, 0), (1, 0), (1, 0)], 16), None)), [(5, 6); 3]);
        assert!(bands(16, &[], None).is_empty());
    }

    #[test]
    fn a_heavy_node_holds_each_shard_once_and_the_others_share_the_rest() {
        // 10 shards of 3 replicas: the heavy node would be due 20.
        let shares = pairs(bands(30, &claims(&[(8, 0), (1, 0), (1, 0), (2, 0)], 10), None));
        assert_eq!(shares, [(10, 10), (5, 5), (5, 5), (10, 10)]);
    }

    #[test]
    fn a_small_zone_is_filled_and_the_others_share_the_rest() {
        // 12 shards of 2 replicas in distinct zones: the lone node of zone 0 gets one of each at most.
        let shares = pairs(bands(24, &claims(&[(4, 0), (1, 1), (1, 1), (1, 2)], 12), Some(12)));
        assert_eq!(shares, [(12, 12), (4, 4), (4, 4), (4, 4)]);
        let shares = pairs(bands(24, &claims(&[(1, 0), (1, 1), (1, 1), (1, 1), (1, 1)], 12), Some(12)));
        assert_eq!(shares, [(12, 12), (3, 3), (3, 3), (3, 3), (3, 3)]);
    }
}
