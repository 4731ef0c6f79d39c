//! Packets between processes are lost or answered by resets, as switches, cables and firewalls do it: service is slow
//! where they are, elections stay few, other shards do not notice, and nothing that was acknowledged is lost.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::{ClusterOptions, Elections, Fault, Scenario, eventually, in_own_network};

/// Bounds only how long a test waits before it gives up; what it took is printed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Before the fault, to compare with.
const QUIET: Duration = Duration::from_secs(5);
/// Several times what an election takes.
const LASTS: Duration = Duration::from_secs(15);
/// Every fifth packet.
const LOSS: Fault = Fault::Loss(20);
/// Packets that say something on every connection: each group's heartbeats, and the load's calls.
const PACKETS_TO_RESET: u64 = 100;

/// And its rounds.
fn start(seed: u64, rounds: u64) -> Result<(Scenario, u64)> {
    let options = ClusterOptions { routers: 2, own_groups: true, leaders_look_s: Some(0), ..ClusterOptions::default() };
    let (scenario, _, rounds) = Scenario::seeded(options, seed, rounds)?;
    Ok((scenario, rounds))
}

#[test]
fn a_fifth_of_all_packets_lost_makes_mail_slow_and_loses_none() -> Result<()> {
    in_own_network("a_fifth_of_all_packets_lost_makes_mail_slow_and_loses_none", |mut network| {
        let (mut scenario, rounds) = start(81, 1)?;
        for _ in 0..rounds {
            scenario.progress()?;
            let elections = Elections::watch(&scenario.cluster)?;
            network.everywhere(&scenario.cluster, LOSS)?;
            scenario.go_on(LASTS)?;
            println!("every account was served within {:?} while packets are lost", scenario.service_back()?);
            scenario.progress()?;
            println!("{} packets lost; {}", network.met()?, elections.held(&scenario.cluster)?);
            network.heal()?;
            println!("served {:?} after no packet is lost any more", scenario.service_back()?);
        }
        scenario.finish()
    })
}

#[test]
fn packets_lost_around_one_node_do_not_touch_what_others_lead() -> Result<()> {
    in_own_network("packets_lost_around_one_node_do_not_touch_what_others_lead", |mut network| {
        let (mut scenario, rounds) = start(82, 1)?;
        for round in 0..rounds {
            let cluster = &scenario.cluster;
            let mut accounts =
                eventually("leaders are where they should be", PATIENCE, || cluster.accounts_by_leader())?;
            let node = (round % 3) as usize;
            let (here, elsewhere) = (accounts.remove(node), accounts.concat());
            scenario.load.forget_errors();
            scenario.go_on(QUIET)?;
            println!("changes elsewhere before: {}", scenario.load.service.times_of(&elsewhere));

            let elections = Elections::watch(&scenario.cluster)?;
            network.around(&scenario.cluster, &scenario.cluster.nodes[node].name, LOSS)?;
            scenario.load.forget_errors();
            scenario.go_on(LASTS)?;
            let service = &scenario.load.service;
            println!("changes elsewhere meanwhile: {}", service.times_of(&elsewhere));
            println!("changes there: {}, {} errors", service.times_of(&here), service.errors_of(&here));
            let errors = service.errors_of(&elsewhere);
            ensure!(errors == 0, "{errors} errors of accounts that other nodes lead: {elsewhere:?}");
            println!("{} packets lost; {}", network.met()?, elections.held(&scenario.cluster)?);
            network.heal()?;
            println!("served {:?} after no packet is lost any more", scenario.service_back()?);
        }
        scenario.finish()
    })
}

#[test]
fn connections_that_are_reset_are_made_again() -> Result<()> {
    in_own_network("connections_that_are_reset_are_made_again", |mut network| {
        let (mut scenario, rounds) = start(83, 2)?;
        for _ in 0..rounds {
            scenario.progress()?;
            let elections = Elections::watch(&scenario.cluster)?;
            network.everywhere(&scenario.cluster, Fault::Reset)?;
            eventually("connections are reset", PATIENCE, || {
                let met = network.met()?;
                ensure!(met >= PACKETS_TO_RESET, "{met} packets");
                Ok(())
            })?;
            network.heal()?;
            println!("served {:?} after every connection was reset", scenario.service_back()?);
            scenario.progress()?;
            // And those of one node as often as they are made.
            let leader = scenario.cluster.first_leader()?;
            network.around(&scenario.cluster, &scenario.cluster.nodes[leader].name, Fault::Reset)?;
            println!("served {:?} after a leader's connections are reset for good", scenario.service_back()?);
            scenario.progress()?;
            println!("{} packets reset; {}", network.met()?, elections.held(&scenario.cluster)?);
            network.heal()?;
            println!("served {:?} after none is reset any more", scenario.service_back()?);
        }
        scenario.finish()
    })
}
