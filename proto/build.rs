//! Compiles `hermes/v1/*.proto` with protox (no protoc), writes the descriptor set for reflection, and derives one enum
//! of all RPCs so that the server's principal table must name each of them to compile.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use prost::Message as _;

const FILES: [&str; 15] = [
    "types", "agent", "home", "route", "session", "message", "delivery", "budget", "approval", "pairing", "worker",
    "model", "identity", "system", "cron",
];

#[expect(clippy::disallowed_methods, reason = "cargo hands a build script its folder this way")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=hermes");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let files = FILES.map(|name| format!("hermes/v1/{name}.proto"));
    let descriptors = protox::compile(&files, ["."])?;
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    write_rpcs(&descriptors, &out.join("rpcs.rs"))?;
    // Assignments would otherwise be much larger than all else that workers are told.
    tonic_prost_build::configure().boxed("hermes.v1.ProfileRevision.approvals").compile_fds(descriptors)?;
    Ok(())
}

fn write_rpcs(descriptors: &prost_types::FileDescriptorSet, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut variants = String::new();
    let mut from_path = String::new();
    let mut all = String::new();
    for file in &descriptors.file {
        if file.package() != "hermes.v1" {
            continue;
        }
        for service in &file.service {
            for method in &service.method {
                let variant = format!("{}{}", service.name().trim_end_matches("Service"), method.name());
                let rpc = format!("/hermes.v1.{}/{}", service.name(), method.name());
                writeln!(variants, "    /// `{rpc}`\n    {variant},")?;
                writeln!(from_path, "            \"{rpc}\" => Some(Self::{variant}),")?;
                writeln!(all, "        Self::{variant},")?;
            }
        }
    }
    let code = format!(
        "/// Every RPC of `hermes.v1`, derived from the descriptors.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]\npub enum Rpc {{\n{variants}}}\n\n\
         impl Rpc {{\n    /// All RPCs.\n    pub const ALL: &'static [Self] = &[\n{all}    ];\n\n\
         \x20   /// The RPC of a request path such as `/hermes.v1.AgentService/AddAgent`.\n\
         \x20   pub fn from_path(path: &str) -> Option<Self> {{\n        match path {{\n{from_path}            _ => None,\n        }}\n    }}\n}}\n"
    );
    std::fs::write(path, code)?;
    Ok(())
}
