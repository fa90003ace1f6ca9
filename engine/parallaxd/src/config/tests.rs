//! What a person sees who got the configuration wrong.

use super::*;

fn message(text: &str) -> String {
    Config::parse(text).expect_err("accepted").to_string()
}

#[test]
fn a_pool_is_all_that_must_be_said() {
    let config = Config::parse("pool:\n  path: /dev/sdb\n").unwrap();
    assert_eq!(config.pool.path, Path::new("/dev/sdb"));
    assert_eq!(config.socket, Path::new(DEFAULT_SOCKET));
    assert!(config.gc.automatic);
    assert!(config.metrics.is_none() && config.manager.is_none());
}

#[test]
fn everything_can_be_said() {
    let config = Config::parse(include_str!("everything.yaml")).unwrap();
    let create = config.pool.create.unwrap();
    assert_eq!((create.size, create.extent), (Some(Size(64 << 30)), Some(Size(16 << 20))));
    assert_eq!(config.gc.every, Span(Duration::from_secs(300)));
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.exports.memory, Size(32 << 20));
}

#[test]
fn every_mistake_says_what_and_where() {
    let cases: &[(&str, &str)] = &[
        (
            "pool:\n  path: /dev/sdb\n  pth: x\n",
            "pool: unknown field `pth`, expected one of `path`, `create`, `io` at line 3 column 3",
        ),
        ("{}", "missing field `pool`"),
        (
            "pool: {path: /p}\nlog:\n  format: xml\n",
            "log.format: unknown variant `xml`, expected `text` or `json` at line 3 column 11",
        ),
        (
            "pool:\n  path: /p\n  create:\n    size: 10GB\n",
            "pool.create.size: '10GB' is not a size: 'GB' may mean powers of 1000 or of 1024; write GiB for 1024 \
             at line 4 column 11",
        ),
        (
            "pool: {path: /p}\nshutdown_within: 30\n",
            "shutdown_within: invalid type: integer `30`, expected a duration with a unit, such as 30s at line 2 \
             column 18",
        ),
        ("pool: {path: pool.img}", "pool.path: 'pool.img' must be an absolute path"),
        (
            "pool: {path: /p}\nmetrics: {listen: '0.0.0.0:9750'}",
            "metrics.listen: 0.0.0.0:9750 is not a loopback address, and anybody could read there; metrics.allow_remote: true \
             allows it",
        ),
        (
            "pool: {path: /p}\nmanager: {listen: '0.0.0.0:9443'}",
            "manager: missing field `tls` at line 2 column 10",
        ),
        (
            "pool: {path: /p, create: {extent: 3M}}",
            "pool.create.extent: must be a power of two from 256K to 2G",
        ),
        ("pool: {path: /p}\ndata_threads: 0", "data_threads: 0 is not between 1 and 64"),
    ];
    for (text, expected) in cases {
        assert_eq!(message(text), *expected, "for\n{text}");
    }
}

#[test]
fn a_missing_device_names_itself() {
    let config = Config::parse("pool: {path: /dev/parallax-no-such-device}").unwrap();
    let text = config.check_machine().unwrap_err().to_string();
    assert!(text.starts_with("pool.path: the device /dev/parallax-no-such-device cannot be used"), "{text}");
    assert!(text.ends_with("check that it is attached to this node"), "{text}");
}

#[test]
fn a_directory_is_not_a_pool() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config::parse(&format!("pool: {{path: {}}}", directory.path().display())).unwrap();
    let text = config.check_machine().unwrap_err().to_string();
    assert!(text.contains("is a directory; a pool lives on a block device or in a file"), "{text}");
}

#[test]
fn a_file_that_may_be_created_need_not_exist() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool.img");
    let text = format!("pool: {{path: {}, create: {{size: 1G}}}}", path.display());
    Config::parse(&text).unwrap().check_machine().unwrap();
    let text = format!("pool: {{path: {}, create: {{}}}}", path.display());
    let error = Config::parse(&text).unwrap().check_machine().unwrap_err().to_string();
    assert!(error.contains("for a new file set pool.create.size"), "{error}");
}

#[test]
fn the_file_is_named_in_front() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("parallaxd.yaml");
    std::fs::write(&path, "pool: [").unwrap();
    let text = Config::load(&path).unwrap_err().to_string();
    assert!(text.starts_with(&path.display().to_string()), "{text}");
}
