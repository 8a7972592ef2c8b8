//! How a source speaks HTTP: requests that end in time, and a watch that may be silent for long.

use std::time::Duration;

use ureq::config::Config;
use ureq::tls::TlsConfig;

/// How long a server may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// For each step of a request, up to the first octet of the answer.
    pub(super) step: Duration,
    /// From the first octet of an answer to its last.
    pub(super) body: Duration,
    /// Between two octets of a watch.
    pub(super) silence: Duration,
}

/// The settings of requests, and those of watches: straight to the server that is named, by no
/// proxy and no redirection, and with a connection of its own for each watch.
pub(super) fn configs(tls: &TlsConfig, timeouts: Timeouts) -> (Config, Config) {
    let config = || {
        ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .no_delay(true)
            .user_agent("warren")
            .tls_config(tls.clone())
            .timeout_resolve(Some(timeouts.step))
            .timeout_connect(Some(timeouts.step))
            .timeout_send_request(Some(timeouts.step))
            .timeout_send_body(Some(timeouts.step))
            .timeout_recv_response(Some(timeouts.step))
    };
    let request = config().timeout_recv_body(Some(timeouts.body)).build();
    let watch = config()
        .timeout_per_read(Some(timeouts.silence))
        .max_idle_connections(0)
        .build();
    (request, watch)
}
