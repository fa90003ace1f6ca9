//! Looks at what is on a device.
//!
//! Invariants:
//! * The device is opened for reading only, and not exclusively: looking disturbs nobody.
//! * It decodes as much as it can: what does not verify is shown as an error in its place, and the rest goes on.
//! * Everything is a tree of names and values first, so that text and JSON say the same.

mod hosts;
mod medium;
mod pieces;

use crate::{
    args::InspectCommand,
    failure::{Failure, Outcome},
    output::Output,
};
use medium::Medium;
use serde_json::Value;
use std::path::Path;

/// Shows one piece of a pool.
pub(crate) fn run(pool: Option<&Path>, output: Output, what: &InspectCommand) -> Outcome {
    let path = pool.ok_or_else(|| {
        Failure::new("inspect reads a device itself").or_try("parallax --pool PATH inspect …")
    })?;
    let medium = Medium::open(path)?;
    let shown = match what {
        InspectCommand::Superblock => pieces::superblocks(&medium),
        InspectCommand::Hosts => hosts::hosts(&medium)?,
        InspectCommand::Extent { number } => pieces::extent(&medium, *number)?,
        InspectCommand::Root { volume } => pieces::roots(&medium, volume)?,
        InspectCommand::Radix { volume, depth } => pieces::radix(&medium, volume, *depth)?,
        InspectCommand::Journal { volume } => pieces::journal(&medium, volume)?,
        InspectCommand::Block { offset } => pieces::block(&medium, *offset)?,
    };
    output.show(&shown, |shown| {
        let mut text = String::new();
        write_value(shown, 0, &mut text);
        text
    })
}

/// Names and values, one a line, deeper ones further right.
fn write_value(value: &Value, indent: usize, text: &mut String) {
    let space = " ".repeat(indent);
    match value {
        Value::Object(fields) => {
            let width = fields.iter().filter(|(_, value)| !is_tree(value)).map(|(name, _)| name.len()).max();
            for (name, value) in fields {
                if is_tree(value) {
                    text.push_str(&format!("{space}{name}\n"));
                    write_value(value, indent + 2, text);
                } else {
                    let name = format!("{name:width$}", width = width.unwrap_or(0));
                    text.push_str(&format!("{space}{name}  {}\n", plain(value)));
                }
            }
        }
        Value::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                if is_tree(item) {
                    text.push_str(&format!("{space}[{number}]\n"));
                    write_value(item, indent + 2, text);
                } else {
                    text.push_str(&format!("{space}{}\n", plain(item)));
                }
            }
        }
        other => text.push_str(&format!("{space}{}\n", plain(other))),
    }
}

fn is_tree(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(_) | Value::Object(_) => "none".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_and_json_have_the_same_names() {
        let value = json!({"uuid": "a", "list": [{"x": 1}, {"y": null}], "none": [], "flat": ["p", "q"]});
        let mut text = String::new();
        write_value(&value, 0, &mut text);
        assert_eq!(text, "flat\n  p\n  q\nlist\n  [0]\n    x  1\n  [1]\n    y  -\nnone  none\nuuid  a\n");
    }
}
