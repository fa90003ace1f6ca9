//! nbdinfo, nbdcopy, nbdsh and qemu-img find what they expect.

use crate::bed::{Backing, Bed, SIZE, everywhere, image, nbdsh, tool};
use parallax_export::nbd::Limits;
use std::path::Path;

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn nbdinfo_sees_size_offers_and_block_sizes() {
    everywhere(|bed| {
        let found = tool("nbdinfo", [bed.uri("")]);
        for line in [
            "export-size: 33554432 (32M)",
            "description: the disk",
            "base:allocation",
            "is_read_only: false",
            "can_multi_conn: true",
            "can_flush: true",
            "can_fua: true",
            "can_trim: true",
            "can_zero: true",
            "can_fast_zero: false",
            "can_cache: true",
            "can_df: true",
            "block_size_minimum: 512",
            "block_size_preferred: 4096",
            "block_size_maximum: 33554432",
        ] {
            assert!(found.contains(line), "{line} is not in\n{found}");
        }
        assert_eq!(tool("nbdinfo", ["--size".to_owned(), bed.uri("")]).trim(), SIZE.to_string());
    });
}

#[test]
fn nbdinfo_lists_all_exports() {
    let bed = Bed::new(Backing::Ram(4096), Limits::default());
    bed.also_as("second", true);
    let found = tool("nbdinfo", ["--list".to_owned(), bed.uri("")]);
    assert!(found.contains("export=\"\":") && found.contains("export=\"second\":"), "{found}");
    assert!(found.contains("is_read_only: true") && found.contains("is_read_only: false"), "{found}");
    assert!(found.contains("block_size_minimum: 4096"), "{found}");
}

#[test]
fn holes_show_in_the_map() {
    everywhere(|bed| {
        let source = bed.path("source");
        image(&source, 1 << 20, 1);
        tool("nbdcopy", [text(&source), bed.uri("")]);
        let map = tool("nbdinfo", ["--map".to_owned(), bed.uri("")]);
        let extents: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            extents,
            [vec!["0", "1048576", "0", "data"], vec!["1048576", "32505856", "3", "hole,zero"]],
            "{map}"
        );
    });
}

#[test]
fn copies_in_and_out_are_the_same_bytes() {
    everywhere(|bed| {
        let (source, copy) = (bed.path("source"), bed.path("copy"));
        image(&source, 9_999_872, 2);
        for requests in ["1", "64"] {
            tool("nbdcopy", ["--requests".to_owned(), requests.to_owned(), text(&source), bed.uri("")]);
            tool("nbdcopy", ["--requests".to_owned(), requests.to_owned(), bed.uri(""), text(&copy)]);
            tool("cmp", [&source, &copy]);
        }
        tool("nbdcopy", ["--synchronous".to_owned(), "--flush".to_owned(), text(&source), bed.uri("")]);
        let raw =
            |file: &Path| ["-f".to_owned(), "raw".to_owned(), "-F".to_owned(), "raw".to_owned(), text(file)];
        tool("qemu-img", ["compare".to_owned()].into_iter().chain(raw(&source)).chain([bed.uri("")]));
    });
}

#[test]
fn qemu_img_converts_in_and_out() {
    everywhere(|bed| {
        let (source, copy) = (bed.path("source"), bed.path("copy"));
        image(&source, 5 << 20, 3);
        let convert = |arguments: &[&str]| tool("qemu-img", ["convert"].iter().chain(arguments));
        convert(&["-n", "-f", "raw", "-O", "raw", &text(&source), &bed.uri("")]);
        convert(&["-f", "raw", "-O", "raw", &bed.uri(""), &text(&copy)]);
        tool("cmp", [&source, &copy]);
        let info = tool("qemu-img", ["info".to_owned(), bed.uri("")]);
        assert!(info.contains("virtual size: 32 MiB"), "{info}");
    });
}

#[test]
fn trimmed_and_zeroed_ranges_become_holes_unless_forbidden() {
    everywhere(|bed| {
        nbdsh(
            &bed.uri(""),
            "
    h.pwrite(b'x' * 65536, 0, nbd.CMD_FLAG_FUA)
    h.trim(8192, 4096, nbd.CMD_FLAG_FUA)
    h.zero(4096, 20480)
    h.zero(4096, 32768, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    h.flush()
    found = []
    def note(context, offset, entries, error):
        assert context == 'base:allocation' and offset == 0
        found.extend(zip(entries[::2], entries[1::2]))
    h.block_status(65536, 0, note)
    assert found[:4] == [(4096, 0), (8192, 3), (8192, 0), (4096, 3)], found
    # Filesystems call space that was reserved but never written a hole.
    assert found[4][1] == 0, found
    found.clear()
    h.block_status(65536, 0, note, nbd.CMD_FLAG_REQ_ONE)
    assert found == [(4096, 0)], found
    zero = [range(4096, 12288), range(20480, 24576), range(32768, 36864)]
    data = h.pread(65536, 0)
    assert all(data[i] == (0 if any(i in r for r in zero) else 120) for i in range(65536))
    h.cache(4096, 0)
    ",
        );
    });
}

#[test]
fn requests_that_cannot_be_are_refused_with_the_right_error() {
    everywhere(|bed| {
        nbdsh(
            &bed.uri(""),
            "
    h.set_strict_mode(0)
    size = h.get_size()
    def refused(number, call):
        try:
            call()
        except nbd.Error as error:
            assert error.errnum == number, (error.errnum, number)
            return
        assert False, 'this should have been refused'
    refused(errno.EINVAL, lambda: h.pread(512, size))
    refused(errno.EINVAL, lambda: h.pread(1024, size - 512))
    refused(errno.EINVAL, lambda: h.pread(512, 1))
    refused(errno.EINVAL, lambda: h.pread(100, 0))
    refused(errno.EINVAL, lambda: h.trim(512, size))
    refused(errno.ENOSPC, lambda: h.pwrite(b'x' * 512, size))
    refused(errno.ENOSPC, lambda: h.zero(1024, size - 512))
    refused(errno.EINVAL, lambda: h.pwrite(b'x' * 512, 7))
    refused(errno.EINVAL, lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO))
    assert h.pread(512, 0) == bytes(512), 'the connection still works'
    ",
        );
    });
}

