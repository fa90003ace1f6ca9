//! Starting, stopping, dying.

use crate::world::*;
use parallax_api::v1;
use std::os::unix::fs::PermissionsExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_blank_pool_is_made_served_released_and_found_again() {
    let mut world = World::new();
    let client = world.start().await;
    let mode = std::fs::metadata(world.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let made = create(&client, "db", 16 << 20).await;
    write(&client, "db", &[(8192, &[7; 4096])]).await.unwrap();
    let status = world.stop();
    assert!(status.success(), "{status}\n{}", world.log());
    assert!(!world.socket().exists());
    assert!(world.log().contains("everything is checkpointed and released"), "{}", world.log());

    let client = world.start().await;
    let request = v1::GetVolumeRequest { volume: named("db"), with_usage: true };
    let found = client.manager().get_volume(client.request(request)).await.unwrap().into_inner();
    assert_eq!((found.id, found.usage.unwrap().mapped_bytes), (made.id, 4096));
    assert_eq!(read(&client, Ok("db")).await[8192..12_288], [7; 4096]);
    assert!(world.stop().success());
}

#[tokio::test]
async fn what_was_answered_survives_kill_minus_nine() {
    let mut world = World::new();
    let client = world.start().await;
    create(&client, "db", 16 << 20).await;
    write(&client, "db", &[(0, &[1; 65_536])]).await.unwrap();
    let taken = snapshot(&client, "db", "before").await;
    write(&client, "db", &[(0, &[2; 4096])]).await.unwrap();
    world.kill();

    let client = world.start().await;
    let bytes = read(&client, Ok("db")).await;
    assert!(bytes[..4096] == [2; 4096] && bytes[4096..65_536].iter().all(|byte| *byte == 1));
    let bytes = read(&client, Err(&taken.id)).await;
    assert!(bytes[..65_536].iter().all(|byte| *byte == 1));
    assert!(world.stop().success());
}

#[tokio::test]
async fn a_second_daemon_is_told_that_there_is_one() {
    let mut world = World::new();
    world.start().await;
    let (status, said) = world.fail_to_start();
    assert!(!status.success());
    assert!(said.contains("another parallaxd answers"), "{said}");
}

#[tokio::test]
async fn a_pool_that_is_held_is_not_opened_twice() {
    let mut world = World::new();
    world.start().await;
    let other = World::new();
    std::fs::hard_link(world.pool(), other.pool()).unwrap();
    let (status, said) = other.fail_to_start();
    assert!(!status.success());
    assert!(said.contains("is held by another process"), "{said}");
    assert!(world.stop().success());
}

/// Formatting at the first start must never cost anybody a filesystem.
#[tokio::test]
async fn a_device_with_something_on_it_is_not_formatted() {
    let world = World::new();
    let mut bytes = vec![0u8; 8 << 20];
    // The magic of ext2, ext3 and ext4.
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    std::fs::write(world.pool(), &bytes).unwrap();
    let (status, said) = world.fail_to_start();
    assert!(!status.success());
    assert!(said.contains("ext"), "{said}");
    assert!(std::fs::read(world.pool()).unwrap() == bytes);
}

#[tokio::test]
async fn mistakes_in_the_configuration_name_their_place() {
    let world = World::new().with("metrics: {listen: '10.0.0.1:1'}\n");
    let (status, said) = world.fail_to_start();
    assert!(!status.success());
    assert!(said.contains("parallaxd.yaml: metrics.listen: 10.0.0.1:1 is not a loopback address"), "{said}");
}

#[tokio::test]
async fn metrics_and_health_are_on_loopback() {
    let port = free_port();
    let mut world = World::new().with(&format!("metrics: {{listen: '127.0.0.1:{port}'}}\n"));
    let client = world.start().await;
    create(&client, "db", 16 << 20).await;
    snapshot(&client, "db", "").await;
    let page = get(port, "/metrics").await;
    for line in ["parallax_volumes 1\n", "parallax_snapshots_taken_total 1\n", "parallax_pool_device_up 1\n"]
    {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    let commits = page.lines().find_map(|line| line.strip_prefix("parallax_commits_total "));
    assert!(commits.is_some_and(|count| count.parse::<u64>().unwrap() > 0), "{page}");
    assert!(get(port, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get(port, "/etc/passwd").await.starts_with("HTTP/1.1 404"));

    use tonic_health::pb::{HealthCheckRequest, health_check_response, health_client::HealthClient};
    let mut health = HealthClient::new(client.channel());
    let answer = health.check(HealthCheckRequest { service: "parallax.v1.Node".into() }).await.unwrap();
    assert_eq!(answer.into_inner().status(), health_check_response::ServingStatus::Serving);
    assert!(world.stop().success());
}

async fn get(port: u16, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
