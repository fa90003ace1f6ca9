//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use parallax_api::client::{Endpoint, TlsFiles};
use parallax_csi::manager::{DEFAULT_SERVER_NAME, ServiceName};
use parallax_csi::server::socket_path;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The CSI driver of Parallax.
#[derive(Debug, Parser)]
#[command(name = "parallax-csi", version, about)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) log: Log,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What is logged, and how.
#[derive(Debug, Args)]
pub(crate) struct Log {
    /// Level, or a filter such as `info,parallax_csi=debug`.
    #[arg(long, global = true, env = "PARALLAX_LOG", default_value = "info")]
    pub(crate) log: String,
    /// Form of the lines.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Volumes and snapshots of the pool; unprivileged, one for a cluster.
    Controller(Box<ControllerArgs>),
    /// Devices and mounts of this machine; one on every node, as root.
    Node(Box<NodeArgs>),
}

/// What both plugins take.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Where to serve CSI.
    #[arg(long, value_name = "unix:///PATH", value_parser = socket_path)]
    pub(crate) endpoint: PathBuf,
    /// Where to answer /healthz, /readyz and /metrics over HTTP.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) health_listen: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct ControllerArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// The manager: a daemon's socket, or its address for mutual TLS.
    #[arg(long, value_name = "unix:///PATH|https://HOST:PORT", required_unless_present = "manager_service")]
    pub(crate) manager: Option<Endpoint>,
    /// Headless Service of the manager; its EndpointSlices are read from the Kubernetes API.
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "manager", requires = "tls_ca")]
    pub(crate) manager_service: Option<ServiceName>,
    #[command(flatten)]
    pub(crate) tls: Tls,
}

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// This machine's daemon.
    #[arg(long, value_name = "unix:///PATH", default_value = "unix:///run/parallax/parallaxd.sock")]
    pub(crate) daemon: Endpoint,
    /// The folder that kubelet owns; every path in a call must lie below it.
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/kubelet")]
    pub(crate) kubelet_dir: PathBuf,
    /// Where kubelet looks for plugins; `plugins_registry` below --kubelet-dir if not set.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) registration_dir: Option<PathBuf>,
    /// Our CSI socket as kubelet sees it, if that differs from --endpoint.
    #[arg(long, value_name = "PATH", value_parser = socket_path)]
    pub(crate) kubelet_endpoint: Option<PathBuf>,
    /// Leave the registration with kubelet to the stock node-driver-registrar.
    #[arg(long)]
    pub(crate) no_registrar: bool,
}

/// Mutual TLS with the manager; PEM files.
#[derive(Debug, Args)]
pub(crate) struct Tls {
    /// Who signs the manager's certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// Our certificate.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    tls_key: Option<PathBuf>,
    /// Name that the manager's certificate carries.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_SERVER_NAME)]
    tls_server_name: String,
}

impl Tls {
    /// The files, if they were named; clap sees to it that all or none are.
    pub(crate) fn files(&self) -> Option<TlsFiles> {
        Some(TlsFiles {
            ca: self.tls_ca.clone()?,
            certificate: self.tls_cert.clone()?,
            key: self.tls_key.clone()?,
            server_name: Some(self.tls_server_name.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_controller_needs_to_know_where_the_manager_is() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["parallax-csi", "controller"], args].concat());
        let endpoint = ["--endpoint", "unix:///csi/csi.sock"];
        assert!(parse(&endpoint).is_err());
        assert!(parse(&[&endpoint[..], &["--manager", "unix:///run/parallaxd.sock"]].concat()).is_ok());
        assert!(parse(&[&endpoint[..], &["--manager", "http://x:1"]].concat()).is_err());
        assert!(
            parse(&[&endpoint[..], &["--manager-service", "a/b"]].concat()).is_err(),
            "without certificates"
        );
    }
}
