//! Keys and certificates of the cluster, made in process at every `up`.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// Signs everything of one cluster.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// PEM certificate.
    pub(crate) cert: PathBuf,
    /// PEM private key.
    pub(crate) key: PathBuf,
}

/// Who a certificate speaks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// Common name: the user.
    pub(crate) name: &'a str,
    /// Organisation: the group, or empty.
    pub(crate) group: &'a str,
    /// Names and addresses that it serves under; empty for a pure client.
    pub(crate) serves: &'a [&'a str],
}

impl Authority {
    /// Makes a new authority and writes its certificate to `folder/ca.crt`.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished("parallax-dev", "");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params);
        let key = KeyPair::generate().context("making the key of the authority")?;
        let cert = params.self_signed(&key).context("signing the authority")?;
        write(&folder.join("ca.crt"), &cert.pem())?;
        write(&folder.join("ca.key"), &key.serialize_pem())?;
        Ok(Self { issuer: Issuer::new(params, key), folder: folder.to_path_buf() })
    }

    /// Path of the authority's certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// Path of the authority's key.
    pub(crate) fn key(&self) -> PathBuf {
        self.folder.join("ca.key")
    }

    /// Signs a certificate and writes it as `file.crt` and `file.key`.
    pub(crate) fn sign(&self, file: &str, subject: Subject<'_>) -> Result<Identity> {
        let names: Vec<String> = subject.serves.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).context("a certificate's names")?;
        params.distinguished_name = distinguished(subject.name, subject.group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !subject.serves.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        validity(&mut params);
        let key = KeyPair::generate().context("making a key")?;
        let cert = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("signing the certificate of {}", subject.name))?;
        let identity = Identity {
            cert: self.folder.join(format!("{file}.crt")),
            key: self.folder.join(format!("{file}.key")),
        };
        write(&identity.cert, &cert.pem())?;
        write(&identity.key, &key.serialize_pem())?;
        Ok(identity)
    }

    /// A bare key pair (for service account tokens): private half in `key`, public half in `cert`.
    pub(crate) fn key_pair(&self, file: &str) -> Result<Identity> {
        let key = KeyPair::generate().context("making a key")?;
        let identity = Identity {
            cert: self.folder.join(format!("{file}.pub")),
            key: self.folder.join(format!("{file}.key")),
        };
        write(&identity.cert, &key.public_key_pem())?;
        write(&identity.key, &key.serialize_pem())?;
        Ok(identity)
    }
}

fn distinguished(name: &str, group: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    if !group.is_empty() {
        distinguished.push(DnType::OrganizationName, group);
    }
    distinguished
}

/// A development cluster lives for hours; its clock may be anywhere.
fn validity(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 1, 1);
}

fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}
