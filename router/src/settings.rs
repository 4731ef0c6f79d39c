//! What an operator says to a router, as one typed struct. The binary reads the file; this module says what is wrong
//! with it before a port opens.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use proto::ClusterTlsFiles;
use serde::Deserialize;
use types::DomainName;

use crate::cluster::Patience;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterSettings {
    /// This process in logs.
    pub name: String,
    /// The name in greetings and trace headers.
    pub hostname: String,
    /// Nodes to ask for the directory, as `host:port`; the directory then names the others. Not used in one process.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// How the nodes are spoken to. Not used in one process.
    #[serde(default)]
    pub cluster_tls: Option<ClusterTlsFiles>,
    /// What clients are shown. Needed where a listener has TLS.
    #[serde(default)]
    pub tls: Option<TlsFiles>,
    pub listeners: Vec<ListenerSettings>,
    #[serde(default)]
    pub limits: Limits,
}

/// PEM files; read again when they change.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Smtp,
    Pop3,
    Imap,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Smtp => "smtp",
            Protocol::Pop3 => "pop3",
            Protocol::Imap => "imap",
        }
    }
}

/// What an SMTP listener is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Delivers to local mailboxes, never relays.
    #[default]
    Mx,
    /// Relays for those who log in; has no path to a local mailbox.
    Submission,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerTls {
    #[default]
    None,
    /// STARTTLS or STLS.
    StartTls,
    /// From the first octet (RFC 8314 §3).
    Implicit,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerSettings {
    pub protocol: Protocol,
    /// Port 0 takes a free one.
    pub address: SocketAddr,
    #[serde(default)]
    pub role: Role,
    #[serde(default)]
    pub tls: ListenerTls,
    /// Passwords without TLS too. For tests and closed networks.
    #[serde(default)]
    pub allow_plaintext_login: bool,
}

/// Each bounds what one client, or all of them, can take.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at once over all listeners; 0: no limit but the system's.
    pub connections_max: usize,
    /// Connections at once from one address, or one /64 of IPv6; 0: no limit.
    pub connections_per_address_max: usize,
    /// Largest message by SMTP or APPEND. 50 MiB is what large providers take, base64 included.
    pub message_octets_max: u64,
    /// Memory for all messages that are being received; what does not fit goes to temporary files at once.
    pub spool_memory_octets_max: u64,
    /// Recipients in one mail transaction, aliases not expanded; at least 100 (RFC 5321 §4.5.3.1.8).
    pub recipients_max: usize,
    /// RFC 5321 §4.5.3.2.7: at least 5 minutes.
    pub smtp_idle_s: u64,
    /// RFC 1939 §3: at least 10 minutes.
    pub pop3_idle_s: u64,
    /// RFC 9051 §5.4: at least 30 minutes.
    pub imap_idle_s: u64,
    /// From connect to login, POP3 and IMAP.
    pub login_s: u64,
    /// A client that takes not one octet for so long is gone, or means harm.
    pub write_s: u64,
    /// Wait for clients that speak before the greeting.
    pub smtp_greeting_delay_ms: u64,
    /// How long an operation looks for its shard's leader, and waits for a node that answers nothing, before the client is
    /// told to try later. Longer than an election.
    pub operation_ms: u64,
    /// The same where some replica of the shard answers but most do not, so that none of them can lead: nothing says that
    /// they come back soon. Never longer than `operation_ms`.
    pub minority_ms: u64,
    /// Sessions get so long to end at shutdown.
    pub shutdown_s: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 100_000,
            connections_per_address_max: 0,
            message_octets_max: 50 * 1024 * 1024,
            spool_memory_octets_max: 256 * 1024 * 1024,
            recipients_max: 1_000,
            smtp_idle_s: 300,
            pop3_idle_s: 600,
            imap_idle_s: 1_800,
            login_s: 60,
            write_s: 300,
            smtp_greeting_delay_ms: 20,
            operation_ms: 10_000,
            minority_ms: 1_500,
            shutdown_s: 10,
        }
    }
}

