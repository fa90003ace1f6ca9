//! Writes an image archive.
//!
//! ```text
//! manifest.json        [{Config, RepoTags, Layers}]
//! <digest>.json        configuration: entry point, user, digests of the layers
//! base.tar             root file system, when there is one
//! layer.tar            our own files
//! ```
//!
//! Invariants:
//! * The same inputs give the same bytes: times are zero, owners are root, order is the recipe's.
//! * An archive appears under its name only when it is complete.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::Image;
use super::root::Root;
use crate::world::World;

/// How to make an image.
#[derive(Debug, Default)]
pub(crate) struct Recipe {
    /// Full references. The word `CONTENT` in one is replaced by a digest of the content.
    pub(crate) names: Vec<String>,
    /// What lies below our files.
    pub(crate) base: Option<Root>,
    /// Our files.
    pub(crate) entries: Vec<Entry>,
    /// Program and first arguments.
    pub(crate) entrypoint: Vec<String>,
    /// `uid` or `uid:gid`; empty means root.
    pub(crate) user: String,
}

/// One file of our layer. Paths are absolute inside the image.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A directory with its mode.
    Folder(&'static str, u32),
    /// A program copied from this machine.
    Program(String, PathBuf),
    /// A small text file.
    Text(&'static str, String),
    /// A symbolic link: path, target.
    Link(String, &'static str),
}

impl Recipe {
    /// Builds the archive, or finds the one that was built from the same inputs.
    pub(crate) fn build(mut self, world: &World) -> Result<Image> {
        let digest = self.fingerprint()?;
        for name in &mut self.names {
            *name = name.replace("CONTENT", &digest[..12]);
        }
        let folder = world.cache.join("images");
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let stem: String =
            self.names[0].chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let stem = stem.replace(&digest[..12], "content");
        let archive = folder.join(format!("{stem}.{}.tar", &digest[..12]));
        if !archive.exists() {
            forget_older(&folder, &stem)?;
            self.write(&archive)?;
        }
        Ok(Image { names: self.names, origin: None, digest, archive })
    }

    /// Digest of the inputs. Programs count by path, size and time of change: they are large.
    fn fingerprint(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        hasher.update(format!("{:?} {:?} {}", self.names, self.entrypoint, self.user));
        if let Some(base) = &self.base {
            hasher.update(base.digest());
        }
        for entry in &self.entries {
            hasher.update(format!("{entry:?}"));
            if let Entry::Program(_, source) = entry {
                let meta = fs::metadata(source).with_context(|| format!("reading {}", source.display()))?;
                hasher.update(format!("{} {} {}", meta.size(), meta.mtime(), meta.mtime_nsec()));
            }
        }
        Ok(hex(&hasher.finalize()))
    }

    fn write(&self, archive: &Path) -> Result<()> {
        let layer = archive.with_extension("layer");
        let layer_digest = self.write_layer(&layer)?;
        let mut layers = Vec::new();
        let mut digests = Vec::new();
        if let Some(base) = &self.base {
            layers.push("base.tar");
            digests.push(format!("sha256:{}", base.digest()));
        }
        layers.push("layer.tar");
        digests.push(format!("sha256:{layer_digest}"));
        let config = serde_json::to_vec(&json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": self.entrypoint,
                "User": self.user,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": digests},
            "history": layers.iter().map(|_| json!({"created_by": "cargo xtask"})).collect::<Vec<_>>(),
        }))
        .context("writing an image's configuration")?;
        let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
        let manifest = serde_json::to_vec(&json!([
            {"Config": config_name, "RepoTags": self.names, "Layers": layers}
        ]))
        .context("writing an image's manifest")?;

        let partial = archive.with_extension("partial");
        let file = File::create(&partial).with_context(|| format!("creating {}", partial.display()))?;
        let mut tar = Builder::new(file);
        append_bytes(&mut tar, "manifest.json", &manifest, 0o644)?;
        append_bytes(&mut tar, &config_name, &config, 0o644)?;
        if let Some(base) = &self.base {
            append_file(&mut tar, "base.tar", base.tar(), 0o644)?;
        }
        append_file(&mut tar, "layer.tar", &layer, 0o644)?;
        tar.into_inner().and_then(|mut file| file.flush()).context("finishing an image archive")?;
        fs::remove_file(&layer).context("removing a layer's file")?;
        fs::rename(&partial, archive).with_context(|| format!("naming {}", archive.display()))
    }

    /// Writes our layer and answers with its digest.
    fn write_layer(&self, path: &Path) -> Result<String> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        let mut tar = Builder::new(Hashing { file, hasher: Sha256::new() });
        for entry in &self.entries {
            match entry {
                Entry::Folder(path, mode) => {
                    let mut header = header(EntryType::Directory, *mode, 0);
                    tar.append_data(&mut header, relative(path), io::empty())
                        .with_context(|| format!("adding {path}"))?;
                }
                Entry::Program(path, source) => append_file(&mut tar, relative(path), source, 0o755)?,
                Entry::Text(path, text) => append_bytes(&mut tar, relative(path), text.as_bytes(), 0o644)?,
                Entry::Link(path, target) => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    tar.append_link(&mut header, relative(path), target)
                        .with_context(|| format!("adding {path}"))?;
                }
            }
        }
        let sink = tar.into_inner().context("finishing a layer")?;
        sink.file.sync_data().context("finishing a layer")?;
        Ok(hex(&sink.hasher.finalize()))
    }
}

