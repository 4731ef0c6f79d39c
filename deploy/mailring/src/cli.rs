//! The command line: `mailring NOUN VERB`. Only what is built stands here.

mod ca;
mod mail;
mod quota;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use ca::{CaVerb, Role};
pub use mail::{AccountVerb, AliasVerb, DomainVerb};
pub use quota::QuotaVerb;

const CONTENTS: &str = "\
Run a role, from the TOML file in --config:
  node                                     store mail: replicas of shards and of the directory
  router                                   speak SMTP, POP3 and IMAP to mail clients
  single                                   both in one process, for one machine

Look:
  status                                   health at a glance
  node     list|safe-to-stop               the nodes, whether they answer, and whether one may stop
  shard    list|show|move                  the shards, their leaders and replicas; another node for one of these
  volume   list|replace|resilver           the nodes' disks, and lost halves of mirrors made anew
  scrub                                    read everything, compare all copies, mend what can be mended

Grow and shrink, while mail flows:
  node     join|drain|remove               take shards onto a node, away from it, and let it go
  rebalance plan|apply|status|pause|resume|abort
                                           what would move, and what moves

Administer, with the admin's TOML file in --config:
  domain   add|list|show|remove            the domains whose mail is delivered here
  account  add|list|show|set|remove|import the owners of mailboxes
  account  move                            a heavy one to another shard, while mail flows
  alias    add|list|remove                 names that stand for accounts
  quota    set|show                        what an account may hold, and what it holds

Make certificates, without a cluster:
  ca       create|issue|issue-server       the cluster's own certificate authority

mailring help NOUN, mailring NOUN VERB --help tell more.
Exit codes: 0 done, 1 refused or degraded, 2 wrong usage or settings, 3 cluster not reached.";

/// A clustered mailstore.
#[derive(Parser, Debug)]
#[command(name = "mailring", version, subcommand_required = true, arg_required_else_help = true)]
#[command(
    help_template = "{about}\n\n{usage-heading} mailring NOUN [VERB] [OPTIONS]{after-help}\n\nOptions:\n{options}"
)]
#[command(after_help = CONTENTS)]
pub struct Cli {
    /// Settings: of the role to run, or of how to reach the cluster
    #[arg(long, global = true, env = "MAILRING_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a storage node (without a verb), or look at the cluster's nodes
    Node(NodeCommand),
    /// Run a protocol router
    Router(RoleCommand),
    /// Run node and router in one process
    Single(RoleCommand),
    /// Health at a glance; exits with 1 if anything is degraded
    Status(OutputArgs),
    /// Domains whose mail is delivered here
    #[command(arg_required_else_help = true)]
    Domain {
        #[command(subcommand)]
        verb: DomainVerb,
    },
    /// Owners of mailboxes
    #[command(arg_required_else_help = true)]
    Account {
        #[command(subcommand)]
        verb: AccountVerb,
    },
    /// Names that stand for accounts
    #[command(arg_required_else_help = true)]
    Alias {
        #[command(subcommand)]
        verb: AliasVerb,
    },
    /// What accounts may hold
    #[command(arg_required_else_help = true)]
    Quota {
        #[command(subcommand)]
        verb: QuotaVerb,
    },
    /// Slices of the account space
    #[command(arg_required_else_help = true)]
    Shard {
        #[command(subcommand)]
        verb: ShardVerb,
    },
    /// Shards that move between nodes
    #[command(arg_required_else_help = true)]
    Rebalance {
        #[command(subcommand)]
        verb: RebalanceVerb,
    },
    /// The nodes' volumes: disks, or mirrored pairs of disks
    #[command(arg_required_else_help = true)]
    Volume {
        #[command(subcommand)]
        verb: VolumeVerb,
    },
    /// Read every record of every volume, compare halves and replicas, and mend what a good copy can mend
    ///
    /// Mail flows meanwhile. Exits with 1 if something is wrong that is not being mended.
    Scrub {
        /// Only this shard
        #[arg(long)]
        shard: Option<u32>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// The cluster's own certificate authority, in a directory of files
    #[command(arg_required_else_help = true)]
    Ca {
        #[command(subcommand)]
        verb: CaVerb,
    },
}

#[derive(Args, Debug)]
pub struct RoleCommand {}

#[derive(Args, Debug)]
pub struct NodeCommand {
    #[command(subcommand)]
    pub verb: Option<NodeVerb>,
}

#[derive(Args, Clone, Copy, Debug)]
pub struct OutputArgs {
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand, Debug)]
pub enum NodeVerb {
    /// The nodes that the directory knows, and whether they answer
    List(OutputArgs),
    /// Take its share of shards onto a node that runs and has made itself known, or that was draining
    Join(JoinArgs),
    /// Take all shards away from a node, and its vote in the directory
    Drain(PlaceArgs),
    /// Forget a node that has been drained; its data directory cannot come back
    Remove {
        /// The node's name
        node: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Whether everything goes on without a node; exits with 1 if not, and says why
    SafeToStop {
        /// The node's name
        node: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Args, Debug)]
pub struct PlaceArgs {
    /// The node's name
    pub node: String,
    /// Move nothing yet: `mailring rebalance apply` does
    #[arg(long)]
    pub no_rebalance: bool,
    #[command(flatten)]
    pub watch: WatchArgs,
}

#[derive(Args, Debug)]
pub struct JoinArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// What fails together with it; as its own settings say unless given
    #[arg(long)]
    pub zone: Option<String>,
    /// Its share relative to other nodes' weights; as its own settings say unless given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub weight: Option<u32>,
}