#[test]
fn a_read_only_export_refuses_every_change() {
    everywhere(|bed| {
        bed.also_as("ro", true);
        assert!(tool("nbdinfo", [bed.uri("ro")]).contains("is_read_only: true"));
        nbdsh(&bed.uri(""), "h.pwrite(b'y' * 512, 0)");
        nbdsh(
            &bed.uri("ro"),
            "
    h.set_strict_mode(0)
    for call in [lambda: h.pwrite(b'x' * 512, 0), lambda: h.trim(512, 0), lambda: h.zero(512, 0)]:
        try:
            call()
        except nbd.Error as error:
            assert error.errnum == errno.EPERM, error.errnum
        else:
            assert False
    assert h.pread(512, 0) == b'y' * 512
    ",
        );
    });
}

#[test]
fn connections_share_one_device() {
    everywhere(|bed| {
        let script = format!(
            "
    other = nbd.NBD()
    other.connect_uri('{}')
    assert h.can_multi_conn() and other.can_multi_conn()
    for i in range(200):
        h.pwrite(bytes([i]) * 4096, i * 4096)
        assert other.pread(4096, i * 4096) == bytes([i]) * 4096
    other.flush()
    other.shutdown()
    assert h.pread(512, 0) == bytes(512)
    ",
            bed.uri("")
        );
        nbdsh(&bed.uri(""), &script);
        assert_eq!(bed.server.connections(""), 0, "they said goodbye");
    });
}

#[test]
fn old_ways_of_connecting_work() {
    everywhere(|bed| {
        // EXPORT_NAME instead of GO, simple replies instead of structured ones.
        let script = format!(
            "
    h.set_request_structured_replies(False)
    h.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE)
    h.connect_unix('{}')
    assert not h.get_structured_replies_negotiated()
    h.pwrite(b'z' * 4096, 0)
    assert h.pread(4096, 0) == b'z' * 4096
    try:
        h.pread(512, 1)
    except nbd.Error as error:
        assert error.errnum == errno.EINVAL
    ",
            bed.server.socket().display()
        )
        .replace("\n    ", "\n");
        tool("nbdsh", ["-c", "import errno", "-c", script.trim_start()]);
    });
}

#[test]
fn large_requests_pass_whole_and_larger_ones_are_refused() {
    everywhere(|bed| {
        nbdsh(
            &bed.uri(""),
            "
    import os
    data = os.urandom(32 << 20)
    h.pwrite(data, 0)
    assert h.pread(32 << 20, 0) == data
    h.set_strict_mode(0)
    try:
        h.pread((32 << 20) + 512, 0)
    except nbd.Error as error:
        assert error.errnum in (errno.EOVERFLOW, errno.ERANGE, errno.EINVAL), error.errnum
    else:
        assert False
    ",
        );
    });
}

#[test]
fn an_unknown_export_is_refused() {
    let bed = Bed::new(Backing::Ram(512), Limits::default());
    let script = format!(
        "
    import nbd
    try:
        h.connect_uri('{}')
    except nbd.Error as error:
        print(error)
    else:
        assert False
    ",
        bed.uri("nothing")
    )
    .replace("\n    ", "\n");
    tool("nbdsh", ["-c", script.trim_start()]);
}

#[test]
fn random_requests_agree_with_a_model() {
    everywhere(|bed| {
        nbdsh(
            &bed.uri(""),
            "
    import random
    chance = random.Random(20)
    size = 4 << 20
    model = bytearray(size)
    for step in range(3000):
        offset = chance.randrange(size // 512) * 512
        length = min(chance.choice([512, 4096, 12800, 65536, 300032]), size - offset)
        fua = chance.choice([0, nbd.CMD_FLAG_FUA]) if step % 10 == 0 else 0
        kind = chance.randrange(5)
        if kind < 2:
            data = chance.randbytes(length)
            h.pwrite(data, offset, fua)
            model[offset:offset + length] = data
        elif kind == 2:
            h.zero(length, offset, fua | chance.choice([0, nbd.CMD_FLAG_NO_HOLE]))
            model[offset:offset + length] = bytes(length)
        elif kind == 3:
            h.trim(length, offset, fua)
            model[offset:offset + length] = bytes(length)
        assert h.pread(length, offset) == model[offset:offset + length], step
    assert h.pread(size, 0) == model
    ",
        );
    });
}

#[test]
fn sectors_of_4096_bytes_are_respected() {
    let bed = Bed::new(Backing::Ram(4096), Limits::default());
    let (source, copy) = (bed.path("source"), bed.path("copy"));
    image(&source, 3 << 20, 4);
    tool("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", &text(&source), &bed.uri("")]);
    tool("nbdcopy", [bed.uri(""), text(&copy)]);
    tool("cmp", [&source, &copy]);
    nbdsh(
        &bed.uri(""),
        "
    h.set_strict_mode(0)
    try:
        h.pread(512, 512)
    except nbd.Error as error:
        assert error.errnum == errno.EINVAL, error.errnum
    else:
        assert False
    ",
    );
}
