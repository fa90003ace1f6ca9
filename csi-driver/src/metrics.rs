//! What the driver did, in numbers: calls by method and answer, and how long they took.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::{counter::Counter, family::Family, histogram::Histogram};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;

/// Bounds in seconds: a lookup takes milliseconds, a mkfs or fsck may take minutes.
const BOUNDS: [f64; 10] = [0.002, 0.01, 0.05, 0.2, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

/// The driver's counters; cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    calls: Family<Call, Counter>,
    seconds: Family<Method, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let calls = Family::<Call, Counter>::default();
        let seconds: Family<Method, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BOUNDS));
        let mut registry = Registry::with_prefix("parallax_csi");
        registry.register("calls", "CSI calls by method and gRPC code", calls.clone());
        registry.register("call_seconds", "Duration of CSI calls", seconds.clone());
        Self { registry: Arc::new(registry), calls, seconds }
    }
}

impl Metrics {
    /// Counts one call.
    pub(crate) fn record(&self, method: &'static str, code: tonic::Code, took: Duration) {
        self.calls.get_or_create(&Call { method, code: code_name(code) }).inc();
        self.seconds.get_or_create(&Method { method }).observe(took.as_secs_f64());
    }

    /// OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string fails only if a metric's own encoder does, and none of ours is custom.
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            tracing::error!("metrics could not be encoded");
        }
        text
    }
}

/// Name of a code, as the gRPC documentation spells it.
pub(crate) fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_method_and_code() {
        let metrics = Metrics::default();
        metrics.record("CreateVolume", tonic::Code::Ok, Duration::from_millis(3));
        metrics.record("CreateVolume", tonic::Code::Ok, Duration::from_millis(3));
        metrics.record("CreateVolume", tonic::Code::Aborted, Duration::from_millis(3));
        let text = metrics.encode();
        assert!(text.contains("parallax_csi_calls_total{method=\"CreateVolume\",code=\"OK\"} 2"), "{text}");
        assert!(text.contains("code=\"ABORTED\"} 1"), "{text}");
        assert!(text.contains("parallax_csi_call_seconds_count{method=\"CreateVolume\"} 3"), "{text}");
    }
}
