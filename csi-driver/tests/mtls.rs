//! The controller finds the manager by the EndpointSlices of its Service and trusts it by its certificate alone.
//!
//! The Kubernetes API is played by an HTTP server that knows one list; the manager is the test daemon behind real
//! mutual TLS.

mod support;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parallax_api::v1::manager_server::ManagerServer;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::plugin::Plugin;
use support::shop::Shop;
use support::world::CreateRequest;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate for `name` and its key, as PEM.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

/// A manager behind mutual TLS.
async fn manager(authority: &Authority, folder: &Path) -> SocketAddr {
    let (certificate, key) = authority.sign("parallax-manager");
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(certificate, key))
        .client_ca_root(Certificate::from_pem(authority.pem()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shop = Arc::new(Mutex::new(Shop::new(folder.to_owned())));
    let router = tonic::transport::Server::builder()
        .tls_config(tls)
        .unwrap()
        .add_service(ManagerServer::new(support::manager::Service(shop)));
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// An API server that answers every request with the slices of a Service: a dead endpoint, then the manager.
async fn kubernetes(manager: SocketAddr, asked: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let slice = |ip: &str, ready: bool| {
        format!(
            r#"{{"metadata":{{"name":"s"}},"addressType":"IPv4","ports":[{{"port":{}}}],
               "endpoints":[{{"addresses":["{ip}"],"conditions":{{"ready":{ready}}}}}]}}"#,
            manager.port()
        )
    };
    let items = [slice("192.0.2.1", false), slice("127.0.0.2", true), slice("127.0.0.1", true)].join(",");
    let list = format!(
        r#"{{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{{}},"items":[{items}]}}"#
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (list, asked) = (list.clone(), Arc::clone(&asked));
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                asked.lock().unwrap().push(request.uri().to_string());
                let answer = Response::builder().header("content-type", "application/json");
                let answer = answer.body(Full::new(Bytes::from(list.clone()))).unwrap();
                async move { Ok::<_, Infallible>(answer) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

struct Cluster {
    folder: tempfile::TempDir,
    kubeconfig: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Cluster {
    /// The controller's certificate is signed by `signer`, the manager's by `authority`.
    async fn new(authority: &Authority, signer: &Authority) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let asked = Arc::default();
        let api = kubernetes(manager(authority, folder.path()).await, Arc::clone(&asked)).await;
        let kubeconfig = folder.path().join("kubeconfig");
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
             clusters: [{{name: a, cluster: {{server: \"http://{api}\"}}}}]\nusers: [{{name: a, user: {{}}}}]\n"
        );
        std::fs::write(&kubeconfig, config).unwrap();
        let (certificate, key) = signer.sign("parallax-controller");
        std::fs::write(folder.path().join("ca.crt"), authority.pem()).unwrap();
        std::fs::write(folder.path().join("tls.crt"), certificate).unwrap();
        std::fs::write(folder.path().join("tls.key"), key).unwrap();
        Self { folder, kubeconfig, asked }
    }

    fn controller(&self, more: &[&str]) -> Plugin {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let (ca, certificate, key) = (file("ca.crt"), file("tls.crt"), file("tls.key"));
        let args =
            ["--manager-service", "storage/parallax-manager", "--tls-ca", &ca, "--tls-cert", &certificate];
        let args =
            args.into_iter().chain(["--tls-key", &key]).chain(more.iter().copied()).collect::<Vec<_>>();
        Plugin::spawn_controller(self.folder.path(), &args, &[("KUBECONFIG", &self.kubeconfig)])
    }
}

/// Waits until `Probe` is answered, and says what it said.
async fn ready(controller: &Plugin) -> bool {
    for _ in 0..200 {
        if let Some(ready) = controller.ready().await {
            return ready;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{}", std::fs::read_to_string(&controller.log).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_is_found_by_its_service_and_trusted_by_its_name() {
    let authority = Authority::new();
    let cluster = Cluster::new(&authority, &authority).await;
    let controller = cluster.controller(&[]);
    controller.wait_until_ready().await;
    controller.controller_client().create_volume(CreateRequest::new("v", 8).0).await.unwrap();
    let asked = cluster.asked.lock().unwrap()[0].clone();
    assert!(asked.starts_with("/apis/discovery.k8s.io/v1/namespaces/storage/endpointslices?"), "{asked}");
    assert!(asked.contains("labelSelector=kubernetes.io%2Fservice-name%3Dparallax-manager"), "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_another_name_or_another_authority_is_not_trusted() {
    let authority = Authority::new();
    let cluster = Cluster::new(&authority, &authority).await;
    let controller = cluster.controller(&["--tls-server-name", "somebody-else"]);
    assert!(!ready(&controller).await);
    let log = std::fs::read_to_string(&controller.log).unwrap();
    assert!(log.contains("not valid for name"), "{log}");

    // The manager for its part refuses a client that a stranger vouches for.
    let cluster = Cluster::new(&authority, &Authority::new()).await;
    assert!(!ready(&cluster.controller(&[])).await);
}
