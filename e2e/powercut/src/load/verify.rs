//! Compares what a power cut has left with what it may leave.

use super::{
    Kept, Plan, folder,
    model::{Entry, Model},
    script::Script,
};
use anyhow::{Context, Result};
use std::{collections::BTreeSet, fs, path::Path};

/// What is wrong with the directory of worker `worker`, when these of its promises are known to be kept.
pub(crate) fn verify(plan: Plan, worker: u32, kept: Kept, mount: &Path) -> Result<Vec<String>> {
    let model = expected(plan, worker, kept);
    let mut found = Found { model: &model, files: BTreeSet::new(), wrong: Vec::new(), lost: false };
    let root = mount.join(folder(worker));
    found.look_into(0, &root)?;
    for file in &model.anchored {
        // Where a directory is missing by right, its files are missing with it.
        if !found.files.contains(file) && !found.lost {
            found.wrong.push(format!("file {file} was durable and is under none of its names"));
        }
    }
    Ok(found.wrong.into_iter().map(|wrong| format!("worker {worker}: {wrong}")).collect())
}

/// The model after every operation that may have begun: those up to the promise that follows the last one kept.
fn expected(plan: Plan, worker: u32, kept: Kept) -> Model {
    let (mut script, mut model) = Script::new(plan.seed, worker);
    let mut promises = 0;
    for number in 0..plan.operations {
        let op = script.next(&model);
        promises += u64::from(op.promises());
        model.apply(number, &op, promises <= kept.surely);
        if promises > kept.perhaps {
            break;
        }
    }
    model
}

struct Found<'a> {
    model: &'a Model,
    files: BTreeSet<usize>,
    wrong: Vec<String>,
    /// A directory is missing that may be missing.
    lost: bool,
}

impl Found<'_> {
    fn look_into(&mut self, number: usize, path: &Path) -> Result<()> {
        let folder = &self.model.folders[number];
        let allowed = folder.allowed();
        for entry in fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !allowed.contains_key(name.as_str()) {
                self.wrong.push(format!("'{}{name}' exists, and nobody has made it", folder.path));
            }
        }
        for (name, entries) in allowed {
            let shown = format!("'{}{name}'", folder.path);
            let at = path.join(name);
            match fs::symlink_metadata(&at) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    if !entries.contains(&None) {
                        self.wrong.push(format!("{shown} is missing; it was durable"));
                    }
                    self.lost |= entries.iter().any(|entry| matches!(entry, Some(Entry::Folder(_))));
                }
                Err(error) => self.wrong.push(format!("{shown} cannot be looked at: {error}")),
                Ok(found) if found.is_dir() => {
                    match entries.iter().find_map(|entry| match entry {
                        Some(Entry::Folder(number)) => Some(*number),
                        _ => None,
                    }) {
                        Some(number) => self.look_into(number, &at)?,
                        None => self.wrong.push(format!("{shown} is a directory")),
                    }
                }
                Ok(_) => self.look_at(&shown, &at, &entries),
            }
        }
        Ok(())
    }

    fn look_at(&mut self, shown: &str, path: &Path, entries: &BTreeSet<Option<Entry>>) {
        let found = match fs::read(path) {
            Ok(found) => found,
            Err(error) => return self.wrong.push(format!("{shown} cannot be read: {error}")),
        };
        let mut refusals = Vec::new();
        let mut fits = false;
        for entry in entries {
            let Some(Entry::File(file)) = entry else { continue };
            match self.model.files[*file].permits(&found) {
                Ok(()) => {
                    fits = true;
                    self.files.insert(*file);
                }
                Err(why) => refusals.push(format!("as file {file}: {why}")),
            }
        }
        if !fits {
            self.wrong.push(format!("{shown}: {}", refusals.join("; ")));
        }
    }
}
