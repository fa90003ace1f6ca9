//! Where the manager is, for a controller that runs anywhere in the cluster.
//!
//! Either an address, or a headless Service: then the Kubernetes API is asked for the Service's EndpointSlices
//! whenever a connection has to be made, because the cluster's DNS and kube-proxy may themselves be waiting for
//! volumes. The server proves with its certificate that it is the manager, whatever address it has.

use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, api::ListParams};
use parallax_api::client::{Client, Endpoint, TlsFiles};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, Uri};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Name that the manager's certificate carries, wherever it runs.
pub const DEFAULT_SERVER_NAME: &str = "parallax-manager";

/// A headless Service, written `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    namespace: String,
    name: String,
}

impl FromStr for ServiceName {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let label = |part: &str| {
            !part.is_empty()
                && part.len() <= 63
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        match text.split_once('/') {
            Some((namespace, name)) if label(namespace) && label(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("`{text}` is not a Service; write namespace/name")),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A client of the manager at an address.
pub fn at(endpoint: Endpoint, files: Option<TlsFiles>) -> Result<Client> {
    let endpoint = match (endpoint, files) {
        (endpoint @ Endpoint::Unix(_), _) => endpoint,
        (endpoint, Some(files)) => endpoint.with_files(files),
        (endpoint, None) => bail!("{endpoint} needs --tls-ca, --tls-cert and --tls-key"),
    };
    Ok(Client::lazy(&endpoint)?)
}

/// A client of the manager behind a Service.
pub async fn behind(service: ServiceName, files: &TlsFiles) -> Result<Client> {
    let kubernetes = kube::Client::try_default().await.context(
        "reaching the Kubernetes API, which --manager-service needs (a service account token, or a kubeconfig)",
    )?;
    let slices: Api<EndpointSlice> = Api::namespaced(kubernetes, &service.namespace);
    let read = |what: &str, path: &Path| {
        std::fs::read(path).with_context(|| format!("reading the {what} {}", path.display()))
    };
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("CA certificate", &files.ca)?))
        .identity(Identity::from_pem(
            read("client certificate", &files.certificate)?,
            read("client key", &files.key)?,
        ))
        .domain_name(files.server_name.as_deref().unwrap_or(DEFAULT_SERVER_NAME));
    let connector = tower::service_fn(move |_: Uri| {
        let (slices, service) = (slices.clone(), service.clone());
        async move { connect(&slices, &service).await.map(TokioIo::new) }
    });
    let channel = tonic::transport::Endpoint::from_static("https://parallax-manager")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .tls_config(tls)
        .context("using the certificates")?
        .connect_with_connector_lazy(connector);
    Ok(Client::over(channel))
}

/// Connects to the first ready address that accepts.
async fn connect(slices: &Api<EndpointSlice>, service: &ServiceName) -> io::Result<TcpStream> {
    let selector = ListParams::default().labels(&format!("kubernetes.io/service-name={}", service.name));
    let found = tokio::time::timeout(LOOKUP_TIMEOUT, slices.list(&selector))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the Kubernetes API did not answer"))?
        .map_err(io::Error::other)?;
    let addresses = ready_addresses(&found.items);
    let mut last = io::Error::new(
        io::ErrorKind::NotFound,
        format!("Service {service} has no ready endpoint: is parallaxd running on a node?"),
    );
    for address in addresses {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                tracing::info!(%address, "connected to the manager");
                return Ok(stream);
            }
            Ok(Err(error)) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
            Err(_) => {
                last = io::Error::new(io::ErrorKind::TimedOut, format!("{address}: no connection in time"))
            }
        }
    }
    Err(last)
}

/// Addresses of endpoints that are not known to be unready. Slices of a headless Service name the port.
fn ready_addresses(slices: &[EndpointSlice]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for slice in slices {
        let port = slice.ports.iter().flatten().find_map(|port| port.port);
        let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { continue };
        for endpoint in &slice.endpoints {
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            let parsed = endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
            addresses.extend(parsed.filter(|_| ready).map(|ip| SocketAddr::new(ip, port)));
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};

    fn endpoint(address: &str, ready: Option<bool>) -> Endpoint {
        Endpoint {
            addresses: vec![address.to_owned()],
            conditions: Some(EndpointConditions { ready, ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn only_ready_endpoints_with_a_port_are_tried() {
        let slice = EndpointSlice {
            address_type: "IPv4".into(),
            endpoints: vec![
                endpoint("10.0.0.1", Some(true)),
                endpoint("10.0.0.2", Some(false)),
                endpoint("fd00::3", None),
                endpoint("not an address", Some(true)),
            ],
            ports: Some(vec![EndpointPort { port: Some(9443), ..Default::default() }]),
            ..Default::default()
        };
        let without_port = EndpointSlice { ports: None, ..slice.clone() };
        assert_eq!(
            ready_addresses(&[without_port, slice]),
            ["10.0.0.1:9443".parse().unwrap(), "[fd00::3]:9443".parse().unwrap()]
        );
    }

    #[test]
    fn a_service_is_written_with_its_namespace() {
        assert_eq!("parallax/manager".parse::<ServiceName>().unwrap().to_string(), "parallax/manager");
        for bad in ["manager", "/manager", "a/b/c", "A/b"] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_without_certificates_is_refused() {
        let error = at("https://[::1]:1".parse().unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("--tls-ca"), "{error}");
    }
}
