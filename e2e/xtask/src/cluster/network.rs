//! The bridge that the node and its pods share.

use std::path::Path;

use anyhow::{Result, bail};

use parallax_e2e::process::{self, COMMAND};

/// The bridge's name.
pub(crate) const BRIDGE: &str = "plx0";
/// Address of the node. Kubelet refuses a loopback address.
pub(crate) const NODE_ADDRESS: &str = "10.201.0.1";
/// Node and pods.
pub(crate) const POD_NETWORK: &str = "10.201.0.0/16";
/// First address of the service network: the `kubernetes` service, where the API server itself listens.
pub(crate) const API_ADDRESS: &str = "10.96.0.1";
/// Services.
pub(crate) const SERVICE_NETWORK: &str = "10.96.0.0/16";

/// Where everybody reaches the API server.
pub(crate) fn api_url() -> String {
    format!("https://{API_ADDRESS}:443")
}

/// Creates the bridge with its two addresses; does nothing where it exists.
pub(crate) fn create() -> Result<()> {
    if !exists() {
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    }
    ip(&["address", "replace", &format!("{NODE_ADDRESS}/16"), "dev", BRIDGE])?;
    ip(&["address", "replace", &format!("{API_ADDRESS}/32"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])
}

/// Removes the bridge.
pub(crate) fn remove() -> Result<()> {
    if exists() { ip(&["link", "delete", BRIDGE]) } else { Ok(()) }
}

/// Whether the bridge is there.
pub(crate) fn exists() -> bool {
    Path::new("/sys/class/net").join(BRIDGE).exists()
}

fn ip(arguments: &[&str]) -> Result<()> {
    if let Err(error) = process::output(process::command("ip").args(arguments), COMMAND) {
        bail!("{error}; the development cluster needs root and the right to create a bridge");
    }
    Ok(())
}
