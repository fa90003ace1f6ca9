//! Messages and services of CSI 1.13 and of kubelet's plugin registration, compiled from `proto/`.

/// CSI.
#[expect(missing_docs, unused_qualifications, reason = "generated; documented in the proto files")]
pub mod csi {
    tonic::include_proto!("csi.v1");
    include!(concat!(env!("OUT_DIR"), "/redacted.rs"));
}

/// Kubelet's plugin registration.
#[expect(missing_docs, unused_qualifications, reason = "generated; documented in the proto file")]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// Every proto file, as an encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Stands in a `Debug` output for a map of secrets.
pub(crate) struct Redacted(pub(crate) usize);

impl std::fmt::Debug for Redacted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => f.write_str("{}"),
            count => write!(f, "<{count} redacted>"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::csi;

    const CANARY: &str = "canary-7f3a";

    fn secrets() -> std::collections::HashMap<String, String> {
        [("canary-key".to_owned(), CANARY.to_owned())].into()
    }

    #[test]
    fn debug_of_a_request_shows_that_there_are_secrets_and_none_of_them() {
        let request = csi::CreateVolumeRequest { name: "a".into(), secrets: secrets(), ..Default::default() };
        let shown = format!("{request:?} {request:#?}");
        assert!(!shown.contains("canary"), "{shown}");
        assert!(shown.contains("<1 redacted>") && shown.contains("name: \"a\""), "{shown}");

        let request = csi::NodeStageVolumeRequest { secrets: secrets(), ..Default::default() };
        assert!(!format!("{request:?}").contains("canary"));
        let request = csi::NodeExpandVolumeRequest { secrets: secrets(), ..Default::default() };
        assert!(!format!("{request:?}").contains("canary"));
    }
}
