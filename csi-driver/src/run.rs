//! Puts the parts of a plugin together and runs it until it is asked to end.

use crate::cli::{Command, Common, ControllerArgs, Log, LogFormat, NodeArgs};
use anyhow::{Context as _, Result, bail};
use parallax_api::client::{Client, Endpoint};
use parallax_csi::controller::ControllerService;
use parallax_csi::identity::{DependsOn, IdentityService};
use parallax_csi::ids::KubeletDir;
use parallax_csi::metrics::Metrics;
use parallax_csi::node::{NodeService, registrar::Registrar};
use parallax_csi::proto::csi::{
    controller_server::ControllerServer, group_controller_server::GroupControllerServer,
    identity_server::IdentityServer, node_server::NodeServer,
    snapshot_metadata_server::SnapshotMetadataServer,
};
use parallax_csi::server::{self, End, Shell};
use parallax_csi::{health, manager};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::Router;
use tracing_subscriber::EnvFilter;

/// Starts logging to standard error.
pub(crate) fn log(log: &Log) {
    let (filter, complaint) = match EnvFilter::try_new(&log.log) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match log.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    if let Some(error) = complaint {
        tracing::warn!(%error, filter = log.log, "the log filter is not usable; logging at info");
    }
}

/// Runs one plugin.
pub(crate) async fn run(command: Command) -> Result<()> {
    let end = End::on_signals().context("listening for signals")?;
    match command {
        Command::Controller(args) => controller(*args, end).await,
        Command::Node(args) => node(*args, end).await,
    }
}

async fn controller(args: ControllerArgs, end: End) -> Result<()> {
    let client = manager_of(&args).await?;
    let metrics = Metrics::default();
    let service = ControllerService::new(client.clone(), Shell::new(metrics.clone()));
    let router = tonic::transport::Server::builder()
        .add_service(IdentityServer::new(IdentityService::new(DependsOn::Manager(client))))
        .add_service(ControllerServer::new(service.clone()))
        .add_service(GroupControllerServer::new(service.clone()))
        .add_service(SnapshotMetadataServer::new(service));
    serve(router, &args.common, metrics, end).await
}

async fn manager_of(args: &ControllerArgs) -> Result<Client> {
    match (&args.manager, &args.manager_service, args.tls.files()) {
        (Some(endpoint), _, files) => manager::at(endpoint.clone(), files),
        (None, Some(service), Some(files)) => manager::behind(service.clone(), &files).await,
        // clap requires one of the two, and the certificates with the second.
        (None, ..) => anyhow::bail!(
            "name the manager: --manager, or --manager-service with --tls-ca, --tls-cert, --tls-key"
        ),
    }
}

async fn node(args: NodeArgs, end: End) -> Result<()> {
    let Endpoint::Unix(_) = args.daemon else {
        bail!("--daemon must be a socket of this machine: unix:///PATH")
    };
    let client = manager::at(args.daemon.clone(), None)?;
    let kubelet = KubeletDir::open(&args.kubelet_dir)
        .with_context(|| format!("opening the kubelet folder {}", args.kubelet_dir.display()))?;
    let folder = args.registration_dir.unwrap_or_else(|| kubelet.path().join("plugins_registry"));
    let metrics = Metrics::default();
    let service = NodeService::new(client.clone(), kubelet, Shell::new(metrics.clone()));
    let depends_on = DependsOn::Daemon(client);
    let router = tonic::transport::Server::builder()
        .add_service(IdentityServer::new(IdentityService::new(depends_on.clone())))
        .add_service(NodeServer::new(service));
    if args.no_registrar {
        return serve(router, &args.common, metrics, end).await;
    }
    let registrar = Registrar::new(args.kubelet_endpoint.unwrap_or_else(|| args.common.endpoint.clone()));
    let registered = registrar.serve(&folder, depends_on, end.clone().asked());
    // kubelet finds the CSI socket by what the other one answers, and asks again until both are there.
    tokio::try_join!(serve(router, &args.common, metrics, end), registered).map(|_| ())
}

async fn serve(router: Router, common: &Common, metrics: Metrics, end: End) -> Result<()> {
    let listener = server::listen(&common.endpoint).await?;
    let health = match common.health_listen {
        None => None,
        Some(address) => {
            let http = tokio::net::TcpListener::bind(address)
                .await
                .with_context(|| format!("listening on {address} for health checks"))?;
            Some(tokio::spawn(health::serve(http, common.endpoint.clone(), metrics)))
        }
    };
    tracing::info!(endpoint = %common.endpoint.display(), version = env!("CARGO_PKG_VERSION"), "serving CSI");
    let served = router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), end.asked()).await;
    if let Some(health) = health {
        health.abort();
    }
    // A socket that nobody serves would make the next start look twice; it copes if this fails.
    let _ = std::fs::remove_file(&common.endpoint);
    served.context("serving CSI")
}
