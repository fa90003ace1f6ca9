//! Our proto files say what the official ones say: names, numbers, types, labels, JSON names, services, streams,
//! reserved numbers and marks.
//!
//! `descriptors/csi-1.13.txt` is printed by the Go program beside it from the official modules. It is compared
//! always; that it is what the program prints is checked where Go and the modules are at hand.

use parallax_csi::proto::DESCRIPTORS;
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, EnumDescriptor, ExtensionDescriptor, FieldDescriptor, Kind,
    MessageDescriptor, ServiceDescriptor, Value,
};
use std::path::Path;
use std::process::Command;

const OFFICIAL: &str = include_str!("descriptors/csi-1.13.txt");
const PACKAGES: [&str; 2] = ["csi.v1", "pluginregistration"];

#[test]
fn our_messages_are_those_of_csi_1_13() {
    let ours = listing();
    let only_official =
        OFFICIAL.lines().filter(|line| !ours.iter().any(|our| our == line)).collect::<Vec<_>>();
    let only_ours = ours.iter().filter(|line| !OFFICIAL.lines().any(|o| o == *line)).collect::<Vec<_>>();
    assert!(
        only_official.is_empty() && only_ours.is_empty(),
        "missing here: {only_official:#?}\nnot official: {only_ours:#?}"
    );
    assert_eq!(ours.len(), OFFICIAL.lines().count());
    assert!(ours.len() > 500, "the comparison compares something");
}

#[test]
fn the_official_listing_is_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/descriptors");
    let output = Command::new("go")
        .args(["run", "."])
        .current_dir(folder)
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .output();
    match output {
        Ok(output) if output.status.success() => {
            assert_eq!(String::from_utf8(output.stdout).unwrap(), OFFICIAL, "run `go run . > csi-1.13.txt`");
        }
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            let offline = ["dial tcp", "no such host", "connection refused", "disabled by GOPROXY"];
            assert!(offline.iter().any(|word| complaint.contains(word)), "{complaint}");
            eprintln!("not checked: the Go modules cannot be had here");
        }
        Err(error) => eprintln!("not checked: go does not run here ({error})"),
    }
}

fn listing() -> Vec<String> {
    let pool = DescriptorPool::decode(DESCRIPTORS).expect("our own descriptors");
    let mut lines = Vec::new();
    let in_package = |name: &str| PACKAGES.contains(&name);
    pool.all_messages().filter(|m| in_package(m.package_name())).for_each(|m| message(&m, &mut lines));
    pool.all_enums().filter(|e| in_package(e.package_name())).for_each(|e| enumeration(&e, &mut lines));
    pool.services().filter(|s| in_package(s.package_name())).for_each(|s| service(&s, &mut lines));
    pool.all_extensions().filter(|e| in_package(e.package_name())).for_each(|e| extension(&e, &mut lines));
    lines.sort();
    lines
}

fn message(message: &MessageDescriptor, lines: &mut Vec<String>) {
    let name = message.full_name();
    let entry = if message.is_map_entry() { " map" } else { "" };
    lines.push(format!("message {name}{entry}{}", marks(&message.options())));
    for f in message.fields() {
        lines.push(field(&f));
    }
    for range in message.reserved_ranges() {
        lines.push(format!("reserved {name} {}..={}", range.start, range.end - 1));
    }
}

fn field(field: &FieldDescriptor) -> String {
    let oneof = field.containing_oneof().map(|o| format!(" oneof={}", o.name())).unwrap_or_default();
    format!(
        "field {} = {} {} {} json={}{oneof}{}",
        field.full_name(),
        field.number(),
        cardinality(field.cardinality()),
        kind(&field.kind()),
        field.json_name(),
        marks(&field.options())
    )
}

fn enumeration(enumeration: &EnumDescriptor, lines: &mut Vec<String>) {
    let name = enumeration.full_name();
    lines.push(format!("enum {name}{}", marks(&enumeration.options())));
    for value in enumeration.values() {
        lines.push(format!("value {name}.{} = {}{}", value.name(), value.number(), marks(&value.options())));
    }
    for range in enumeration.reserved_ranges() {
        lines.push(format!("reserved {name} {}..={}", range.start(), range.end()));
    }
}

fn service(service: &ServiceDescriptor, lines: &mut Vec<String>) {
    lines.push(format!("service {}{}", service.full_name(), marks(&service.options())));
    for method in service.methods() {
        let stream = |yes: bool| if yes { "stream " } else { "" };
        lines.push(format!(
            "rpc {} ({}{}) ({}{}){}",
            method.full_name(),
            stream(method.is_client_streaming()),
            method.input().full_name(),
            stream(method.is_server_streaming()),
            method.output().full_name(),
            marks(&method.options())
        ));
    }
}

fn extension(extension: &ExtensionDescriptor, lines: &mut Vec<String>) {
    lines.push(format!(
        "extension {} = {} {} {} of {}",
        extension.full_name(),
        extension.number(),
        cardinality(extension.cardinality()),
        kind(&extension.kind()),
        extension.containing_message().full_name()
    ));
}

fn cardinality(cardinality: Cardinality) -> &'static str {
    match cardinality {
        Cardinality::Optional => "optional",
        Cardinality::Required => "required",
        Cardinality::Repeated => "repeated",
    }
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(enumeration) => enumeration.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn marks(options: &DynamicMessage) -> String {
    let mut set = options
        .extensions()
        .map(|(extension, value)| match value {
            Value::Bool(value) => format!(" [{}={value}]", extension.full_name()),
            other => panic!("{} is {other:?}", extension.full_name()),
        })
        .collect::<Vec<_>>();
    set.sort();
    set.concat()
}
