//! The node plugin is killed at every moment of every call, and what it left is gone on with.

mod support;

use parallax_api::v1::FilesystemState;
use std::time::Duration;
use support::can_mount;
use support::world::{Volume, World, block, ext4, from_snapshot, xfs};
use tonic::{Code, Status};

/// Delays after which the plugin is killed: from before it has read the request to after it has answered.
fn moments() -> impl Iterator<Item = Duration> {
    [0, 1, 2, 4, 7, 11, 16, 25, 40, 60, 90, 140].into_iter().map(Duration::from_millis)
}

/// Runs one call of the volume while the plugin is killed after `delay`, then again until it succeeds.
async fn killed_meanwhile(world: &mut World, name: &str, delay: Duration, call: Call) {
    let id = world.volumes().await.into_iter().find(|volume| volume.name == name).unwrap().id;
    {
        let first = call.run(world, &id, name);
        // The call is dropped with its connection; what matters is what the killed process had done.
        let _ = tokio::time::timeout(delay, first).await;
    }
    world.node.kill_and_restart().await;
    for _ in 0..100 {
        match call.run(world, &id, name).await {
            Ok(()) => return,
            Err(status) => {
                let undecided = matches!(status.code(), Code::Aborted | Code::Unavailable);
                assert!(undecided, "{call:?} after {delay:?}: {status}");
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{call:?} after {delay:?} never succeeded again");
}

#[derive(Debug, Clone, Copy)]
enum Call {
    Stage(Kind),
    Publish(Kind),
    Unpublish(Kind),
    Unstage(Kind),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Ext4,
    Xfs,
    Raw,
}

impl Call {
    async fn run(self, world: &World, id: &str, name: &str) -> Result<(), Status> {
        let (Self::Stage(kind) | Self::Publish(kind) | Self::Unpublish(kind) | Self::Unstage(kind)) = self;
        let capability = match kind {
            Kind::Ext4 => ext4(),
            Kind::Xfs => xfs(),
            Kind::Raw => block(),
        };
        let volume = Volume { world, id: id.to_owned(), name: name.to_owned(), capability };
        match self {
            Self::Stage(_) => volume.stage().await,
            Self::Publish(_) => volume.publish("pod", true).await.map(drop),
            Self::Unpublish(_) => volume.unpublish("pod").await,
            Self::Unstage(_) => volume.unstage().await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_killed_at_any_moment_goes_on_where_it_was() {
    if !can_mount() {
        return;
    }
    let mut world = World::new().await;
    for (kind, mib) in [(Kind::Ext4, 64), (Kind::Xfs, 320), (Kind::Raw, 64)] {
        for (round, delay) in moments().enumerate() {
            let name = format!("{kind:?}-{round}");
            let id = world.volume(&name, mib, None).await.id;
            for call in [Call::Stage(kind), Call::Publish(kind), Call::Unpublish(kind), Call::Unstage(kind)] {
                killed_meanwhile(&mut world, &name, delay, call).await;
            }
            let volume = Volume { world: &world, id, name: name.clone(), capability: ext4() };
            assert_eq!(volume.state().await, FilesystemState::Formatted);
            assert_eq!(world.attachments().await, [], "{name}");
        }
    }
    let below = world.folder.path().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&below), "nothing stays mounted: {mounts}");
}

/// Formatting is the one step that destroys: a volume that holds files is staged with the plugin killed at every
/// moment, and the files are there each time.
#[tokio::test(flavor = "multi_thread")]
async fn files_survive_every_kill() {
    if !can_mount() {
        return;
    }
    let mut world = World::new().await;
    let source = world.volume("source", 64, None).await;
    source.stage().await.unwrap();
    let path = source.publish("pod", false).await.unwrap();
    std::fs::write(path.join("file"), "precious").unwrap();
    std::fs::File::open(path.join("file")).unwrap().sync_all().unwrap();
    let snapshot = world.snapshot(&source.id, "snap").await.snapshot_id;
    for (round, delay) in moments().enumerate() {
        // Larger than its source, so that it is checked and grown on the way.
        let name = format!("clone-{round}");
        let id = world.volume(&name, 96, from_snapshot(&snapshot)).await.id;
        killed_meanwhile(&mut world, &name, delay, Call::Stage(Kind::Ext4)).await;
        let volume = Volume { world: &world, id, name, capability: ext4() };
        let path = volume.publish("pod", false).await.unwrap();
        assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "precious");
        volume.unpublish("pod").await.unwrap();
        volume.unstage().await.unwrap();
    }
}
