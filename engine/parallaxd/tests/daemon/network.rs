//! The manager on the network: mutual TLS or nothing.

use crate::{life::free_port, world::*};
use parallax_api::{
    client::{Client, Endpoint, TlsFiles},
    v1,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::path::{Path, PathBuf};
use tonic::Code;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: PathBuf,
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = directory.join(format!("{name}.pem"));
        std::fs::write(&pem, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key of somebody.
    fn sign(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let paths = (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
        std::fs::write(&paths.0, certificate.pem()).unwrap();
        std::fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }
}

#[tokio::test]
async fn the_manager_speaks_to_whom_its_authority_signed_and_to_nobody_else() {
    let port = free_port();
    let certificates = tempfile::tempdir().unwrap();
    let directory = certificates.path();
    let (ours, theirs) = (Authority::new(directory, "ours"), Authority::new(directory, "theirs"));
    let (server, server_key) = ours.sign(directory, "manager.parallax");
    let (friend, friend_key) = ours.sign(directory, "controller");
    let (stranger, stranger_key) = theirs.sign(directory, "stranger");
    let mut world = World::new().with(&format!(
        "manager:\n  listen: '127.0.0.1:{port}'\n  tls: {{certificate: {}, key: {}, client_ca: {}}}\n",
        server.display(),
        server_key.display(),
        ours.pem.display()
    ));
    let local = world.start().await;
    create(&local, "db", 16 << 20).await;

    let endpoint = |certificate: &Path, key: &Path, ca: &Path, name: Option<&str>| Endpoint::Tls {
        host: "127.0.0.1".into(),
        port,
        files: TlsFiles {
            ca: ca.to_owned(),
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            server_name: name.map(str::to_owned),
        },
    };
    let name = Some("manager.parallax");
    let list = async |client: &Client| {
        let request = client.request(v1::ListVolumesRequest::default());
        client.manager().list_volumes(request).await.map(|page| page.into_inner().volumes.len())
    };

    let client = Client::connect(&endpoint(&friend, &friend_key, &ours.pem, name)).await.unwrap();
    assert_eq!(list(&client).await.unwrap(), 1);
    // The node's calls are for this machine alone.
    let refused = client.node().get_node(client.request(v1::GetNodeRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);

    // TLS 1.3 tells a client only at its first call that it was not accepted.
    let refused = match Client::connect(&endpoint(&stranger, &stranger_key, &ours.pem, name)).await {
        Ok(client) => list(&client).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "a stranger's certificate was accepted");
    let impostor = Client::connect(&endpoint(&friend, &friend_key, &theirs.pem, name)).await;
    assert!(impostor.is_err(), "a server of another authority was accepted");
    let misnamed = Client::connect(&endpoint(&friend, &friend_key, &ours.pem, None)).await;
    assert!(misnamed.is_err(), "a server under another name was accepted");

    // Without TLS, or without a certificate, there is nothing to talk to.
    let plain = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    let plain = match plain.connect().await {
        Ok(channel) => v1::manager_client::ManagerClient::new(channel)
            .list_volumes(v1::ListVolumesRequest::default())
            .await
            .is_err(),
        Err(_) => true,
    };
    assert!(plain, "plain HTTP was answered");
    let bare = tonic::transport::ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(std::fs::read(&ours.pem).unwrap()))
        .domain_name("manager.parallax");
    let bare = tonic::transport::Endpoint::from_shared(format!("https://127.0.0.1:{port}"))
        .unwrap()
        .tls_config(bare)
        .unwrap();
    let bare = match bare.connect().await {
        Ok(channel) => v1::manager_client::ManagerClient::new(channel)
            .list_volumes(v1::ListVolumesRequest::default())
            .await
            .is_err(),
        Err(_) => true,
    };
    assert!(bare, "a client without a certificate was answered");
    assert!(world.stop().success());
}
