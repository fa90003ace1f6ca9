//! May this volume be formatted? A pure decision, made once, from everything that is known.
//!
//! The volume's record goes `blank`, `formatting`, `formatted`, and never back:
//!
//! ```text
//! blank      -- both ends zero, nothing mapped, blkid sees nothing --> Format
//!            -- holds the filesystem that is wanted ----------------> Adopt
//! formatting -- holds the filesystem that is wanted, in use before -> Adopt
//!            -- holds something that our mkfs never leaves ---------> Refuse
//!            -- our own mkfs was interrupted, nobody mounted it ----> Format
//! formatted  -- holds the filesystem that is wanted ----------------> Mount
//! anything else ----------------------------------------------------> Refuse
//! ```
//!
//! Of a formatted volume it does not matter what else lies on it: those are its files.

use super::filesystem::Blkid;
use super::signature::{Content, Signature};
use crate::capability::Filesystem;
use parallax_api::v1::FilesystemState;

/// What is known of a volume.
#[derive(Debug, Clone)]
pub(crate) struct Evidence {
    /// Its record.
    pub(crate) state: FilesystemState,
    /// Bytes that it maps.
    pub(crate) mapped_bytes: u64,
    /// What its own bytes say.
    pub(crate) content: Content,
    /// A second opinion.
    pub(crate) blkid: Blkid,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Make a filesystem; `fresh` if the volume was never written to.
    Format { fresh: bool },
    /// Note that it holds a filesystem, then mount it.
    Adopt,
    /// Mount it.
    Mount,
    /// Touch nothing, and say why.
    Refuse(String),
}

/// Decides.
pub(crate) fn decide(evidence: &Evidence, wanted: Filesystem) -> Verdict {
    let Evidence { state, mapped_bytes, content, blkid } = evidence;
    if *state == FilesystemState::Formatting && could_be_ours(content, wanted) {
        return Verdict::Format { fresh: false };
    }
    let filesystem = match (state, content) {
        (FilesystemState::Formatted, _) | (_, Content::Known(_)) => content.filesystem(),
        _ => None,
    };
    if let Some(found) = filesystem.and_then(mountable) {
        if !agrees(blkid, found) {
            return Verdict::Refuse(format!("it holds {content}, but blkid sees {}", named(blkid)));
        }
        return match state {
            _ if found != wanted => Verdict::Refuse(format!(
                "it holds {found}, but {wanted} was asked for; use a StorageClass with csi.storage.k8s.io/fstype: {found}"
            )),
            FilesystemState::Blank | FilesystemState::Formatting => Verdict::Adopt,
            _ => Verdict::Mount,
        };
    }
    if *state == FilesystemState::Blank
        && *content == Content::Zeroes
        && *mapped_bytes == 0
        && matches!(blkid, Blkid::Nothing | Blkid::Silent)
    {
        return Verdict::Format { fresh: true };
    }
    Verdict::Refuse(
        match (state, content) {
            (FilesystemState::Blank, Content::Zeroes) if *mapped_bytes > 0 => {
                format!("{mapped_bytes} bytes of it were written, though both of its ends are zero")
            }
            (_, Content::Zeroes) if !matches!(blkid, Blkid::Nothing | Blkid::Silent) => {
                format!("both of its ends are zero, but blkid sees {}", named(blkid))
            }
            _ => format!("it holds {content}"),
        } + "; it is never formatted over: use it with volumeMode: Block, or format it yourself with `parallax attach`",
    )
}

/// Whether a `mkfs` of ours, finished or not, can have left this on a device of zeroes.
fn could_be_ours(content: &Content, wanted: Filesystem) -> bool {
    match content {
        Content::Zeroes | Content::Unrecognised => true,
        Content::Known(Signature::Ext(ext)) => wanted == Filesystem::Ext4 && !ext.used,
        Content::Known(Signature::Xfs { used, .. }) => wanted == Filesystem::Xfs && !used,
        Content::Known(_) | Content::Ambiguous(_) => false,
    }
}

fn mountable(signature: Signature) -> Option<Filesystem> {
    match signature {
        Signature::Ext(_) => Some(Filesystem::Ext4),
        Signature::Xfs { .. } => Some(Filesystem::Xfs),
        _ => None,
    }
}

fn agrees(blkid: &Blkid, found: Filesystem) -> bool {
    match blkid {
        // Exit code 2 also means that it could not read; then ours is the only opinion.
        Blkid::Silent | Blkid::Nothing => true,
        Blkid::Ambiguous => false,
        Blkid::Found(kind) => match found {
            Filesystem::Ext4 => matches!(kind.as_str(), "ext2" | "ext3" | "ext4"),
            Filesystem::Xfs => kind == "xfs",
        },
    }
}

fn named(blkid: &Blkid) -> &str {
    match blkid {
        Blkid::Nothing => "nothing",
        Blkid::Found(kind) => kind,
        Blkid::Ambiguous => "several things at once",
        Blkid::Silent => "nothing that it can tell",
    }
}

#[cfg(test)]
mod tests {
    use super::super::signature::Ext;
    use super::*;
    use FilesystemState::{Blank, Formatted, Formatting, Unspecified};

