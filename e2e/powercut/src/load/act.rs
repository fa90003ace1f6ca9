//! Does the operations of one worker on a mounted filesystem.

use super::{
    Plan,
    file::words,
    folder,
    model::{How, Model, Op},
    script::Script,
};
use anyhow::{Context, Result, ensure};
use parallax_block::Buffer;
use rustix::fs::{FallocateFlags, OFlags};
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

/// Runs worker `worker` to its end. `promise` is told of each promise that was kept, and answers when that is recorded.
pub(crate) fn run(plan: Plan, worker: u32, mount: &Path, promise: impl Fn(u64) -> Result<()>) -> Result<()> {
    let root = mount.join(folder(worker));
    let (mut script, mut model) = Script::new(plan.seed, worker);
    let mut promises = 0;
    for number in 0..plan.operations {
        let op = script.next(&model);
        act(&model, &root, number, &op)
            .with_context(|| format!("worker {worker}, operation {number}: {op:?}"))?;
        model.apply(number, &op, true);
        if op.promises() {
            promises += 1;
            promise(promises)?;
        }
    }
    Ok(())
}

fn act(model: &Model, root: &Path, number: u64, op: &Op) -> Result<()> {
    let at = |place| root.join(model.path(place));
    let folder = |folder: usize| root.join(&model.folders[folder].path);
    let open = |file: usize, flags: OFlags| -> Result<File> {
        let place = model.place(file).context("a file without a name")?;
        let flags = flags.bits().cast_signed();
        Ok(OpenOptions::new().read(true).write(true).custom_flags(flags).open(at(place))?)
    };
    let plain = OFlags::empty();
    let reserve = |file: usize, flags, offset, length| -> Result<()> {
        Ok(rustix::fs::fallocate(open(file, plain)?, flags, offset, length)?)
    };
    match op {
        Op::Create { place } => drop(File::create_new(at(place))?),
        Op::Write { file, offset, length, how } => {
            let bytes = words(model.bytes_key(number), *offset, *length);
            match how {
                How::Buffered => open(*file, plain)?.write_all_at(&bytes, *offset)?,
                How::Synchronous => open(*file, OFlags::DSYNC)?.write_all_at(&bytes, *offset)?,
                How::Direct => {
                    open(*file, OFlags::DIRECT)?.write_all_at(&Buffer::copy_of(&bytes), *offset)?;
                }
            }
        }
        Op::Truncate { file, size } => open(*file, plain)?.set_len(*size)?,
        Op::Punch { file, offset, length } => {
            reserve(*file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, *offset, *length)?;
        }
        Op::Zero { file, offset, length } => {
            reserve(*file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, *offset, *length)?;
        }
        Op::Allocate { file, offset, length } => reserve(*file, FallocateFlags::empty(), *offset, *length)?,
        Op::Read { file } => {
            let place = model.place(*file).context("a file without a name")?;
            let found = std::fs::read(at(place))?;
            ensure!(
                found == model.files[*file].latest(),
                "a running filesystem shows something else than was written"
            );
        }
        Op::Fsync { file } => open(*file, plain)?.sync_all()?,
        Op::Fdatasync { file } => open(*file, plain)?.sync_data()?,
        Op::SyncFolder { folder: number } => File::open(folder(*number))?.sync_all()?,
        Op::SyncAll => rustix::fs::syncfs(File::open(root)?)?,
        Op::Link { from, to } => std::fs::hard_link(at(from), at(to))?,
        Op::Unlink { place } => std::fs::remove_file(at(place))?,
        Op::Rename { from, to } => std::fs::rename(at(from), at(to))?,
        Op::Mkdir { parent } => {
            std::fs::create_dir(folder(*parent).join(Model::folder_name(model.folders.len())))?;
        }
        Op::Rmdir { folder: number } => std::fs::remove_dir(folder(*number))?,
    }
    Ok(())
}
