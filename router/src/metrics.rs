//! Figures for operators. Labels are few and fixed: nothing that a client sends becomes one.

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::settings::Protocol;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct ProtocolLabel {
    pub protocol: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct ResultLabel {
    pub result: &'static str,
}

pub struct Metrics {
    registry: Mutex<Registry>,
    connections: Family<ProtocolLabel, Counter>,
    connections_open: Family<ProtocolLabel, Gauge>,
    connections_refused: Family<ProtocolLabel, Counter>,
    commands: Family<ProtocolLabel, Counter>,
    deliveries: Family<ResultLabel, Counter>,
    logins: Family<ResultLabel, Counter>,
    recipients: Family<ResultLabel, Counter>,
    pub settles_lost: Counter,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("mailring_router");
        let connections = Family::default();
        registry.register("connections", "Connections accepted", connections.clone());
        let connections_open = Family::default();
        registry.register("connections_open", "Connections open now", connections_open.clone());
        let connections_refused = Family::default();
        registry.register("connections_refused", "Connections over a limit", connections_refused.clone());
        let commands = Family::default();
        registry.register("commands", "Replies and questions of sessions", commands.clone());
        let deliveries = Family::default();
        registry.register("deliveries", "Mail transactions by outcome", deliveries.clone());
        let recipients = Family::default();
        registry.register("recipients", "RCPT commands by outcome", recipients.clone());
        let logins = Family::default();
        registry.register("logins", "Login attempts by outcome", logins.clone());
        let settles_lost = Counter::default();
        registry.register("settles_lost", "Fingerprints that could not be settled", settles_lost.clone());
        Metrics {
            registry: Mutex::new(registry),
            connections,
            connections_open,
            connections_refused,
            commands,
            deliveries,
            logins,
            recipients,
            settles_lost,
        }
    }
}

impl Metrics {
    /// Counts a connection until the guard is dropped.
    pub fn connection(&self, protocol: Protocol) -> OpenConnection {
        let label = ProtocolLabel { protocol: protocol.as_str() };
        self.connections.get_or_create(&label).inc();
        let open = self.connections_open.get_or_create(&label).clone();
        open.inc();
        OpenConnection(open)
    }

    pub fn refused(&self, protocol: Protocol) {
        self.connections_refused.get_or_create(&ProtocolLabel { protocol: protocol.as_str() }).inc();
    }

    pub fn command(&self, protocol: Protocol) {
        self.commands.get_or_create(&ProtocolLabel { protocol: protocol.as_str() }).inc();
    }

    /// `stored`, `deferred` or `refused`.
    pub fn delivery(&self, result: &'static str) {
        self.deliveries.get_or_create(&ResultLabel { result }).inc();
    }

    /// `accepted`, `unknown`, `foreign` or `deferred`.
    pub fn recipient(&self, result: &'static str) {
        self.recipients.get_or_create(&ResultLabel { result }).inc();
    }

    /// `ok`, `denied`, `busy` or `unavailable`.
    pub fn login(&self, result: &'static str) {
        self.logins.get_or_create(&ResultLabel { result }).inc();
    }

    /// In the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut out, &self.registry.lock());
        out
    }
}

/// A connection that is open.
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
