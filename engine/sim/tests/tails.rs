//! Tails: they outlive the process and not the boot.

use parallax_block::{ErrorKind, TailStore};
use parallax_sim::{SimTails, World};

#[test]
fn a_tail_is_there_for_the_next_process_and_gone_after_a_reboot() {
    let tails = SimTails::new(&World::new(1));
    let tail = tails.create("vdi-1").unwrap();
    tail.write_at(4, b"data").unwrap();
    drop(tail);
    let next_process = tails.clone();
    assert_eq!(next_process.load("vdi-1").unwrap().unwrap(), b"\0\0\0\0data");
    let boot = tails.boot_id();
    tails.reboot();
    assert_eq!(tails.load("vdi-1").unwrap(), None);
    assert_ne!(tails.boot_id(), boot);
}

#[test]
fn creating_truncates_and_removing_twice_is_fine() {
    let tails = SimTails::new(&World::new(1));
    tails.create("a").unwrap().write_at(0, b"old").unwrap();
    tails.create("a").unwrap();
    assert_eq!(tails.load("a").unwrap().unwrap(), b"");
    tails.remove("a").unwrap();
    tails.remove("a").unwrap();
    assert_eq!(tails.load("a").unwrap(), None);
}

#[test]
fn tails_can_be_lost_spoiled_and_full() {
    let tails = SimTails::new(&World::new(1));
    tails.set_limit(8);
    let tail = tails.create("a").unwrap();
    tail.write_at(0, b"12345678").unwrap();
    assert_eq!(tail.write_at(8, b"9").unwrap_err().kind(), ErrorKind::OutOfSpace);
    assert!(tails.damage("a", |bytes| bytes[0] = b'x'));
    assert_eq!(tails.load("a").unwrap().unwrap(), b"x2345678");
    assert!(tails.lose("a") && !tails.lose("a"));
    assert!(tails.keys().is_empty());
}
