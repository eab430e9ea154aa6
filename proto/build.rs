//! Generates the servers and clients of the CRI socket with prost, the two private services with ttrpc.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result};

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);

    let grpc = protox::compile(["proto/cri.proto", "proto/images.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .out_dir(&out)
        .compile_fds(grpc)?;

    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .include("proto")
        .inputs(["proto/agent.proto", "proto/vmm.proto"])
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            gen_mod: false,
            ..Default::default()
        })
        .run()?;
    for file in ["agent.rs", "agent_ttrpc.rs", "vmm.rs", "vmm_ttrpc.rs"] {
        strip_inner_attributes(&out.join(file))?;
    }
    Ok(())
}

/// The generated files are included into modules, where inner attributes and inner doc comments
/// are not allowed; what they ask for stands on those modules instead.
fn strip_inner_attributes(path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let kept: String = text
        .lines()
        .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
        .flat_map(|line| [line, "\n"])
        .collect();
    fs::write(path, kept).with_context(|| format!("writing {}", path.display()))
}
