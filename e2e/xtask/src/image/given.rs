//! An image that somebody else built, such as the one from the Dockerfile.
//!
//! What `docker save`, `podman save` or `buildah push IMAGE docker-archive:FILE` wrote is read for its name only; the
//! node's containerd gets the archive as it is. There the image has a second name, which changes with its content:
//! under a name like `latest` an installation would not notice another image.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Image;
use super::archive::digest_of;

/// The table of contents of an archive.
const CONTENTS: &str = "manifest.json";
/// It names an image and its layers; more than this is something else.
const CONTENTS_MAX: u64 = 1 << 20;

/// One image of an archive's table of contents.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    repo_tags: Option<Vec<String>>,
}

/// Looks into the archive of one image.
pub(crate) fn given(archive: &Path) -> Result<Image> {
    let shown = archive.display();
    let listed: Vec<Listed> = serde_json::from_slice(&contents(archive)?)
        .with_context(|| format!("reading {CONTENTS} in {shown}"))?;
    let [image] = listed.as_slice() else {
        bail!("{shown} holds {} images; save the one of Parallax alone", listed.len());
    };
    let Some(origin) = image.repo_tags.as_ref().and_then(|names| names.first()) else {
        bail!("the image in {shown} has no name; save it by its name, not by its id");
    };
    let digest = digest_of(archive)?;
    Ok(Image {
        names: vec![format!("localhost/parallax:given-{}", &digest[..12])],
        origin: Some(in_full(origin)),
        digest,
        archive: archive.canonicalize().with_context(|| format!("finding {shown}"))?,
    })
}

fn contents(archive: &Path) -> Result<Vec<u8>> {
    let shown = archive.display();
    let file = File::open(archive).with_context(|| format!("opening {shown}"))?;
    let mut tar = tar::Archive::new(file);
    for entry in tar.entries().with_context(|| format!("reading {shown}"))? {
        let entry = entry.with_context(|| format!("reading {shown}; is it an archive of docker save?"))?;
        if entry.path().is_ok_and(|path| path == Path::new(CONTENTS)) {
            let mut bytes = Vec::new();
            entry
                .take(CONTENTS_MAX)
                .read_to_end(&mut bytes)
                .with_context(|| format!("reading {CONTENTS} in {shown}"))?;
            return Ok(bytes);
        }
    }
    bail!("{shown} has no {CONTENTS}; make it with docker save, or buildah push IMAGE docker-archive:FILE")
}

/// A name as containerd keeps it: with a registry, even where people leave it out.
fn in_full(name: &str) -> String {
    match name.split_once('/') {
        None => format!("docker.io/library/{name}"),
        Some((first, _)) if first == "localhost" || first.contains(['.', ':']) => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn archive(name: &str, file: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("parallax-given-{name}-{}.tar", std::process::id()));
        let mut tar = tar::Builder::new(File::create(&path).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, file, text.as_bytes()).unwrap();
        tar.into_inner().unwrap();
        path
    }

    fn refused(name: &str, file: &str, text: &str) -> String {
        let path = archive(name, file, text);
        let error = format!("{:#}", given(&path).unwrap_err());
        std::fs::remove_file(path).unwrap();
        error
    }

    #[test]
    fn an_image_is_known_by_its_name_and_renamed_by_its_content() {
        let path = archive("one", CONTENTS, r#"[{"Config":"c","RepoTags":["parallax:latest"],"Layers":[]}]"#);
        let image = given(&path).unwrap();
        assert_eq!(image.origin.as_deref(), Some("docker.io/library/parallax:latest"));
        assert_eq!(image.names, [format!("localhost/parallax:given-{}", &image.digest[..12])]);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_cannot_be_used_says_what_to_do() {
        assert!(refused("unnamed", CONTENTS, r#"[{"RepoTags":null}]"#).contains("save it by its name"));
        assert!(refused("none", CONTENTS, "[]").contains("save the one of Parallax alone"));
        assert!(refused("other", "etc/passwd", "root").contains("docker save"));
    }

    #[test]
    fn names_without_a_registry_get_the_one_that_everybody_means() {
        assert_eq!(in_full("parallax:1"), "docker.io/library/parallax:1");
        assert_eq!(in_full("somebody/parallax:1"), "docker.io/somebody/parallax:1");
        assert_eq!(in_full("localhost/parallax:1"), "localhost/parallax:1");
        assert_eq!(in_full("registry.example:5000/parallax:1"), "registry.example:5000/parallax:1");
    }
}
