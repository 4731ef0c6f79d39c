//! Real processes on free ports in a temporary directory: nodes and routers, started, killed and started again by
//! process id, and always gone at the end.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use proto::wire::{DigestShardReply, DigestShardRequest};
use proto::{ClusterTls, ClusterTlsFiles, DirectoryStore, GrpcNode};
use tempfile::TempDir;

use crate::imap::ImapClient;
use crate::pop3::Pop3Client;
use crate::smtp::SmtpClient;

/// The password of every account that a test adds.
pub const PASSWORD: &str = "correct-horse";
/// The whole cluster comes up within this even on a busy machine.
const START_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug)]
pub struct ClusterOptions {
    pub nodes: usize,
    pub routers: usize,
    pub replicas: u32,
    pub shards: u32,
}

impl Default for ClusterOptions {
    fn default() -> ClusterOptions {
        ClusterOptions { nodes: 3, routers: 1, replicas: 3, shards: 8 }
    }
}

/// A process of the cluster: its configuration stays, the child comes and goes.
pub struct Process {
    pub name: String,
    role: &'static str,
    config: PathBuf,
    log: PathBuf,
    http: SocketAddr,
    child: Option<Child>,
}

pub struct Cluster {
    directory: TempDir,
    pub nodes: Vec<Process>,
    pub routers: Vec<Process>,
    listeners: Vec<Listeners>,
    /// The nodes' gRPC addresses, and how many shards there are.
    grpc: Vec<SocketAddr>,
    shards: u32,
}

#[derive(Clone, Copy)]
struct Listeners {
    smtp: SocketAddr,
    pop3: SocketAddr,
    imap: SocketAddr,
    imaps: SocketAddr,
}

