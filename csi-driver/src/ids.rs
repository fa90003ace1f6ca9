//! Identifiers and paths from outside, parsed to types.
//!
//! Invariants:
//! * No string that a caller sent reaches a path, a command line or the manager except through a type here.
//! * A [`KubeletPath`] lies under the kubelet folder after every symbolic link on the way was resolved.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use tonic::Status;
use uuid::Uuid;

/// A volume: the id of its VDI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(Uuid);

impl VolumeId {
    /// `None` if the text is no id of ours: such a volume does not exist.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Uuid::try_parse(text).ok()?;
        // One spelling, so that one volume has one lock and one entry in any map.
        (id.hyphenated().to_string() == text).then_some(Self(id))
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// A snapshot: `<vdi uuid>@<number>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId {
    volume: VolumeId,
    number: u64,
}

impl SnapshotId {
    /// `None` if the text is no id of ours: such a snapshot does not exist.
    pub fn parse(text: &str) -> Option<Self> {
        let (volume, number) = text.split_once('@')?;
        let id = Self { volume: VolumeId::parse(volume)?, number: number.parse().ok()? };
        (id.to_string() == text).then_some(id)
    }

    /// The volume that it was taken of.
    pub fn volume(self) -> VolumeId {
        self.volume
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.number)
    }
}

/// A name that the orchestrator chose for a volume or snapshot: 1 to 128 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(String);

impl Name {
    /// Longest name in bytes: the limit that CSI sets on strings.
    pub const MAX_BYTES: usize = 128;

