//! pool create, pool info.

use crate::{
    args::Place,
    bare::{Bare, HELD},
    failure::{Failure, Outcome},
    output::{Output, facts, size},
    session::Session,
};
use parallax_api::{units::ByteSize, v1};
use parallax_store::{CreatePool, Pool};
use serde::Serialize;
use std::{fs, os::unix::fs::OpenOptionsExt, path::Path};

#[derive(Serialize)]
struct PoolView {
    uuid: String,
    path: String,
    format_version: u32,
    features: Vec<String>,
    capacity_bytes: u64,
    extent_bytes: u64,
    extents: u64,
    extents_free: u64,
    free_bytes: u64,
    data_bytes: u64,
    metadata_bytes: u64,
    metadata_reserved_bytes: u64,
    volumes: u64,
    volumes_attached: u64,
    provisioned_bytes: u64,
}

impl From<v1::Pool> for PoolView {
    fn from(pool: v1::Pool) -> Self {
        Self {
            uuid: pool.uuid,
            path: pool.path,
            format_version: pool.format_version,
            features: pool.features,
            capacity_bytes: pool.capacity_bytes,
            extent_bytes: pool.extent_bytes,
            extents: pool.extents_total,
            extents_free: pool.extents_free,
            free_bytes: pool.free_bytes,
            data_bytes: pool.data_bytes_used,
            metadata_bytes: pool.metadata_bytes_used,
            metadata_reserved_bytes: pool.metadata_bytes_reserved,
            volumes: pool.volume_count,
            volumes_attached: pool.volumes_attached,
            provisioned_bytes: pool.provisioned_bytes,
        }
    }
}

pub(crate) async fn info(session: &Session, output: Output) -> Outcome {
    let client = session.client();
    let pool = client.manager().get_pool(client.request(v1::GetPoolRequest {})).await?.into_inner();
    output.show(&PoolView::from(pool), |pool| {
        facts(&[
            ("pool", pool.uuid.clone()),
            ("device", pool.path.clone()),
            ("format", format!("version {} {}", pool.format_version, pool.features.join(" "))),
            ("capacity", size(pool.capacity_bytes)),
            ("free", format!("{} {}", size(pool.free_bytes), gauge(pool.capacity_bytes, pool.free_bytes))),
            ("data", size(pool.data_bytes)),
            (
                "metadata",
                format!("{} ({} kept back)", size(pool.metadata_bytes), size(pool.metadata_reserved_bytes)),
            ),
            (
                "extents",
                format!("{} of {}, {} free", pool.extents, size(pool.extent_bytes), pool.extents_free),
            ),
            ("volumes", format!("{}, {} attached", pool.volumes, pool.volumes_attached)),
            ("promised", size(pool.provisioned_bytes)),
        ])
    })
}

/// A bar of what is used.
fn gauge(capacity: u64, free: u64) -> String {
    const WIDTH: u64 = 20;
    let used = capacity.saturating_sub(free);
    let filled =
        if capacity == 0 { 0 } else { (u128::from(used) * u128::from(WIDTH)).div_ceil(u128::from(capacity)) };
    let filled = usize::try_from(filled).unwrap_or(0);
    format!("[{}{}]", "#".repeat(filled), "-".repeat(WIDTH as usize - filled))
}

#[derive(Serialize)]
struct Created {
    path: String,
    capacity_bytes: u64,
    extent_bytes: u64,
    uuid: String,
}

/// Formats a device. What is recognisable on it is only overwritten by force.
pub(crate) async fn create(
    output: Output,
    place: Place,
    path: &Path,
    bytes: Option<ByteSize>,
    extent: Option<ByteSize>,
    force: bool,
) -> Outcome {
    let made_file = match bytes {
        Some(bytes) => prepare_file(path, bytes.0, force)?,
        None if !path.exists() => {
            return Err(Failure::new(format!("{} does not exist", path.display()))
                .or_try(format!("parallax pool create {} --size 64G, for a new file", path.display())));
        }
        None => false,
    };
    let formatted = format(&place, path, extent, force).await;
    if formatted.is_err() && made_file {
        // It holds nothing but our failed attempt.
        let _ = fs::remove_file(path);
    }
    formatted?;
    let place = Place { pool: Some(path.to_owned()), ..place };
    let session = Session::open(&place).await?;
    let client = session.client();
    let pool = client.manager().get_pool(client.request(v1::GetPoolRequest {})).await;
    let shown = match pool {
        Ok(pool) => {
            let pool = pool.into_inner();
            let created = Created {
                path: path.display().to_string(),
                capacity_bytes: pool.capacity_bytes,
                extent_bytes: pool.extent_bytes,
                uuid: pool.uuid,
            };
            output.show(&created, |pool| {
                format!(
                    "pool {} on {}: {} in extents of {}\n\
                     next: parallax --pool {} create NAME --size 10G, or start parallaxd on it",
                    pool.uuid,
                    pool.path,
                    size(pool.capacity_bytes),
                    size(pool.extent_bytes),
                    pool.path
                )
            })
        }
        Err(status) => Err(status.into()),
    };
    session.close().await?;
    shown
}

async fn format(place: &Place, path: &Path, extent: Option<ByteSize>, force: bool) -> Outcome {
    let bare = Bare::open(path, false, HELD)?;
    let found = bare.run(|device| async move { parallax_store::recognise(&*device).await }).await?;
    if let Some(what) = found.filter(|_| !force) {
        return Err(Failure::new(format!("{} holds {what}", path.display()))
            .or_try("parallax pool create --force, if that may be lost"));
    }
    let environment = bare.environment(place)?;
    let options = CreatePool { extent_bytes: extent.map(|extent| extent.0), force };
    bare.run(move |device| async move { Pool::create(device, options, &environment).await }).await?;
    bare.close().await
}

/// Makes the file, or checks one that exists; whether it was made.
fn prepare_file(path: &Path, bytes: u64, force: bool) -> Outcome<bool> {
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            file.set_len(bytes)
                .map_err(|error| Failure::from(error).during(format!("sizing {}", path.display())))?;
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let found = fs::metadata(path)?;
            if found.is_file() && found.len() != bytes && !force {
                return Err(Failure::new(format!(
                    "{} exists with {}, not {}",
                    path.display(),
                    size(found.len()),
                    size(bytes)
                ))
                .or_try("leaving --size out"));
            }
            Ok(false)
        }
        Err(error) => Err(Failure::from(error).during(format!("creating {}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gauge_is_never_longer_than_its_frame() {
        assert_eq!(gauge(100, 100), "[--------------------]");
        assert_eq!(gauge(100, 99), "[#-------------------]");
        assert_eq!(gauge(100, 0), "[####################]");
        assert_eq!(gauge(0, 0), "[--------------------]");
        assert_eq!(gauge(100, 200), "[--------------------]");
    }
}
