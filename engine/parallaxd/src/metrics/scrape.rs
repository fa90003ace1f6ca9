//! One scrape: pool, volumes, control plane.

use super::{
    Metrics,
    volume::{LATENCY_BOUNDS_US, OPERATIONS, VolumeCounters},
};
use crate::{engine::Engine, openings::Openings};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};
use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

/// Everything that a scrape shows.
pub struct Scrape {
    registry: Registry,
}

impl Scrape {
    /// A scrape of these.
    pub fn new(engine: Arc<Engine>, openings: Arc<Openings>, metrics: Arc<Metrics>) -> Self {
        let mut registry = Registry::with_prefix("parallax");
        registry.register_collector(Box::new(Figures { engine, openings, metrics }));
        Self { registry }
    }

    /// The text, in OpenMetrics format.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

struct Figures {
    engine: Arc<Engine>,
    openings: Arc<Openings>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures").field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.pool(&mut encoder)?;
        self.control(&mut encoder)?;
        volumes(&self.openings.counters(), &mut encoder)
    }
}

type Labels<'a> = Vec<(&'a str, &'a str)>;

impl Figures {
    fn pool(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let info = self.engine.pool().info();
        let volumes = self.engine.pool().vdis();
        let snapshots: u64 = volumes.iter().map(|volume| volume.snapshots).sum();
        let live = volumes.iter().filter(|volume| !volume.headless).count() as u64;
        let up = u64::from(!self.metrics.device_failing.load(Ordering::Relaxed));
        for (name, help, unit, value) in [
            ("pool_capacity", "Size of the pool's device", Some(Unit::Bytes), info.capacity),
            ("pool_free", "Room for data", Some(Unit::Bytes), info.free),
            ("pool_data", "Space allocated to data", Some(Unit::Bytes), info.data_used),
            ("pool_metadata", "Space allocated to metadata", Some(Unit::Bytes), info.metadata_used),
            ("pool_extents_free", "Extents that nobody has claimed", None, info.extents_free),
            ("pool_device_up", "Whether the pool's device answered the last probe", None, up),
            (
                "scrub_damage",
                "Findings of damage of the last scrub",
                None,
                self.metrics.scrub_damage.load(Ordering::Relaxed),
            ),
            (
                "scrub_ended_timestamp",
                "When the last scrub ended, since 1970; 0 if none has since the start",
                Some(Unit::Seconds),
                self.metrics.scrub_ended.load(Ordering::Relaxed),
            ),
            ("volumes", "Volumes in the pool", None, live),
            ("snapshots", "Live snapshots in the pool", None, snapshots),
            ("volumes_open", "Volumes and snapshots open on this node", None, self.openings.len() as u64),
        ] {
            encoder
                .encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?
                .encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?;
        }
        Ok(())
    }

    fn control(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &self.metrics;
        let store = self.engine.pool().counters();
        for (name, help, counter) in [
            ("commits", "Commits of journals", &store.commits),
            ("checkpoints", "Checkpoints written", &store.checkpoints),
            ("volumes_created", "Volumes created", &metrics.volumes_created),
            ("volumes_deleted", "Volumes deleted", &metrics.volumes_deleted),
            ("snapshots_taken", "Snapshots taken", &metrics.snapshots_taken),
            ("snapshots_deleted", "Snapshots deleted", &metrics.snapshots_deleted),
            ("snapshot_nanoseconds", "Time that taking snapshots took", &metrics.snapshot_nanoseconds),
            ("gc_runs", "Garbage collections that ended well", &metrics.collections),
            ("gc_failures", "Garbage collections that failed", &metrics.collections_failed),
            ("gc_freed_bytes", "Space that collections brought back", &metrics.collected_bytes),
            ("scrub_bytes", "Bytes that scrubs have read", &metrics.scrubbed_bytes),
            ("gc_milliseconds", "Time that collections took", &metrics.collection_milliseconds),
        ] {
            encoder
                .encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, u64>(&counter.load(Ordering::Relaxed), None)?;
        }
        Ok(())
    }
}

fn volumes(open: &[(String, Arc<VolumeCounters>)], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    if open.is_empty() {
        return Ok(());
    }
    let rows = || {
        open.iter().flat_map(|(volume, counters)| {
            OPERATIONS.map(|(operation, name)| {
                let labels: Labels<'_> = vec![("volume", volume), ("operation", name)];
                (labels, counters.totals(operation))
            })
        })
    };
    let mut family = encoder.encode_descriptor(
        "volume_io_bytes",
        "Bytes asked of an open volume",
        None,
        MetricType::Counter,
    )?;
    for (labels, totals) in rows() {
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&totals.bytes, None)?;
    }
    let mut family = encoder.encode_descriptor(
        "volume_io_errors",
        "Requests of an open volume that failed",
        None,
        MetricType::Counter,
    )?;
    for (labels, totals) in rows() {
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&totals.errors, None)?;
    }
    let mut family = encoder.encode_descriptor(
        "volume_io_latency",
        "Time from request to completion on an open volume",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for (labels, totals) in rows() {
        let bounds = LATENCY_BOUNDS_US.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(totals.buckets).collect();
        let seconds = totals.nanoseconds as f64 / 1e9;
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
            seconds,
            totals.operations,
            &buckets,
            None,
        )?;
    }
    let mut family = encoder.encode_descriptor(
        "volume_fault",
        "1 if the volume's I/O fails until it is attached again",
        None,
        MetricType::Gauge,
    )?;
    for (volume, counters) in open {
        let labels: Labels<'_> = vec![("volume", volume)];
        family.encode_family(&labels)?.encode_gauge(&i64::from(counters.fault().is_some()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Volumes(Vec<(String, Arc<VolumeCounters>)>);

    impl Collector for Volumes {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            volumes(&self.0, &mut encoder)
        }
    }

    #[test]
    fn volumes_are_labelled_and_buckets_add_up() {
        let mut registry = Registry::with_prefix("parallax");
        registry.register_collector(Box::new(Volumes(vec![("db\"1".into(), Arc::default())])));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        for line in [
            "parallax_volume_io_bytes_total{volume=\"db\\\"1\",operation=\"read\"} 0",
            "parallax_volume_io_latency_seconds_bucket{le=\"0.000016\",volume=\"db\\\"1\",operation=\"flush\"} 0",
            "parallax_volume_io_latency_seconds_bucket{le=\"+Inf\",volume=\"db\\\"1\",operation=\"flush\"} 0",
            "parallax_volume_fault{volume=\"db\\\"1\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
