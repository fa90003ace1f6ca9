//! Scrubbing: what is sound stays unmentioned however busy the pool is; what is not is named by volume and bytes.

use crate::rig::*;
use parallax_block::{BlockDevice, Buffer, ByteRange, ErrorKind, Runtime};
use parallax_sim::Unflushed;
use parallax_store::{Finding, Pool, ScrubOptions, ScrubReport, Severity, Source};
use std::{num::NonZeroU64, ops::ControlFlow, sync::Arc, time::Duration};

const NEVER_STOP: &(dyn Fn(parallax_store::ScrubProgress) -> ControlFlow<()> + Send + Sync) =
    &|_| ControlFlow::Continue(());

async fn scrub(pool: &Pool) -> ScrubReport {
    pool.scrub(ScrubOptions::default(), NEVER_STOP).await.unwrap()
}

fn kinds(report: &ScrubReport) -> Vec<&'static str> {
    report.findings.iter().map(|finding: &Finding| finding.kind).collect()
}

/// Where the disk holds a block that is `byte` all over.
fn places(rig: &Rig, byte: u8) -> Vec<u64> {
    let image = rig.disk.crash_image(Unflushed::Kept);
    let all: Vec<u64> =
        image.pages().filter(|(_, page)| page.iter().all(|b| *b == byte)).map(|(at, _)| at).collect();
    assert!(!all.is_empty(), "no block is {byte}");
    all
}

fn block_at(offset: u64) -> ByteRange {
    ByteRange::new(offset, BLOCK).unwrap()
}

#[test]
fn a_busy_pool_is_scrubbed_without_a_finding() {
    for seed in 0..6 {
        let rig = Rig::sized(seed, 32 * MIB);
        let (pool, vdi) = rig.with_volume(8 * MIB);
        let (writer, its_pool) = (vdi.clone(), pool.clone());
        let churn = rig.start("churn", async move {
            for round in 0..40u64 {
                for block in 0..24 {
                    put(&*writer, (block * 37 + round * 11) % 2048, round as u8).await;
                }
                let shots = snapshot(&its_pool, &[writer.id()]).await.unwrap();
                writer.flush().await.unwrap();
                if round % 3 == 2 {
                    its_pool.materialise(shots[0].id).await.unwrap();
                    its_pool.delete_snapshot(shots[0].id).await.unwrap();
                }
                if round % 10 == 9 {
                    its_pool.collect_garbage(&|_| {}).await.unwrap();
                }
            }
        });
        let mut scrubs = 0;
        while !churn.is_done() {
            let report = rig.world.run(scrub(&pool));
            assert_eq!(report.findings, [], "seed {seed}");
            scrubs += 1;
        }
        assert!(scrubs > 2, "{scrubs}");
        churn.wait();
        let report = rig.world.run(scrub(&pool));
        assert!(report.nodes > 10 && report.bytes > 100 * BLOCK, "{report:?}");
        rig.close(&pool);
    }
}

#[test]
fn a_sector_that_cannot_be_read_names_the_volume_its_bytes_its_snapshots_and_its_clones() {
    let rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(4 * MIB);
    rig.world.run(async {
        put(&*vdi, 7, 0x71).await;
        put(&*vdi, 8, 0x72).await;
        let shot = snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0);
        pool.materialise(shot.id).await.unwrap();
        pool.create_vdi(request("clone", None, Source::Snapshot(shot.id))).await.unwrap();
        put(&*vdi, 8, 0x73).await;
        vdi.flush().await.unwrap();
        // What is in the journal only is named after a checkpoint.
        pool.collect_garbage(&|_| {}).await.unwrap();
    });
    for byte in [0x71, 0x72] {
        places(&rig, byte).into_iter().for_each(|at| rig.disk.spoil(block_at(at)));
    }
    let report = rig.world.run(scrub(&pool));
    assert!(!report.is_clean());
    assert!(kinds(&report).iter().all(|kind| *kind == "unreadable"), "{report:#?}");
    let told: Vec<(&str, &str)> = report
        .findings
        .iter()
        .map(|finding| (finding.volumes[0].as_str(), finding.detail.split(" cannot").next().unwrap()))
        .collect();
    for wanted in [
        ("volume", "bytes 28672..32768 of volume 'volume'"),
        ("volume", "bytes 28672..36864 of snapshot 1 of volume 'volume'"),
        ("clone", "bytes 28672..36864 of volume 'clone'"),
    ] {
        assert!(told.contains(&wanted), "{wanted:?} is not among {told:#?}");
    }
    // Others go on, and so do other blocks.
    rig.world.run(async {
        assert_eq!(get(&*vdi, 8).await, 0x73);
        put(&*vdi, 7, 0x74).await;
        assert_eq!(get(&*vdi, 7).await, 0x74);
    });
}

