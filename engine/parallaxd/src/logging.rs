//! Log lines on standard error.
//!
//! Nothing secret is logged: the daemon reads keys only to hand them to TLS, and neither requests' attributes nor
//! volumes' bytes are fields of any event.

use crate::config::{LogConfig, LogFormat};
use parallax_block::{Error, Result};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging for the whole process. Fails if the filter is malformed or logging has been started before.
pub fn start(config: &LogConfig) -> Result<()> {
    let filter = EnvFilter::builder().parse(&config.filter).map_err(|error| {
        Error::invalid(format!(
            "log.filter: '{}' is neither a level nor a list of module=level",
            config.filter
        ))
        .with_source(error)
    })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Error::invalid(format!("logging cannot be started: {error}")))
}
