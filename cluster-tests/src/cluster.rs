//! Real processes on free ports in a temporary directory: nodes and routers, started, killed and started again by
//! process id, and always gone at the end.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proto::ClusterTlsFiles;
use tempfile::TempDir;

use crate::clock::Clock;
use crate::disk::{DISK_RESERVE_OCTETS, Disk};
use crate::failpoints::Failpoints;
use crate::imap::ImapClient;
use crate::network;
use crate::pop3::Pop3Client;
use crate::ports::free_ports;
use crate::process::{Process, START_MAX, eventually, mailring, run};
use crate::proxy::Proxy;
use crate::smtp::SmtpClient;

/// The password of every account that a test adds.
pub const PASSWORD: &str = "correct-horse";
/// Certificates outlast the tests that set clocks ahead.
const CERTIFICATE_DAYS: &str = "7304";

#[derive(Clone, Copy, Debug)]
pub struct ClusterOptions {
    pub nodes: usize,
    pub routers: usize,
    pub replicas: u32,
    pub shards: u32,
    /// Puts a [`Proxy`] before every node.
    pub proxied: bool,
    /// Gives every node a [`Disk`] of its own, whose power can be cut.
    pub own_disks: bool,
    /// Gives every node a mirror of two disks.
    pub mirror: bool,
    /// Volumes of each node.
    pub volumes: usize,
    /// Gives every process a [`Clock`] of its own.
    pub own_clocks: bool,
    /// Runs every process as a group of its own, for [`crate::Network`] to tell whose packets are whose.
    pub own_groups: bool,
    /// Of each group, for replicas that were away; none: as many as mailring keeps by itself.
    pub log_entries_kept: Option<u64>,
    /// How long a node may be away before its replicas are made anew; none: as long as mailring has it by itself.
    pub dead_node_s: Option<u64>,
    /// What a node keeps free on each disk; none: as much as mailring does by itself, [`DISK_RESERVE_OCTETS`] on disks of its
    /// own, which are small.
    pub disk_reserve_octets: Option<u64>,
    /// To new replicas at most; none: as much as mailring allows by itself.
    pub move_octets_per_s: Option<u64>,
    /// Between looks at the load of leaders, 0: none; none: as mailring has it by itself.
    pub leaders_look_s: Option<u64>,
    /// Of the nodes, in their order; those beyond are in the zone that mailring has by itself.
    pub zones: &'static [&'static str],
    /// Runs the binary that has bugs on purpose, with this one of them: see [`crate::planted_binary`].
    pub planted: Option<&'static str>,
    /// Runs the binary that can be stopped at the steps of a move: see [`Failpoints`].
    pub failpoints: bool,
}

impl ClusterOptions {
    pub const DEFAULT: ClusterOptions = ClusterOptions {
        nodes: 3,
        routers: 1,
        replicas: 3,
        shards: 8,
        proxied: false,
        own_disks: false,
        own_clocks: false,
        own_groups: false,
        mirror: false,
        volumes: 1,
        log_entries_kept: None,
        dead_node_s: None,
        disk_reserve_octets: None,
        move_octets_per_s: None,
        leaders_look_s: None,
        zones: &[],
        planted: None,
        failpoints: false,
    };
}

impl Default for ClusterOptions {
    fn default() -> ClusterOptions {
        ClusterOptions::DEFAULT
    }
}

pub struct Cluster {
    options: ClusterOptions,
    pub nodes: Vec<Process>,
    pub routers: Vec<Process>,
    listeners: Vec<Listeners>,
    /// The nodes' own gRPC addresses, no proxy before them.
    grpc: Vec<SocketAddr>,
    pub proxy: Arc<Proxy>,
    /// Those of nodes, if they have their own. Unmounted behind the processes, and before the directory goes.
    pub disks: Vec<Disk>,
    /// Where others reach the founding nodes: at their proxies, where there are any.
    reached: Vec<SocketAddr>,
    directory: TempDir,
}

#[derive(Clone, Copy)]
struct Listeners {
    smtp: SocketAddr,
    pop3: SocketAddr,
    imap: SocketAddr,
    imaps: SocketAddr,
}