    /// Checks `text`, which the caller sent as `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self, Status> {
        let refuse = |why: &str| Err(Status::invalid_argument(format!("{field} {why}")));
        if text.is_empty() {
            return refuse("is missing");
        }
        if text.len() > Self::MAX_BYTES {
            return refuse(&format!("is {} bytes long; at most {} are allowed", text.len(), Self::MAX_BYTES));
        }
        if text.chars().any(char::is_control) {
            return refuse("contains a control character");
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the manager calls the snapshots of a group: the group's name behind a mark.
///
/// The manager gives every named snapshot a set, a single one too, so the set alone does not tell a group. No single
/// snapshot may bear the mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupName(Name);

impl GroupName {
    const MARK: &'static str = "group/";

    /// Checks `text`, which the caller sent as `field`. The mark takes a few of a name's bytes.
    pub fn parse(field: &str, text: &str) -> Result<Self, Status> {
        let name = Name::parse(field, text)?;
        let longest = Name::MAX_BYTES - Self::MARK.len();
        if text.len() > longest {
            let why = format!("{field} is {} bytes long; at most {longest} are allowed", text.len());
            return Err(Status::invalid_argument(why));
        }
        Ok(Self(Name(format!("{}{name}", Self::MARK))))
    }

    /// Whether a name in the manager is that of a group.
    pub fn marks(name: &str) -> bool {
        name.starts_with(Self::MARK)
    }

    /// The name in the manager.
    pub fn in_manager(&self) -> &Name {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A node, named as its daemon names itself: at most 256 printable bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// Checks a node id that the caller sent.
    pub fn parse(text: &str) -> Result<Self, Status> {
        if text.is_empty() {
            return Err(Status::invalid_argument("node_id is missing"));
        }
        if text.len() > 256 || !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(Status::invalid_argument(
                "node_id is not a node name: at most 256 printable characters",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The folder that kubelet owns; stage and publish paths lie below it.
#[derive(Debug, Clone)]
pub struct KubeletDir {
    given: PathBuf,
    real: PathBuf,
}

impl KubeletDir {
    /// The folder must exist, so that links on the way to it can be resolved.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self { given: path.to_owned(), real: path.canonicalize()? })
    }

    /// The folder as it was given.
    pub fn path(&self) -> &Path {
        &self.given
    }

    /// Checks a path that the caller sent as `field`. The last component need not exist; missing parents are
    /// allowed too, as they cannot be links.
    pub fn path_from(&self, field: &str, text: &str) -> Result<KubeletPath, Status> {
        let refuse = |why: &str| Err(Status::invalid_argument(format!("{field} {why}")));
        if text.is_empty() {
            return refuse("is missing");
        }
        if text.len() > 4095 || text.contains('\0') {
            return refuse("is no path");
        }
        let path = Path::new(text);
        let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(plain) {
            return refuse("must be absolute and without `..`");
        }
        if path.file_name().is_none() {
            return refuse("names no file");
        }
        let real = resolve_parents(path).map_err(|error| {
            Status::unavailable(format!("{field}: the folders on the way cannot be resolved: {error}"))
        })?;
        if !real.starts_with(&self.real) || real == self.real {
            return refuse(&format!(
                "lies outside of the kubelet folder {}; start the plugin with --kubelet-dir if kubelet uses another",
                self.given.display()
            ));
        }
        Ok(KubeletPath(real))
    }
}

/// Resolves links in the deepest existing ancestor of `path` and appends the rest. The last component stays
/// unresolved: it is the mount point itself, and touching it could hang if what is mounted there is dead.
fn resolve_parents(path: &Path) -> std::io::Result<PathBuf> {
    let mut rest = Vec::new();
    let mut at = path;
    while let (Some(parent), Some(name)) = (at.parent(), at.file_name()) {
        rest.push(name);
        match parent.canonicalize() {
            Ok(mut real) => {
                real.extend(rest.iter().rev());
                return Ok(real);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => at = parent,
            Err(error) => return Err(error),
        }
    }
    Ok(path.to_owned())
}

/// A path under the kubelet folder whose parents are resolved, as the kernel shows it in `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KubeletPath(PathBuf);

impl KubeletPath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for KubeletPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "6f1d9a52-0b6e-4d0e-9a6e-0c7a8f3b1c2d";

    #[test]
    fn ids_have_one_spelling() {
        assert_eq!(VolumeId::parse(UUID).unwrap().to_string(), UUID);
        for bad in
            ["", "x", "../../etc", &UUID.to_uppercase(), &UUID.replace('-', ""), &format!("{{{UUID}}}")]
        {
            assert_eq!(VolumeId::parse(bad), None, "{bad}");
        }
        let id = format!("{UUID}@17");
        assert_eq!(SnapshotId::parse(&id).unwrap().to_string(), id);
        for bad in
            [UUID, &format!("{UUID}@"), &format!("{UUID}@+1"), &format!("{UUID}@01"), &format!("{UUID}@-1")]
        {
            assert_eq!(SnapshotId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_are_bounded_and_printable() {
        assert!(Name::parse("name", &"ä".repeat(64)).is_ok());
        for bad in ["", "a\nb", &"ä".repeat(65)] {
            assert_eq!(Name::parse("name", bad).unwrap_err().code(), tonic::Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn paths_stay_under_the_kubelet_folder() {
        let dir = tempfile::tempdir().unwrap();
        let kubelet = KubeletDir::open(dir.path()).unwrap();
        let inside = dir.path().join("pods/1/volumes/mount");
        let path = kubelet.path_from("target_path", inside.to_str().unwrap()).unwrap();
        assert!(path.as_path().ends_with("pods/1/volumes/mount"));

        let up = format!("{}/pods/../../etc", dir.path().display());
        let own = dir.path().to_str().unwrap();
        for bad in ["", "relative/path", "/etc/passwd", "/", &up, own, &format!("{own}/a\0b")] {
            let error = kubelet.path_from("target_path", bad).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn a_link_does_not_lead_out_of_the_kubelet_folder() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("pods")).unwrap();
        let kubelet = KubeletDir::open(dir.path()).unwrap();
        let error =
            kubelet.path_from("target_path", dir.path().join("pods/x").to_str().unwrap()).unwrap_err();
        assert!(error.message().contains("outside"), "{error}");
    }
}