    const FRESH: Signature = Signature::Ext(Ext { bytes: 1, needs_check: false, used: false });
    const USED: Signature = Signature::Ext(Ext { bytes: 1, needs_check: false, used: true });
    const EXT: Content = Content::Known(FRESH);
    const XFS: Content = Content::Known(Signature::Xfs { bytes: 1, used: false });

    fn verdict(state: FilesystemState, mapped_bytes: u64, content: Content, blkid: Blkid) -> Verdict {
        decide(&Evidence { state, mapped_bytes, content, blkid }, Filesystem::Ext4)
    }

    fn refused(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Refuse(_))
    }

    fn found(kind: &str) -> Blkid {
        Blkid::Found(kind.to_owned())
    }

    #[test]
    fn only_a_blank_volume_that_maps_nothing_and_reads_as_zero_is_formatted() {
        assert_eq!(verdict(Blank, 0, Content::Zeroes, Blkid::Nothing), Verdict::Format { fresh: true });
        assert!(refused(&verdict(Blank, 4096, Content::Zeroes, Blkid::Nothing)));
        assert!(refused(&verdict(Blank, 0, Content::Unrecognised, Blkid::Nothing)));
        assert!(refused(&verdict(Blank, 0, Content::Zeroes, found("zfs_member"))));
        assert!(refused(&verdict(Blank, 0, Content::Zeroes, Blkid::Ambiguous)));
        assert!(refused(&verdict(Unspecified, 0, Content::Zeroes, Blkid::Nothing)));
    }

    /// kubernetes#142243 and others: blkid's exit code 2 was read as "blank", the device was merely unreadable for
    /// a moment, and a filesystem full of data was formatted.
    #[test]
    fn a_formatted_volume_is_never_formatted_again_whatever_is_seen_on_it() {
        for content in [Content::Zeroes, Content::Unrecognised, XFS, Content::Known(Signature::Luks)] {
            for blkid in [Blkid::Nothing, Blkid::Silent, Blkid::Ambiguous, found("xfs")] {
                let verdict = verdict(Formatted, 0, content.clone(), blkid);
                assert!(refused(&verdict), "{content}: {verdict:?}");
            }
        }
        assert_eq!(verdict(Formatted, 9, EXT, found("ext4")), Verdict::Mount);
        assert_eq!(verdict(Formatted, 9, EXT, Blkid::Nothing), Verdict::Mount);
    }

    #[test]
    fn our_own_interrupted_format_is_begun_again() {
        for content in [Content::Zeroes, Content::Unrecognised, EXT] {
            assert_eq!(verdict(Formatting, 99, content, Blkid::Nothing), Verdict::Format { fresh: false });
        }
    }

    /// A volume's first mkfs was refused or interrupted, so its owner attached it by hand, made a filesystem and copied
    /// his files. The record still said `formatting`: the next pod that used the volume had it formatted again.
    #[test]
    fn what_somebody_else_made_after_our_mkfs_was_interrupted_is_not_formatted_over() {
        let used = Content::Known(USED);
        assert_eq!(verdict(Formatting, 99, used.clone(), found("ext4")), Verdict::Adopt);
        assert!(refused(&verdict(Formatting, 99, used, Blkid::Ambiguous)));
        for content in [
            XFS,
            Content::Known(Signature::Luks),
            Content::Known(Signature::Partitions),
            Content::Ambiguous(vec![FRESH, Signature::Partitions]),
        ] {
            let verdict = verdict(Formatting, 99, content.clone(), Blkid::Nothing);
            assert!(refused(&verdict), "{content}: {verdict:?}");
        }
    }

    /// A disk image filled a volume, and its last block, where such an image has the copy of its partition table, was the
    /// last block of the volume. That looked like two things at once, and no pod could use the volume again.
    #[test]
    fn a_files_last_block_does_not_keep_a_formatted_volume_from_being_mounted() {
        let content = Content::Ambiguous(vec![USED, Signature::Partitions]);
        assert_eq!(verdict(Formatted, 9, content.clone(), found("ext4")), Verdict::Mount);
        assert!(refused(&verdict(Formatted, 9, content.clone(), found("gpt"))));
        assert!(refused(&verdict(Blank, 9, content, found("ext4"))), "nobody knows which it is");
        let both = Content::Ambiguous(vec![USED, Signature::Xfs { bytes: 1, used: true }]);
        assert!(refused(&verdict(Formatted, 9, both, Blkid::Nothing)));
    }

    #[test]
    fn an_imported_filesystem_is_adopted_if_it_is_the_wanted_one() {
        assert_eq!(verdict(Blank, 99, EXT, found("ext4")), Verdict::Adopt);
        let other = verdict(Blank, 99, XFS, found("xfs"));
        assert!(matches!(&other, Verdict::Refuse(why) if why.contains("fstype: xfs")), "{other:?}");
        assert!(refused(&verdict(Blank, 99, EXT, found("swap"))));
    }

    #[test]
    fn a_refusal_says_what_is_there_and_what_to_do() {
        let Verdict::Refuse(why) = verdict(Formatted, 9, Content::Known(Signature::Luks), Blkid::Nothing)
        else {
            panic!("not refused");
        };
        assert!(why.contains("LUKS") && why.contains("volumeMode: Block"), "{why}");
    }
}