/// Waits for a condition; the error says what never came true.
pub fn eventually<T>(what: &str, max: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + max;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(error.context(format!("not in {max:?}: {what}"))),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

impl Cluster {
    /// Starts a cluster and waits until every process is ready.
    pub fn start(options: ClusterOptions) -> Result<Cluster> {
        let directory = tempfile::Builder::new().prefix("mailring-test-").tempdir()?;
        let mut cluster = Cluster {
            directory,
            nodes: Vec::new(),
            routers: Vec::new(),
            listeners: Vec::new(),
            grpc: Vec::new(),
            shards: options.shards,
        };
        cluster.certificates(options)?;
        cluster.configure(options)?;
        cluster.start_all()?;
        cluster.wait_ready()?;
        Ok(cluster)
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

    pub fn pop3_client(&self, user: &str) -> Result<Pop3Client> {
        Pop3Client::login(self.pop3(0), user, PASSWORD)
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
        for router in 0..self.routers.len() {
            eventually("the account is known to the router", START_MAX, || {
                let mut client = SmtpClient::connect(self.smtp(router))?;
                client.command("MAIL FROM:<>", 250)?;
                client.command(&format!("RCPT TO:<{last}@example.test>"), 250)
            })?;
        }
        Ok(())
    }

    /// An admin command's standard output; its failure is an error with what it said.
    pub fn admin(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(binary()?);
        command.args(arguments).env("MAILRING_CONFIG", self.path().join("admin.toml")).stdin(Stdio::null());
        run(&mut command)
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
            let shards: serde_json::Value = serde_json::from_str(&self.admin(&["shard", "list", "--json"])?)?;
            let shards = shards.as_array().context("shard list --json is no array")?;
            let led = |shard: &serde_json::Value| shard["leader"].as_str().is_some_and(|leader| !leader.is_empty());
            if shards.is_empty() || !shards.iter().all(led) {
                bail!("a shard has no leader: {shards:?}");
            }
            Ok(())
        })
    }

    /// The octets of all shards, if every replica of each is at the same index and holds the same.
    pub fn compare_replicas(&self) -> Result<u64> {
        let file = |name: &str| self.path().join("ca").join(name);
        let files = ClusterTlsFiles { ca: file("ca.pem"), certificate: file("admin.pem"), key: file("admin.key") };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let tls = ClusterTls::load(&files)?.client;
            let mut octets = 0;
            let nodes: Vec<GrpcNode> = self
                .grpc
                .iter()
                .map(|address| Ok(GrpcNode::new(proto::connect(&address.to_string(), tls.clone())?)))
                .collect::<Result<_>>()?;
            for shard in 0..self.shards {
                let mut known: Option<DigestShardReply> = None;
                for (node, process) in nodes.iter().zip(&self.nodes) {
                    let digest = match node.digest_shard(DigestShardRequest { shard }).await {
                        Ok(digest) => digest,
                        // It holds no replica of this shard.
                        Err(types::MailError::NotLeader { .. }) => continue,
                        Err(error) => bail!("shard {shard} on {}: {error}", process.name),
                    };
                    let other = known.get_or_insert_with(|| digest.clone());
                    if *other != digest {
                        bail!("shard {shard} on {} differs: {digest:?}, elsewhere {other:?}", process.name);
                    }
                }
                octets += known.with_context(|| format!("shard {shard} is nowhere"))?.octets;
            }
            Ok(octets)
        })
    }

    pub fn kill_all(&mut self) -> Result<()> {
        self.nodes.iter_mut().chain(&mut self.routers).try_for_each(Process::kill)
    }

    fn certificates(&self, options: ClusterOptions) -> Result<()> {
        let ca = self.path().join("ca");
        let ca = ca.to_string_lossy();
        let mailring = |arguments: &[&str]| run(Command::new(binary()?).args(arguments).stdin(Stdio::null()));
        mailring(&["ca", "create", "--dir", &ca])?;
        let processes = |role: &'static str, count: usize| (1..=count).map(move |k| (role, format!("{role}{k}")));
        let all = processes("node", options.nodes).chain(processes("router", options.routers));
        for (role, name) in all.chain([("admin", "admin".to_owned())]) {
            mailring(&["ca", "issue", "--dir", &ca, "--role", role, "--name", &name])?;
        }
        mailring(&["ca", "issue-server", "--dir", &ca, "--hostname", "localhost,127.0.0.1"])?;
        Ok(())
    }

    fn configure(&mut self, options: ClusterOptions) -> Result<()> {
        let mut ports = free_ports(options.nodes * 2 + options.routers * 5)?.into_iter();
        let mut next = move || ports.next().context("ports");
        let addresses: Vec<(SocketAddr, SocketAddr)> =
            (0..options.nodes).map(|_| Ok((next()?, next()?))).collect::<Result<_>>()?;
        let seeds = addresses.iter().map(|(grpc, _)| format!("\"{grpc}\"")).collect::<Vec<_>>().join(", ");
        self.grpc = addresses.iter().map(|(grpc, _)| *grpc).collect();
        let ca = self.path().join("ca");
        let cluster_id = "00112233445566778899aabbccddeeff";
        for (k, (grpc, http)) in addresses.iter().enumerate() {
            let name = format!("node{}", k + 1);
            let disk = self.path().join(&name).join("disk-a");
            let config = format!(
                "http = \"{http}\"\n[log]\nfilter = \"info\"\n[node]\nname = \"{name}\"\nlisten = \"{grpc}\"\n\
                 volumes = [{{ disks = [\"{disk}\"] }}]\n[node.tls]\n{tls}[node.cluster]\nid = \"{cluster_id}\"\n\
                 nodes = [{seeds}]\nshards = {shards}\nreplicas = {replicas}\n",
                disk = disk.display(),
                tls = tls_files(&ca, &name),
                shards = options.shards,
                replicas = options.replicas,
            );
            let process = self.process(&name, "node", *http, &config)?;
            self.nodes.push(process);
        }
        for k in 0..options.routers {
            let name = format!("router{}", k + 1);
            let http = next()?;
            let listeners = Listeners { smtp: next()?, pop3: next()?, imap: next()?, imaps: next()? };
            let listener = |protocol: &str, address: SocketAddr, tls: &str| {
                format!(
                    "[[router.listeners]]\nprotocol = \"{protocol}\"\naddress = \"{address}\"\ntls = \"{tls}\"\n\
                     allow_plaintext_login = true\n"
                )
            };
            let config = format!(
                "http = \"{http}\"\n[log]\nfilter = \"info\"\n[router]\nname = \"{name}\"\nhostname = \"mail.example.test\"\n\
                 nodes = [{seeds}]\n[router.tls]\ncertificate = \"{cert}\"\nkey = \"{key}\"\n[router.cluster_tls]\n{tls}\
                 {smtp}{pop3}{imap}{imaps}",
                cert = ca.join("server.pem").display(),
                key = ca.join("server.key").display(),
                smtp = listener("smtp", listeners.smtp, "starttls"),
                pop3 = listener("pop3", listeners.pop3, "starttls"),
                imap = listener("imap", listeners.imap, "starttls"),
                imaps = listener("imap", listeners.imaps, "implicit"),
                tls = tls_files(&ca, &name),
            );
            let process = self.process(&name, "router", http, &config)?;
            self.routers.push(process);
            self.listeners.push(listeners);
        }
        let admin = format!("nodes = [{seeds}]\n[tls]\n{}", tls_files(&ca, "admin"));
        fs::write(self.path().join("admin.toml"), admin)?;
        Ok(())
    }

    fn process(&self, name: &str, role: &'static str, http: SocketAddr, config: &str) -> Result<Process> {
        let path = self.path().join(format!("{name}.toml"));
        fs::write(&path, config)?;
        let log = self.path().join(format!("{name}.log"));
        Ok(Process { name: name.to_owned(), role, config: path, log, http, child: None })
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

impl Process {
    pub fn start(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let child = Command::new(binary()?)
            .args([self.role, "--config"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the process says that it is ready; its log is part of the error.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = eventually("the process is ready", START_MAX, || {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended: {status}", self.name);
            }
            http_ok(self.http, "/readyz")
        });
        ready.map_err(|error| anyhow!("{error:#}\n{}:\n{}", self.name, self.log_tail()))
    }

    /// SIGKILL: nothing is flushed, nobody is told.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        run(Command::new("kill").args(["-TERM", &child.id().to_string()]))?;
        let ended = eventually("the process ends", START_MAX, || match child.try_wait()? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(anyhow!("{} ended with {status}", self.name)),
            None => Err(anyhow!("{} still runs", self.name)),
        });
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended
    }

    /// Sends a signal such as STOP or CONT.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let id = self.pid().context("not running")?;
        run(Command::new("kill").args([format!("-{signal}"), id.to_string()])).map(|_| ())
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Resident memory in KiB.
    pub fn memory_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid().context("not running")?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, self.log_tail());
        }
        if let Err(error) = self.kill() {
            eprintln!("{} cannot be killed: {error:#}", self.name);
        }
    }
}

/// The binary that stands beside the tests, or the one that MAILRING_BIN names.
pub fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("MAILRING_BIN") {
        return Ok(named.into());
    }
    let test = std::env::current_exe()?;
    let found = test.ancestors().skip(1).map(|folder| folder.join("mailring")).find(|path| path.is_file());
    found.with_context(|| format!("no mailring beside {}: cargo build --release -p mailring", test.display()))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}

/// Ports that were free a moment ago. All are held until all are known, so that none is given twice.
fn free_ports(count: usize) -> Result<Vec<SocketAddr>> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<_>>()?;
    Ok(listeners.iter().map(TcpListener::local_addr).collect::<std::io::Result<_>>()?)
}

fn http_ok(address: SocketAddr, path: &str) -> Result<()> {
    let mut client = crate::line::LineClient::connect(address)?;
    client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())?;
    let status = client.line()?;
    if !status.contains(" 200 ") {
        bail!("{path}: {status}");
    }
    Ok(())
}