impl Limits {
    pub fn patience(&self) -> Patience {
        Patience::new(Duration::from_millis(self.operation_ms), Duration::from_millis(self.minority_ms))
    }

    pub fn idle(&self, protocol: Protocol) -> Duration {
        Duration::from_secs(match protocol {
            Protocol::Smtp => self.smtp_idle_s,
            Protocol::Pop3 => self.pop3_idle_s,
            Protocol::Imap => self.imap_idle_s,
        })
    }

    pub fn login(&self) -> Duration {
        Duration::from_secs(self.login_s)
    }

    pub fn write(&self) -> Duration {
        Duration::from_secs(self.write_s)
    }
}

/// A setting that cannot be served; the text names it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct InvalidSetting {
    pub key: String,
    pub reason: String,
}

fn invalid<T>(key: impl Into<String>, reason: impl Into<String>) -> Result<T, InvalidSetting> {
    Err(InvalidSetting { key: key.into(), reason: reason.into() })
}

impl RouterSettings {
    /// What can be said without touching the system. [`crate::Router::start`] does this first.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        if self.name.is_empty() {
            return invalid("name", "must not be empty");
        }
        if let Err(error) = DomainName::parse(&self.hostname) {
            return invalid("hostname", error.to_string());
        }
        if self.listeners.is_empty() {
            return invalid("listeners", "at least one is needed");
        }
        for (i, listener) in self.listeners.iter().enumerate() {
            self.validate_listener(&format!("listeners[{i}]"), i, listener)?;
        }
        self.limits.validate()
    }

    /// For a router in a process of its own: where its nodes are, and how to speak to them.
    pub fn validate_cluster(&self) -> Result<&ClusterTlsFiles, InvalidSetting> {
        if self.nodes.is_empty() {
            return invalid("nodes", "at least one is needed, as \"host:port\"");
        }
        for (i, node) in self.nodes.iter().enumerate() {
            let port = node.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(port)) if port != 0) {
                return invalid(format!("nodes[{i}]"), format!("\"{node}\" is not of the form host:port"));
            }
        }
        match &self.cluster_tls {
            Some(files) => Ok(files),
            None => invalid("cluster_tls", "needed to speak to nodes"),
        }
    }

    fn validate_listener(&self, key: &str, index: usize, listener: &ListenerSettings) -> Result<(), InvalidSetting> {
        if listener.tls != ListenerTls::None && self.tls.is_none() {
            return invalid(format!("{key}.tls"), "needs [tls] with certificate and key");
        }
        if listener.role == Role::Submission && listener.protocol != Protocol::Smtp {
            return invalid(format!("{key}.role"), "only smtp listeners have a role");
        }
        let logs_in = listener.protocol != Protocol::Smtp || listener.role == Role::Submission;
        if logs_in && listener.tls == ListenerTls::None && !listener.allow_plaintext_login {
            return invalid(format!("{key}.tls"), "without TLS nobody can log in here; or set allow_plaintext_login");
        }
        let before = self.listeners.get(..index).unwrap_or_default();
        if listener.address.port() != 0 && before.iter().any(|other| other.address == listener.address) {
            return invalid(format!("{key}.address"), format!("{} is used twice", listener.address));
        }
        Ok(())
    }
}

