//! Where a daemon is: `unix:///run/parallax/parallaxd.sock` or `https://host:port`.

use std::{fmt, path::PathBuf, str::FromStr};

/// Files of a mutual TLS connection, all PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Who may have signed the server's certificate.
    pub ca: PathBuf,
    /// Our certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Name that the server's certificate must carry, if it is not the host's.
    pub server_name: Option<String>,
}

/// Where a daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket on this machine.
    Unix(PathBuf),
    /// Mutual TLS. `FromStr` leaves the files empty: see [`Endpoint::with_files`].
    Tls {
        /// Name or address; an IPv6 address in brackets.
        host: String,
        /// Port.
        port: u16,
        /// Whom to trust and who we are.
        files: TlsFiles,
    },
}

/// Text that is not an endpoint; says what would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointError(String);

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for EndpointError {}

impl Endpoint {
    /// The same place with these certificates; a socket needs none.
    #[must_use]
    pub fn with_files(self, files: TlsFiles) -> Self {
        match self {
            Self::Tls { host, port, .. } => Self::Tls { host, port, files },
            Self::Unix(path) => Self::Unix(path),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let bad = |why: &str| EndpointError(format!("'{text}' is not an endpoint: {why}"));
        if let Some(path) = text.strip_prefix("unix://") {
            if !path.starts_with('/') {
                return Err(bad(
                    "the socket's path must be absolute, as in unix:///run/parallax/parallaxd.sock",
                ));
            }
            return Ok(Self::Unix(path.into()));
        }
        if text.starts_with("http://") {
            return Err(bad("plain HTTP is never spoken; use https:// with certificates"));
        }
        let Some(rest) = text.strip_prefix("https://") else {
            return Err(bad("it must begin with unix:// or https://"));
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad("the port is missing"))?;
        let port =
            port.parse().ok().filter(|port| *port != 0).ok_or_else(|| bad("the port is not a number"))?;
        let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        if host.is_empty() || bare_v6 || host.contains(['/', '@', '?', '#']) {
            return Err(bad("the host is malformed"));
        }
        Ok(Self::Tls { host: host.to_owned(), port, files: TlsFiles::default() })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tls { host, port, .. } => write!(f, "https://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_read_back() {
        for text in
            ["unix:///run/parallax/parallaxd.sock", "https://manager.parallax:8443", "https://[::1]:1"]
        {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn plain_http_is_refused_by_name() {
        let error = "http://manager:80".parse::<Endpoint>().unwrap_err().to_string();
        assert!(error.contains("never spoken"), "{error}");
    }

    #[test]
    fn malformed_endpoints_are_refused() {
        for text in [
            "",
            "unix://relative",
            "https://host",
            "https://:1",
            "https://a/b:1",
            "https://::1:1",
            "tcp://a:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