#[derive(Args, Clone, Copy, Debug)]
pub struct WatchArgs {
    /// Wait until everything has moved, and tell how far it is
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Subcommand, Debug)]
pub enum RebalanceVerb {
    /// What would move to even out the nodes' shares; changes nothing
    Plan(OutputArgs),
    /// Move it
    Apply(WatchArgs),
    /// What moves, how far it is, and what is left
    Status {
        /// Go on telling until everything has moved
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Copy nothing and change no replica until resumed
    Pause(OutputArgs),
    /// Go on
    Resume(OutputArgs),
    /// Move nothing more, and undo the moves that are under way; a node that was on its way out stays draining
    Abort(OutputArgs),
}

#[derive(Subcommand, Debug)]
pub enum ShardVerb {
    /// Every shard with its leader, replicas and size
    List(OutputArgs),
    /// Move one of a shard's replicas to another node
    Move {
        shard: u32,
        /// The node that has it
        #[arg(long)]
        from: String,
        /// The node that is to have it
        #[arg(long)]
        to: String,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// One shard, replica by replica
    Show {
        shard: u32,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Subcommand, Debug)]
pub enum VolumeVerb {
    /// Every disk of every node, and how it is
    List(OutputArgs),
    /// Take an empty directory in the place of a lost disk, and fill it from the other half while mail flows
    ///
    /// For a volume without a mirror: make it anew, empty; its replicas come back from the other nodes.
    Replace(HalfArgs),
    /// Make a half that is not in use, or is damaged, anew from the other one, whatever its disk holds
    Resilver(HalfArgs),
}

#[derive(Args, Debug)]
pub struct HalfArgs {
    /// The node's name
    pub node: String,
    /// The volume's place in the node's settings, from 1
    #[arg(default_value_t = 1)]
    pub volume: u32,
    /// The half; the one that is not in use unless given
    #[arg(long)]
    pub half: Option<HalfLetter>,
    /// Wait until the volume is whole again, and tell how far it is
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum HalfLetter {
    A,
    B,
}

impl std::fmt::Display for HalfLetter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            HalfLetter::A => "a",
            HalfLetter::B => "b",
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{CONTENTS, Cli, Command, NodeCommand};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_lists_every_noun_and_verb_and_no_other() {
        let line_of = |noun: &str| {
            let own = |line: &&str| line.split_whitespace().next() == Some(noun) && line.starts_with("  ");
            CONTENTS.lines().filter(own).map(str::to_owned).collect::<Vec<_>>()
        };
        let mut verbs_listed = 0;
        for noun in Cli::command().get_subcommands() {
            let lines = line_of(noun.get_name());
            assert!(!lines.is_empty(), "{} is not in the table of contents", noun.get_name());
            let verbs: Vec<&str> = noun.get_subcommands().map(|verb| verb.get_name()).collect();
            // A noun may have several lines, each with some of its verbs.
            let told: Vec<&str> = lines
                .iter()
                .filter_map(|line| line.split_whitespace().nth(1))
                .filter(|told| told.contains('|') || verbs.contains(told))
                .flat_map(|verbs| verbs.split('|'))
                .collect();
            assert!(verbs.iter().all(|verb| told.contains(verb)), "{}: {verbs:?} against {lines:?}", noun.get_name());
            assert!(verbs.is_empty() || told.len() == verbs.len(), "{}: {told:?}", noun.get_name());
            verbs_listed += usize::from(!verbs.is_empty());
        }
        assert_eq!(verbs_listed, 9);
    }

    #[test]
    fn every_command_that_prints_takes_json() {
        const ROLES: [&str; 2] = ["router", "single"];
        let cli = Cli::command();
        let mut checked = 0;
        for noun in cli.get_subcommands().filter(|noun| !ROLES.contains(&noun.get_name())) {
            let verbs: Vec<_> = noun.get_subcommands().collect();
            for command in if verbs.is_empty() { vec![noun] } else { verbs } {
                let takes_json = command.get_arguments().any(|argument| argument.get_long() == Some("json"));
                assert!(takes_json, "{} {}", noun.get_name(), command.get_name());
                checked += 1;
            }
        }
        assert_eq!(checked, 38);
    }

    #[test]
    fn node_is_a_role_without_a_verb_and_a_noun_with_one() {
        let role = Cli::try_parse_from(["mailring", "node", "--config", "n.toml"]).unwrap();
        assert!(matches!(role.command, Command::Node(NodeCommand { verb: None })));
        assert_eq!(role.config.unwrap().to_str(), Some("n.toml"));
        let noun = Cli::try_parse_from(["mailring", "node", "list", "--json", "--config", "a.toml"]).unwrap();
        assert!(matches!(noun.command, Command::Node(NodeCommand { verb: Some(_) })));
    }

    #[test]
    fn account_set_wants_one_change_and_no_contradiction() {
        let set = |flags: &[&str]| {
            Cli::try_parse_from(["mailring", "account", "set", "a@b.test"].iter().chain(flags)).is_ok()
        };
        assert!(
            set(&["--enable"])
                && set(&["--postmaster"])
                && set(&["--disable", "--password-stdin"])
                && set(&["--password"])
        );
        assert!(!set(&[]) && !set(&["--enable", "--disable"]) && !set(&["--password", "--password-stdin"]));
    }

    #[test]
    fn a_password_cannot_stand_on_the_command_line() {
        for bad in [&["--password", "secret"][..], &["--password=secret"], &["secret"]] {
            assert!(
                Cli::try_parse_from(["mailring", "account", "add", "a@b.test"].iter().chain(bad)).is_err(),
                "{bad:?}"
            );
        }
    }
}