impl Limits {
    fn validate(&self) -> Result<(), InvalidSetting> {
        const MIB: u64 = 1024 * 1024;
        // A node takes no more in one body.
        const MESSAGE_OCTETS_MAX: u64 = 120 * MIB;
        if !(64 * 1024..=MESSAGE_OCTETS_MAX).contains(&self.message_octets_max) {
            // RFC 5321 §4.5.3.1.7: at least 64 KiB.
            return invalid("limits.message_octets_max", "must be from 65536 to 125829120");
        }
        if self.recipients_max < 100 {
            return invalid("limits.recipients_max", "must be at least 100 (RFC 5321 §4.5.3.1.8)");
        }
        let times = [
            ("limits.smtp_idle_s", self.smtp_idle_s),
            ("limits.pop3_idle_s", self.pop3_idle_s),
            ("limits.imap_idle_s", self.imap_idle_s),
            ("limits.login_s", self.login_s),
            ("limits.write_s", self.write_s),
            ("limits.operation_ms", self.operation_ms),
            ("limits.minority_ms", self.minority_ms),
        ];
        // A day in milliseconds: whatever is longer is a slip of the hand.
        match times.into_iter().find(|(_, value)| !(1..=86_400_000).contains(value)) {
            Some((key, _)) => invalid(key, "must be from 1 to 86400000"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RouterSettings;

    const GOOD: &str = r#"
        name = "router1"
        hostname = "mx.example.test"
        nodes = ["127.0.0.1:2200", "node2.example.test:2200"]
        cluster_tls = { ca = "ca.pem", certificate = "router.pem", key = "router.key" }
        tls = { certificate = "mx.pem", key = "mx.key" }
        limits = { pop3_idle_s = 900 }
        listeners = [
            { protocol = "smtp", address = "127.0.0.1:2025", tls = "starttls" },
            { protocol = "smtp", address = "127.0.0.1:2465", role = "submission", tls = "implicit" },
            { protocol = "pop3", address = "[::1]:2110", allow_plaintext_login = true },
        ]
    "#;

    #[test]
    fn good_settings_are_read_with_defaults_for_what_is_not_said() {
        let settings: RouterSettings = toml::from_str(GOOD).unwrap();
        settings.validate().unwrap();
        settings.validate_cluster().unwrap();
        assert_eq!((settings.limits.pop3_idle_s, settings.limits.smtp_idle_s), (900, 300));
    }

    #[test]
    fn unknown_keys_are_refused_at_every_level() {
        for (from, to) in [
            ("name =", "nam = 1\nname ="),
            ("pop3_idle_s = 900", "pop3_idle = 900"),
            ("certificate = \"mx.pem\"", "cert = \"mx.pem\""),
            ("tls = \"starttls\"", "tls = \"starttls\", x = 1"),
            ("ca = \"ca.pem\"", "ca = \"ca.pem\", x = 1"),
        ] {
            let changed = GOOD.replacen(from, to, 1);
            assert_ne!(changed, GOOD);
            assert!(toml::from_str::<RouterSettings>(&changed).is_err(), "{to}");
        }
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (from, to, key) in [
            ("mx.example.test", "mx example", "hostname"),
            ("pop3_idle_s = 900", "pop3_idle_s = 0", "limits.pop3_idle_s"),
            ("pop3_idle_s = 900", "minority_ms = 0", "limits.minority_ms"),
            ("pop3_idle_s = 900", "recipients_max = 5", "limits.recipients_max"),
            ("pop3_idle_s = 900", "message_octets_max = 5", "limits.message_octets_max"),
            ("tls = { certificate = \"mx.pem\", key = \"mx.key\" }", "", "listeners[0].tls"),
            (", allow_plaintext_login = true", "", "listeners[2].tls"),
            ("[::1]:2110", "127.0.0.1:2025", "listeners[2].address"),
            ("protocol = \"pop3\"", "protocol = \"pop3\", role = \"submission\"", "listeners[2].role"),
        ] {
            let changed = GOOD.replacen(from, to, 1);
            let settings: RouterSettings = toml::from_str(&changed).unwrap();
            assert_eq!(settings.validate().unwrap_err().key, key, "{to}");
        }
        for (from, to, key) in [("127.0.0.1:2200", "127.0.0.1", "nodes[0]"), (":2200\"]", ":x\"]", "nodes[1]")] {
            let settings: RouterSettings = toml::from_str(&GOOD.replacen(from, to, 1)).unwrap();
            assert_eq!(settings.validate_cluster().unwrap_err().key, key);
        }
    }
}