/// Passes bytes on to a file and hashes them.
struct Hashing {
    file: File,
    hasher: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Digest of a file, in hexadecimal.
pub(crate) fn digest_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut hasher).with_context(|| format!("reading {}", path.display()))?;
    Ok(hex(&hasher.finalize()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append_bytes(tar: &mut Builder<impl Write>, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = header(EntryType::Regular, mode, bytes.len() as u64);
    tar.append_data(&mut header, name, bytes).with_context(|| format!("adding {name}"))
}

fn append_file(tar: &mut Builder<impl Write>, name: &str, source: &Path, mode: u32) -> Result<()> {
    let file = File::open(source).with_context(|| format!("opening {}", source.display()))?;
    let size = file.metadata().with_context(|| format!("reading {}", source.display()))?.len();
    let mut header = header(EntryType::Regular, mode, size);
    tar.append_data(&mut header, name, file).with_context(|| format!("adding {name}"))
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// Archives of the same image with other content are of no use any more.
fn forget_older(folder: &Path, stem: &str) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry.context("reading the folder of images")?;
        if entry.file_name().to_string_lossy().starts_with(&format!("{stem}.")) {
            fs::remove_file(entry.path()).with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn world(name: &str) -> World {
        let root = std::env::temp_dir().join(format!("parallax-image-{name}-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        World { repo: root.clone(), cache: root.clone(), state: root }
    }

    fn recipe() -> Recipe {
        Recipe {
            names: vec!["localhost/thing:CONTENT".into()],
            entries: vec![
                Entry::Folder("/etc", 0o755),
                Entry::Text("/etc/word", "hello\n".into()),
                Entry::Link("/etc/other".into(), "word"),
            ],
            entrypoint: vec!["/thing".into()],
            ..Recipe::default()
        }
    }

    fn unpack(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(name, bytes);
        }
        files
    }

    #[test]
    fn the_configuration_names_each_layer_by_the_digest_of_its_bytes() {
        let world = world("digests");
        let image = recipe().build(&world).unwrap();
        let files = unpack(image.archive());
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        let config_name = manifest[0]["Config"].as_str().unwrap();
        assert_eq!(config_name, format!("{}.json", hex(&Sha256::digest(&files[config_name]))));
        let config: serde_json::Value = serde_json::from_slice(&files[config_name]).unwrap();
        let layer = format!("sha256:{}", hex(&Sha256::digest(&files["layer.tar"])));
        assert_eq!(config["rootfs"]["diff_ids"][0], layer.as_str());
        fs::remove_dir_all(&world.cache).unwrap();
    }

    #[test]
    fn other_content_gives_another_name_and_the_old_archive_goes() {
        let world = world("content");
        let first = recipe().build(&world).unwrap();
        let mut changed = recipe();
        changed.entries[1] = Entry::Text("/etc/word", "bye\n".into());
        let second = changed.build(&world).unwrap();
        assert_ne!(first.names(), second.names());
        assert!(!first.archive().exists());
        assert!(second.archive().exists());
        fs::remove_dir_all(&world.cache).unwrap();
    }
}