#[test]
fn a_node_that_rots_behind_the_cache_is_found() {
    let rig = Rig::new(2);
    let (pool, vdi) = rig.with_volume(4 * MIB);
    rig.world.run(async {
        for block in [0, 600, 1000] {
            put(&*vdi, block, 0x51).await;
        }
        vdi.flush().await.unwrap();
        pool.collect_garbage(&|_| {}).await.unwrap();
    });
    let image = rig.disk.crash_image(Unflushed::Kept);
    let odd = |page: &[u8]| page.iter().any(|byte| *byte != page[0]);
    let nodes: Vec<u64> =
        image.pages().filter(|(_, page)| page[..4] != *b"PLX1" && odd(page)).map(|(at, _)| at).collect();
    let mut found = 0;
    for at in nodes {
        let flip = |bytes: &mut [u8]| bytes[3] ^= 0x10;
        rig.disk.damage(block_at(at), flip);
        let report = rig.world.run(scrub(&pool));
        if !report.is_clean() {
            assert_eq!(kinds(&report), ["node"], "{report:#?}");
            assert_eq!(report.findings[0].volumes, ["volume"]);
            assert!(report.findings[0].detail.contains("of volume 'volume'"), "{report:#?}");
            found += 1;
        }
        rig.disk.damage(block_at(at), flip);
    }
    // Two leaves and their parents; of older checkpoints some are on the disk yet, and nobody's.
    assert!(found >= 3, "{found}");
    assert!(rig.world.run(scrub(&pool)).is_clean());
}

#[test]
fn structures_of_the_pool_that_cannot_be_read_are_found() {
    let rig = Rig::new(3);
    let (pool, vdi) = rig.with_volume(4 * MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        vdi.flush().await.unwrap();
        pool.collect_garbage(&|_| {}).await.unwrap();
        assert!(scrub(&pool).await.is_clean());
    });
    rig.disk.spoil(block_at(64 * MIB - BLOCK));
    let report = rig.world.run(scrub(&pool));
    assert_eq!(kinds(&report), ["superblock-copy"]);
    assert_eq!(report.findings[0].severity, Severity::Damage);
    let image = rig.disk.crash_image(Unflushed::Kept);
    let bitmap = image.pages().find(|(_, page)| page[..6] == *b"PLX1\x08\0").unwrap().0;
    rig.disk.damage(block_at(bitmap), |bytes| bytes[100] ^= 1);
    let report = rig.world.run(scrub(&pool));
    assert_eq!(kinds(&report), ["superblock-copy", "bitmap-copy"]);
}

