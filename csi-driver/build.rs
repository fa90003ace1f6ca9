//! Compiles CSI and kubelet's registration without protoc, and gives every message that can carry a secret a
//! `Debug` that shows how many there are and none of them.

use protox::prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor, Value};
use std::fmt::Write as _;

const FILES: [&str; 8] = [
    "csi/v1/options.proto",
    "csi/v1/types.proto",
    "csi/v1/identity.proto",
    "csi/v1/controller.proto",
    "csi/v1/group.proto",
    "csi/v1/metadata.proto",
    "csi/v1/node.proto",
    "pluginregistration/registration.proto",
];

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;

    let pool = compiler.descriptor_pool();
    let secretive = messages_with_secrets(&pool)?;
    if secretive.is_empty() {
        return Err("no field is marked csi_secret: the options were lost".into());
    }
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("redacted.rs"), redacting_debug(&secretive))?;
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

    tonic_prost_build::configure()
        // Methods that we do not offer answer UNIMPLEMENTED.
        .generate_default_stubs(true)
        .skip_debug(secretive.iter().map(|(message, _)| message.full_name().to_owned()))
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

type Secretive = Vec<(MessageDescriptor, Vec<FieldDescriptor>)>;

fn messages_with_secrets(pool: &DescriptorPool) -> Result<Secretive, Failure> {
    let secret = pool.get_extension_by_name("csi.v1.csi_secret").ok_or("csi_secret is not declared")?;
    let is_secret =
        |field: &FieldDescriptor| matches!(&*field.options().get_extension(&secret), Value::Bool(true));
    Ok(pool
        .all_messages()
        .map(|message| {
            let secrets = message.fields().filter(is_secret).collect::<Vec<_>>();
            (message, secrets)
        })
        .filter(|(_, secrets)| !secrets.is_empty())
        .collect())
}

/// Every secret of CSI is a map of strings, so its length can be told.
fn redacting_debug(messages: &Secretive) -> String {
    let mut code = String::new();
    for (message, secrets) in messages {
        let name = message.name();
        let _ = writeln!(code, "impl std::fmt::Debug for {name} {{");
        let _ = writeln!(code, "    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{");
        let _ = writeln!(code, "        f.debug_struct({name:?})");
        for field in message.fields() {
            let field_name = field.name();
            let value = if secrets.contains(&field) {
                format!("&crate::proto::Redacted(self.{field_name}.len())")
            } else {
                format!("&self.{field_name}")
            };
            let _ = writeln!(code, "            .field({field_name:?}, {value})");
        }
        let _ = writeln!(code, "            .finish()\n    }}\n}}");
    }
    code
}