/// The disk below the test's own, which others use too, gave no answer for seconds, or a process got no processor.
const OF_THE_MACHINE: [&str; 3] =
    ["disk does not answer", "the disk gives no answer to a read", "reads of a mirror half are slow"];

/// Bounds only how long a test waits before it gives up.
const HEARD_MAX: Duration = Duration::from_secs(30);

impl Cluster {
    /// Starts a cluster and waits until every process is ready.
    pub fn start(options: ClusterOptions) -> Result<Cluster> {
        let mut cluster = Cluster::new(options)?;
        let names = |role: &'static str, count: usize| (1..=count).map(move |k| (role, format!("{role}{k}")));
        cluster.certificates(names("node", options.nodes).chain(names("router", options.routers)))?;
        cluster.configure(options)?;
        // A router that comes before there is a directory would soon call for somebody.
        cluster.nodes.iter_mut().try_for_each(Process::start)?;
        cluster.nodes.iter_mut().try_for_each(Process::wait_ready)?;
        cluster.start_all()?;
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// Starts `mailring single`: one process, which is `nodes[0]` here and listens where a router would.
    pub fn single(shards: u32) -> Result<Cluster> {
        let mut cluster = Cluster::new(ClusterOptions { nodes: 1, replicas: 1, shards, ..ClusterOptions::default() })?;
        cluster.certificates([("node", "single1".to_owned())].into_iter())?;
        cluster.configure_single()?;
        cluster.start_all()?;
        cluster.wait_ready()?;
        Ok(cluster)
    }

    fn new(options: ClusterOptions) -> Result<Cluster> {
        let directory = tempfile::Builder::new().prefix("mailring-test-").tempdir()?;
        Ok(Cluster {
            directory,
            options,
            nodes: Vec::new(),
            routers: Vec::new(),
            listeners: Vec::new(),
            grpc: Vec::new(),
            proxy: Arc::default(),
            disks: Vec::new(),
            reached: Vec::new(),
        })
    }

    pub(crate) fn options(&self) -> ClusterOptions {
        self.options
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn smtp(&self, router: usize) -> SocketAddr {
        self.listeners[router].smtp
    }

    pub fn pop3(&self, router: usize) -> SocketAddr {
        self.listeners[router].pop3
    }

    pub fn imap(&self, router: usize) -> SocketAddr {
        self.listeners[router].imap
    }

    pub fn imaps(&self, router: usize) -> SocketAddr {
        self.listeners[router].imaps
    }

    /// Where a node itself serves gRPC.
    pub fn grpc(&self, node: usize) -> SocketAddr {
        self.grpc[node]
    }

    /// Where others reach a founding node: at its proxy, where there is one.
    pub fn reached(&self, node: usize) -> SocketAddr {
        self.reached[node]
    }

    /// The founding nodes' addresses as TOML.
    fn seeds(&self) -> String {
        self.reached.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ")
    }

    /// The certificate of a process or of `admin`, and the CA that others have theirs from.
    pub fn tls_files(&self, name: &str) -> ClusterTlsFiles {
        let file = |name: String| self.path().join("ca").join(name);
        ClusterTlsFiles {
            ca: file("ca.pem".to_owned()),
            certificate: file(format!("{name}.pem")),
            key: file(format!("{name}.key")),
        }
    }

    /// What a mail client must trust.
    pub fn ca(&self) -> Result<Vec<u8>> {
        Ok(fs::read(self.path().join("ca/ca.pem"))?)
    }

    pub fn smtp_client(&self) -> Result<SmtpClient> {
        SmtpClient::connect(self.smtp(0))
    }

    pub fn imap_client(&self, user: &str) -> Result<ImapClient> {
        ImapClient::login(self.imap(0), user, PASSWORD)
    }

    /// The lock of a session that has just ended may be on its way to be freed.
    pub fn pop3_client(&self, user: &str) -> Result<Pop3Client> {
        eventually("the maildrop is free", HEARD_MAX, || match Pop3Client::login(self.pop3(0), user, PASSWORD) {
            Err(error) if error.to_string().contains("[IN-USE]") => Err(error),
            answer => Ok(answer),
        })?
    }

    /// Adds `example.test` and accounts in it, and waits until the routers know them.
    pub fn add_accounts(&self, locals: &[&str]) -> Result<()> {
        if !self.admin(&["domain", "list", "--json"])?.contains("example.test") {
            self.admin(&["domain", "add", "example.test"])?;
        }
        let file = self.path().join("accounts.csv");
        let rows: String = locals.iter().map(|local| format!("{local}@example.test,{PASSWORD}\n")).collect();
        fs::write(&file, format!("account,password\n{rows}"))?;
        self.admin(&["account", "import", &file.to_string_lossy()])?;
        let Some(last) = locals.last() else { return Ok(()) };
        for router in 0..self.listeners.len() {
            eventually("the account is known to the router", START_MAX, || {
                let mut client = SmtpClient::connect(self.smtp(router))?;
                client.command("MAIL FROM:<>", 250)?;
                client.command(&format!("RCPT TO:<{last}@example.test>"), 250)
            })?;
        }
        Ok(())
    }

    pub fn start_all(&mut self) -> Result<()> {
        for process in self.nodes.iter_mut().chain(&mut self.routers) {
            if process.child.is_none() {
                process.start()?;
            }
        }
        Ok(())
    }

    pub fn wait_ready(&mut self) -> Result<()> {
        for process in self.nodes.iter_mut().chain(&mut self.routers) {
            process.wait_ready()?;
        }
        eventually("every shard has a leader", START_MAX, || {
            let shards = self.json(&["shard", "list"])?;
            let shards = shards.as_array().context("shard list --json is no array")?;
            let led = |shard: &serde_json::Value| shard["leader"].as_str().is_some_and(|leader| !leader.is_empty());
            if shards.is_empty() || !shards.iter().all(led) {
                bail!("a shard has no leader: {shards:?}");
            }
            Ok(())
        })
    }

    /// Where a node's mail lies.
    pub fn disk(&self, node: usize) -> PathBuf {
        self.path().join(&self.nodes[node].name).join("disk-a")
    }

    /// That no process logged a WARN or ERROR, which would have somebody look. `allowed`: texts of those that must come
    /// in this test. A node that was silent for a while has its time to answer again.
    pub fn check_logs(&self, allowed: &[&str]) -> Result<()> {
        eventually("no log calls for somebody", HEARD_MAX, || self.check_logs_now(allowed))
    }

    fn check_logs_now(&self, allowed: &[&str]) -> Result<()> {
        for process in self.nodes.iter().chain(&self.routers) {
            let alarms = process.alarms()?;
            let unlisted: Vec<&String> = alarms
                .iter()
                .filter(|line| !allowed.iter().chain(&OF_THE_MACHINE).any(|text| line.contains(text)))
                .collect();
            if !unlisted.is_empty() {
                bail!("{} logged {} lines that call for somebody: {unlisted:#?}", process.name, unlisted.len());
            }
        }
        Ok(())
    }

    pub fn kill_all(&mut self) -> Result<()> {
        self.nodes.iter_mut().chain(&mut self.routers).try_for_each(Process::kill)
    }

    fn certificates(&self, processes: impl Iterator<Item = (&'static str, String)>) -> Result<()> {
        let ca = self.path().join("ca");
        let ca = ca.to_string_lossy();
        let mailring = |arguments: &[&str]| run(mailring(self.options.planted)?.args(arguments).stdin(Stdio::null()));
        mailring(&["ca", "create", "--dir", &ca, "--days", CERTIFICATE_DAYS])?;
        for (role, name) in processes.chain([("admin", "admin".to_owned())]) {
            mailring(&["ca", "issue", "--dir", &ca, "--role", role, "--name", &name, "--days", CERTIFICATE_DAYS])?;
        }
        mailring(&["ca", "issue-server", "--dir", &ca, "--hostname", "localhost,127.0.0.1"])?;
        Ok(())
    }

    fn configure(&mut self, options: ClusterOptions) -> Result<()> {
        let mut ports = free_ports(options.nodes * 2 + options.routers * 5)?.into_iter();
        let mut next = move || ports.next().context("ports");
        let addresses: Vec<(SocketAddr, SocketAddr)> =
            (0..options.nodes).map(|_| Ok((next()?, next()?))).collect::<Result<_>>()?;
        self.grpc = addresses.iter().map(|(grpc, _)| *grpc).collect();
        self.reached.clone_from(&self.grpc);
        if options.proxied {
            let mut proxy = Proxy::default();
            for (k, address) in self.reached.iter_mut().enumerate() {
                *address = proxy.before(&format!("node{}", k + 1), TcpListener::bind("127.0.0.1:0")?, *address)?;
            }
            self.proxy = Arc::new(proxy);
        }
        let seeds = self.seeds();
        for (k, (grpc, http)) in addresses.iter().enumerate() {
            let name = format!("node{}", k + 1);
            for (letter, mount) in self.disk_paths(&name).into_iter().flatten().filter(|_| options.own_disks) {
                fs::create_dir_all(&mount)?;
                self.disks.push(Disk::create(self.path().join(format!("{name}-{letter}.image")), mount)?);
            }
            let tables = self.node_tables(&name, *grpc, self.reached[k], &seeds);
            let process = self.process(&name, "node", *http, &tables)?;
            self.nodes.push(process);
        }
        for k in 0..options.routers {
            let name = format!("router{}", k + 1);
            let http = next()?;
            let listeners = Listeners { smtp: next()?, pop3: next()?, imap: next()?, imaps: next()? };
            let cluster =
                format!("nodes = [{seeds}]\n[router.cluster_tls]\n{}", tls_files(&self.path().join("ca"), &name));
            let process = self.process(&name, "router", http, &self.router_tables(&name, listeners, &cluster))?;
            self.routers.push(process);
            self.listeners.push(listeners);
        }
        self.write_admin(&seeds)
    }

    /// Starts one more node, and waits until the directory knows it; it holds nothing yet. Its place among the nodes. No
    /// proxy is before it.
    pub fn add_node(&mut self) -> Result<usize> {
        let node = self.prepare_node()?;
        self.nodes[node].start()?;
        let name = self.nodes[node].name.clone();
        eventually("the directory knows the node", START_MAX, || {
            ensure!(self.node(&name)?["up"] == true, "it is down");
            Ok(())
        })?;
        Ok(node)
    }

    /// The same, without starting it.
    pub fn prepare_node(&mut self) -> Result<usize> {
        let name = format!("node{}", self.nodes.len() + 1);
        let ca = self.path().join("ca");
        let ca = ca.to_string_lossy();
        run(mailring(self.options.planted)?
            .args(["ca", "issue", "--dir", &ca, "--role", "node", "--name", &name, "--days", CERTIFICATE_DAYS])
            .stdin(Stdio::null()))?;
        let [grpc, http] = free_ports(2)?[..] else { bail!("ports") };
        let tables = self.node_tables(&name, grpc, grpc, &self.seeds());
        let process = self.process(&name, "node", http, &tables)?;
        self.nodes.push(process);
        self.grpc.push(grpc);
        Ok(self.nodes.len() - 1)
    }

    /// Of each volume of a node, its disks.
    fn disk_paths(&self, name: &str) -> Vec<Vec<(char, PathBuf)>> {
        let mut letters = 'a'..='z';
        let mut disk = || letters.next().map(|letter| (letter, self.path().join(name).join(format!("disk-{letter}"))));
        let halves = 1 + usize::from(self.options.mirror);
        (0..self.options.volumes).map(|_| (0..halves).filter_map(|_| disk()).collect()).collect()
    }

    /// The directories of a node's disks, its halves one after the other.
    pub fn disk_directories(&self, node: usize) -> Vec<PathBuf> {
        self.disk_paths(&format!("node{}", node + 1)).into_iter().flatten().map(|(_, path)| path).collect()
    }

    fn configure_single(&mut self) -> Result<()> {
        let ports = free_ports(6)?;
        let [grpc, http, smtp, pop3, imap, imaps] = ports[..] else { bail!("ports") };
        let listeners = Listeners { smtp, pop3, imap, imaps };
        let (name, seeds) = ("single1", format!("\"{grpc}\""));
        let tables = self.node_tables(name, grpc, grpc, &seeds) + &self.router_tables(name, listeners, "");
        let process = self.process(name, "single", http, &tables)?;
        self.nodes.push(process);
        self.listeners.push(listeners);
        self.grpc.push(grpc);
        self.write_admin(&seeds)
    }

    fn write_admin(&self, seeds: &str) -> Result<()> {
        let admin = format!("nodes = [{seeds}]\n[tls]\n{}", tls_files(&self.path().join("ca"), "admin"));
        Ok(fs::write(self.path().join("admin.toml"), admin)?)
    }

    /// `reached`: where others call the node.
    fn node_tables(&self, name: &str, grpc: SocketAddr, reached: SocketAddr, seeds: &str) -> String {
        let (options, ClusterOptions { shards, replicas, .. }) = (self.options, self.options);
        let reserve = options.disk_reserve_octets.or(options.own_disks.then_some(DISK_RESERVE_OCTETS));
        let quoted = |disks: Vec<(char, PathBuf)>| {
            let quoted: Vec<String> = disks.iter().map(|(_, path)| format!("\"{}\"", path.display())).collect();
            format!("{{ disks = [{}] }}", quoted.join(", "))
        };
        let volumes: Vec<String> = self.disk_paths(name).into_iter().map(quoted).collect();
        let number = |name: &str, value: Option<u64>| value.map(|value| format!("{name} = {value}\n"));
        let further = [
            number("disk_reserve_octets", reserve),
            number("log_entries_kept", options.log_entries_kept),
            number("dead_node_s", options.dead_node_s),
            number("move_octets_per_s", options.move_octets_per_s),
            number("leaders_look_s", options.leaders_look_s),
            options.zones.get(self.nodes.len()).map(|zone| format!("zone = \"{zone}\"\n")),
        ];
        let further: String = further.into_iter().flatten().collect();
        format!(
            "[node]\nname = \"{name}\"\nlisten = \"{grpc}\"\nadvertise = \"{reached}\"\nvolumes = [{volumes}]\n\
             {further}[node.tls]\n{tls}[node.cluster]\nid = \"00112233445566778899aabbccddeeff\"\n\
             nodes = [{seeds}]\nshards = {shards}\nreplicas = {replicas}\n",
            volumes = volumes.join(", "),
            tls = tls_files(&self.path().join("ca"), name),
        )
    }

    /// `cluster` says how the nodes are reached; nothing where they are in the same process.
    fn router_tables(&self, name: &str, listeners: Listeners, cluster: &str) -> String {
        let ca = self.path().join("ca");
        let listener = |protocol: &str, address: SocketAddr, tls: &str| {
            format!(
                "[[router.listeners]]\nprotocol = \"{protocol}\"\naddress = \"{address}\"\ntls = \"{tls}\"\n\
                 allow_plaintext_login = true\n"
            )
        };
        format!(
            "[router]\nname = \"{name}\"\nhostname = \"mail.example.test\"\n{cluster}\
             [router.tls]\ncertificate = \"{cert}\"\nkey = \"{key}\"\n{smtp}{pop3}{imap}{imaps}",
            cert = ca.join("server.pem").display(),
            key = ca.join("server.key").display(),
            smtp = listener("smtp", listeners.smtp, "starttls"),
            pop3 = listener("pop3", listeners.pop3, "starttls"),
            imap = listener("imap", listeners.imap, "starttls"),
            imaps = listener("imap", listeners.imaps, "implicit"),
        )
    }

    fn process(&self, name: &str, role: &'static str, http: SocketAddr, tables: &str) -> Result<Process> {
        let path = self.path().join(format!("{name}.toml"));
        fs::write(&path, format!("http = \"{http}\"\n{tables}"))?;
        let log = self.path().join(format!("{name}.log"));
        let clock = self.options.own_clocks.then(|| Clock::new(self.path(), name)).transpose()?;
        Ok(Process {
            name: name.to_owned(),
            role,
            config: path,
            log,
            http,
            child: None,
            proxy: self.proxy.clone(),
            clock,
            group: self.options.own_groups.then(|| network::group(self.nodes.len() + self.routers.len() + 1)),
            planted: self.options.planted,
            program: None,
            failpoints: self.options.failpoints.then(|| Failpoints::new(self.path())).transpose()?,
        })
    }
}

fn tls_files(ca: &Path, name: &str) -> String {
    format!(
        "ca = \"{}\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
        ca.join("ca.pem").display(),
        ca.join(format!("{name}.pem")).display(),
        ca.join(format!("{name}.key")).display()
    )
}