#[test]
fn the_rate_is_kept_and_whoever_stops_it_may_begin_again() {
    let rig = Rig::new(4);
    let (pool, vdi) = rig.with_volume(16 * MIB);
    rig.world.run(async {
        try_put(&*vdi, 0, 8 * MIB, 9).await.unwrap();
        vdi.flush().await.unwrap();
        let begun = rig.process.now();
        let rate = NonZeroU64::new(MIB);
        let report = pool.scrub(ScrubOptions { bytes_per_second: rate }, NEVER_STOP).await.unwrap();
        let took = rig.process.now() - begun;
        assert!(report.bytes >= 8 * MIB, "{report:?}");
        assert!(took >= Duration::from_secs(7), "{took:?}");
        assert!(took < Duration::from_secs(12), "{took:?}");
        for phase in ["pool", "trees", "surface"] {
            let stop = |step: parallax_store::ScrubProgress| {
                if step.phase == phase { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let stopped = pool.scrub(ScrubOptions::default(), &stop).await.unwrap_err();
            assert_eq!(stopped.kind(), ErrorKind::Cancelled);
        }
        assert!(scrub(&pool).await.is_clean());
    });
    rig.close(&pool);
}

#[test]
fn one_scrub_at_a_time() {
    let rig = Rig::new(5);
    let (pool, vdi) = rig.with_volume(4 * MIB);
    rig.world.run(async { try_put(&*vdi, 0, MIB, 9).await.unwrap() });
    let slow = pool.clone();
    let first = rig.start("scrub", async move {
        slow.scrub(ScrubOptions { bytes_per_second: NonZeroU64::new(MIB) }, NEVER_STOP).await
    });
    rig.world.run_for(Duration::from_millis(300));
    let second = rig.world.run(pool.scrub(ScrubOptions::default(), NEVER_STOP));
    assert_eq!(second.unwrap_err().kind(), ErrorKind::Busy);
    assert!(first.wait().unwrap().is_clean());
}

/// Nodes that are let go during a scrub are kept for it. In a pool that has no room for both, writing comes first.
#[test]
fn a_slow_scrub_does_not_make_a_pool_full() {
    let rig = Rig::sized(6, 16 * MIB);
    let (pool, vdi) = rig.with_volume(8 * MIB);
    rig.world.run(async {
        try_put(&*vdi, 0, 4 * MIB, 1).await.unwrap();
        vdi.flush().await.unwrap();
    });
    let slow = pool.clone();
    let scrubbing = rig.start("scrub", async move {
        slow.scrub(ScrubOptions { bytes_per_second: NonZeroU64::new(16 << 10) }, NEVER_STOP).await
    });
    let writer: Arc<_> = vdi.clone();
    let its_pool = pool.clone();
    let writing = rig.start("writes", async move {
        for round in 0..400u64 {
            // Each snapshot makes the next writes copy their path; each deletion lets it go.
            let shot = snapshot(&its_pool, &[writer.id()]).await.unwrap().remove(0);
            for block in (0..1024).step_by(512) {
                put(&*writer, block, round as u8).await;
            }
            its_pool.materialise(shot.id).await.unwrap();
            its_pool.delete_snapshot(shot.id).await.unwrap();
            if round % 20 == 19 {
                its_pool.collect_garbage(&|_| {}).await.unwrap();
            }
        }
    });
    for _ in 0..3600 {
        if writing.is_done() && scrubbing.is_done() {
            break;
        }
        rig.world.run_for(Duration::from_secs(1));
    }
    writing.wait();
    match scrubbing.wait() {
        Ok(report) => assert!(report.is_clean(), "{report:#?}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Busy),
    }
    rig.close(&pool);
}

#[test]
fn a_read_behind_a_damaged_node_names_what_it_was_of_and_where() {
    let mut rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(8 * MIB);
    let changes = rig.record();
    let (id, info) = rig.world.run(async {
        put(&*vdi, 5, 1).await;
        let info = snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0);
        pool.materialise(info.id).await.unwrap();
        vdi.detach().await.unwrap();
        (vdi.id(), info)
    });
    // The only block with nothing before its sixth link.
    let is_leaf = |block: &[u8]| block[..40] == [0; 40] && block[40..48] != [0; 8];
    let leaf = changes.lock().iter().find_map(|change| {
        let at = change.head.chunks_exact(BLOCK as usize).position(is_leaf)? as u64;
        ByteRange::new(change.range.offset() + at * BLOCK, BLOCK).ok()
    });
    let leaf = leaf.expect("the node of block 5");
    rig.close(&pool);
    rig.kill();
    rig.disk.spoil(leaf);
    let pool = rig.open();
    rig.world.run(async {
        let vdi = pool.attach(id).await.unwrap();
        let buffer = || Buffer::zeroed(2 * BLOCK as usize);
        let of_volume = vdi.read(5 * BLOCK, buffer()).await.1.unwrap_err().to_string();
        assert!(of_volume.contains(&format!("volume {id}, blocks 5..7: ")), "{of_volume}");
        let view = pool.open_snapshot(info.id).await.unwrap();
        let of_snapshot = view.read(5 * BLOCK, buffer()).await.1.unwrap_err().to_string();
        assert!(of_snapshot.contains(&format!("snapshot {}: blocks 5..7: ", info.id)), "{of_snapshot}");
        view.close().await.unwrap();
    });
}
