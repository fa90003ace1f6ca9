//! A forest as a picture.
//!
//! A lane is a volume, a dot is a snapshot, a curve is a clone. Hovering tells the rest. All text is escaped: names
//! and labels are what somebody else wrote.

use super::{
    Forest, Lane,
    layout::{LABEL_MAX, LEFT, Layout, Row, SLOPE, lay_out},
};
use crate::{output::size, time};
use std::fmt::{Display, Write};

/// Colours of lanes, told apart by people who see few.
const COLOURS: [&str; 8] =
    ["#2563eb", "#0d9488", "#c2410c", "#7c3aed", "#0369a1", "#a16207", "#be185d", "#4d7c0f"];

const INK: &str = "#0f172a";
const SOFT: &str = "#64748b";
const FAINT: &str = "#e2e8f0";
const GONE: &str = "#94a3b8";
const ALARM: &str = "#dc2626";
const FONT: &str = "Inter, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif";

/// Text that may stand between tags and in attributes.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // XML has no way to write these.
                character if character.is_control() => f.write_str("\u{fffd}")?,
                character => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// The document.
pub(crate) fn draw(forest: &Forest) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = document(forest, &lay_out(forest), &mut text);
    text
}

fn document(forest: &Forest, layout: &Layout, out: &mut String) -> std::fmt::Result {
    let (width, height) = (layout.width.ceil(), layout.height.ceil());
    let snapshots: usize = forest.lanes.iter().map(|lane| lane.snapshots.len()).sum();
    let volumes = forest.lanes.iter().filter(|lane| !lane.volume.deleted).count();
    writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="{FONT}" role="img">"#
    )?;
    writeln!(out, "<title>{} and {}</title>", plural(volumes, "volume"), plural(snapshots, "snapshot"))?;
    writeln!(out, r##"<rect width="{width}" height="{height}" rx="14" fill="#ffffff"/>"##)?;
    writeln!(
        out,
        r#"<text x="24" y="38" font-size="18" font-weight="600" fill="{INK}">{}, {}</text>"#,
        plural(volumes, "volume"),
        plural(snapshots, "snapshot")
    )?;
    bands(layout, out)?;
    axis(layout, out)?;
    for (number, lane) in forest.lanes.iter().enumerate() {
        branch(forest, layout, number, lane, out)?;
    }
    for (number, (lane, row)) in forest.lanes.iter().zip(&layout.rows).enumerate() {
        writeln!(out, r#"<g class="lane">"#)?;
        line(lane, row, layout, colour(number, lane), out)?;
        dots(forest, number, row, out)?;
        name(lane, row, layout, colour(number, lane), out)?;
        writeln!(out, "</g>")?;
    }
    writeln!(out, "</svg>")
}

/// Every other lane lies on a faint band.
fn bands(layout: &Layout, out: &mut String) -> std::fmt::Result {
    for row in layout.rows.iter().step_by(2) {
        writeln!(
            out,
            r##"<rect x="12" y="{:.1}" width="{:.1}" height="{:.1}" rx="8" fill="#f8fafc"/>"##,
            row.top,
            layout.width - 24.0,
            row.height
        )?;
    }
    Ok(())
}

/// Marks of time, behind everything.
fn axis(layout: &Layout, out: &mut String) -> std::fmt::Result {
    for tick in &layout.ticks {
        writeln!(
            out,
            r#"<line x1="{x:.1}" y1="78" x2="{x:.1}" y2="{bottom:.1}" stroke="{FAINT}" stroke-dasharray="2 4"/>"#,
            x = tick.x,
            bottom = layout.height - 16.0
        )?;
        let when = time::plain(tick.at_ms);
        writeln!(
            out,
            r#"<text x="{:.1}" y="68" font-size="11" fill="{SOFT}">{}</text>"#,
            tick.x - 4.0,
            &when[..16]
        )?;
    }
    Ok(())
}

/// The curve from a snapshot to its clone: straight down, then round the corner.
fn branch(
    forest: &Forest,
    layout: &Layout,
    number: usize,
    lane: &Lane,
    out: &mut String,
) -> std::fmt::Result {
    let Some(origin) = lane.origin else { return Ok(()) };
    let (parent, row) = (&layout.rows[origin.lane], &layout.rows[number]);
    let from = origin.snapshot.and_then(|snapshot| parent.dots.get(snapshot)).copied();
    // A clone of what is gone leaves its volume where the volume begins.
    let x = from.unwrap_or(parent.start);
    let bend = (row.start - x).min(row.y - parent.y).min(22.0);
    let dash = if from.is_none() { r#" stroke-dasharray="3 4""# } else { "" };
    writeln!(
        out,
        r#"<path d="M{x:.1} {y0:.1} V{y1:.1} Q{x:.1} {y:.1} {x1:.1} {y:.1} H{end:.1}" fill="none" stroke="{colour}" stroke-width="2.5" stroke-linecap="round" opacity="0.55"{dash}/>"#,
        y0 = parent.y,
        y1 = row.y - bend,
        y = row.y,
        x1 = x + bend,
        end = row.start,
        colour = colour(number, &forest.lanes[number]),
    )
}

/// The lane itself, to where the names are; what is deleted ends at its last snapshot.
fn line(lane: &Lane, row: &Row, layout: &Layout, colour: &str, out: &mut String) -> std::fmt::Result {
    let end = if lane.volume.deleted { row.dots.last().copied().unwrap_or(row.start) } else { layout.now };
    writeln!(
        out,
        r#"<line x1="{:.1}" y1="{y:.1}" x2="{end:.1}" y2="{y:.1}" stroke="{colour}" stroke-width="3" stroke-linecap="round"/>"#,
        row.start,
        y = row.y
    )?;
    if lane.volume.deleted {
        return writeln!(
            out,
            r#"<line x1="{end:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}" stroke="{FAINT}" stroke-width="2" stroke-dasharray="1 6" stroke-linecap="round"/>"#,
            layout.now,
            y = row.y
        );
    }
    if lane.origin.is_none() {
        writeln!(out, r#"<circle cx="{:.1}" cy="{:.1}" r="4" fill="{colour}"/>"#, row.start, row.y)?;
    }
    Ok(())
}

fn dots(forest: &Forest, number: usize, row: &Row, out: &mut String) -> std::fmt::Result {
    let lane = &forest.lanes[number];
    let colour = colour(number, lane);
    let branches = forest.branches(number);
    for (place, (snapshot, x)) in lane.snapshots.iter().zip(&row.dots).enumerate() {
        let fill = if snapshot.ready { colour } else { "#ffffff" };
        writeln!(
            out,
            r##"<circle cx="{x:.1}" cy="{y:.1}" r="6" fill="{fill}" stroke="#ffffff" stroke-width="2"><title>{name}  {when} UTC  {label}</title></circle>"##,
            y = row.y,
            name = Escaped(&snapshot.short()),
            when = time::plain(snapshot.created_at_ms),
            label = Escaped(&snapshot.label)
        )?;
        if !snapshot.ready {
            writeln!(
                out,
                r#"<circle cx="{x:.1}" cy="{:.1}" r="5" fill="none" stroke="{colour}" stroke-width="2"/>"#,
                row.y
            )?;
        }
        // A curve that goes down from here takes the place below the dot.
        let (at, anchor) =
            if branches.contains_key(&Some(place)) { (x + 5.0, "start") } else { (*x, "middle") };
        writeln!(
            out,
            r##"<text x="{at:.1}" y="{:.1}" font-size="9.5" fill="{SOFT}" text-anchor="{anchor}" stroke="#ffffff" stroke-width="2" paint-order="stroke">@{}</text>"##,
            row.y + 20.0,
            snapshot.number
        )?;
        if !snapshot.label.is_empty() {
            writeln!(
                out,
                r##"<text transform="translate({:.1} {:.1}) rotate(-{SLOPE})" font-size="11" fill="{INK}" stroke="#ffffff" stroke-width="3" stroke-linejoin="round" paint-order="stroke">{}</text>"##,
                x + 3.0,
                row.y - 10.0,
                Escaped(&shorten(&snapshot.label))
            )?;
        }
    }
    Ok(())
}

/// Name, size and state at the end of a lane.
fn name(lane: &Lane, row: &Row, layout: &Layout, colour: &str, out: &mut String) -> std::fmt::Result {
    let volume = &lane.volume;
    let (x, y) = (layout.now, row.y);
    let (ink, state) = if volume.fault.is_some() {
        (ALARM, "I/O fails".to_owned())
    } else if volume.deleted {
        (GONE, "deleted, snapshots kept".to_owned())
    } else if volume.attached {
        (INK, format!("{} · attached", size(volume.size_bytes)))
    } else {
        (INK, size(volume.size_bytes))
    };
    if !volume.deleted {
        let fill = if volume.attached { colour } else { "#ffffff" };
        writeln!(
            out,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="7" fill="{fill}" stroke="{colour}" stroke-width="3"/>"#
        )?;
    }
    writeln!(
        out,
        r#"<text x="{:.1}" y="{:.1}" font-size="14" font-weight="600" fill="{ink}">{}</text>"#,
        x + 18.0,
        y - 1.0,
        Escaped(&volume.shown())
    )?;
    let soft = if volume.fault.is_some() { ALARM } else { SOFT };
    writeln!(
        out,
        r#"<text x="{:.1}" y="{:.1}" font-size="11" fill="{soft}">{}</text>"#,
        x + 18.0,
        y + 15.0,
        Escaped(&state)
    )
}

fn colour(number: usize, lane: &Lane) -> &'static str {
    if lane.volume.deleted { GONE } else { COLOURS[number % COLOURS.len()] }
}

fn shorten(label: &str) -> String {
    if label.chars().count() <= LABEL_MAX {
        return label.to_owned();
    }
    label.chars().take(LABEL_MAX - 1).chain(['…']).collect()
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

// The margin on the left holds half a label of the first mark.
const _: () = assert!(LEFT > 40.0);

#[cfg(test)]
mod tests {
    use super::{super::fixtures::*, *};

    /// Counts of elements, and whether every one that opens is closed.
    fn elements(svg: &str) -> std::collections::BTreeMap<String, usize> {
        let mut counts = std::collections::BTreeMap::new();
        let mut open: Vec<String> = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').expect("a tag that ends");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
                continue;
            }
            let name: String = tag.chars().take_while(char::is_ascii_alphabetic).collect();
            *counts.entry(name.clone()).or_default() += 1;
            if !tag.ends_with('/') {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?} is left open");
        counts
    }

    #[test]
    fn every_snapshot_is_a_dot_and_every_clone_a_curve() {
        for (forest, snapshots, clones) in [(small(), 3, 2), (large(), 60, 7)] {
            let svg = draw(&forest);
            let counts = elements(&svg);
            assert_eq!(svg.matches("r=\"6\"").count(), snapshots);
            assert_eq!(counts["path"], clones);
            assert_eq!(counts["g"], forest.lanes.len());
        }
    }

    /// Labels and names come from whoever may take snapshots; the picture may be shown by a browser.
    #[test]
    fn text_cannot_become_markup() {
        let mut forest = small();
        forest.lanes[0].volume.name = "<script>alert('1')</script>\u{1}".into();
        forest.lanes[0].snapshots[0].label = "\"/><image href='x'".into();
        let svg = draw(&forest);
        assert!(!svg.contains("<script") && !svg.contains("<image"), "{svg}");
        assert!(svg.contains("&lt;script&gt;") && !svg.contains('\u{1}'));
        elements(&svg);
    }

    #[test]
    fn states_are_told() {
        let svg = draw(&large());
        for text in ["10 GiB · attached", "deleted, snapshots kept", "I/O fails", "60 snapshots", "8 volumes"]
        {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn an_empty_forest_is_a_valid_picture() {
        elements(&draw(&Forest::default()));
    }
}
