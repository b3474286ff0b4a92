//! The wire contract: `hermes/v1/*.proto` and the code generated from it, nothing else.
//!
//! Called by the control plane, the worker, hermesctl and the tests. What a peer may assume stands in the comments of the
//! `.proto` files. Always true: enum zero is `UNSPECIFIED` and refused, every list call pages, no message exceeds
//! [`MAX_MESSAGE_BYTES`]. It holds no behaviour and knows no other package of this workspace.

/// Generated types, clients and servers of package `hermes.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    clippy::unwrap_used,
    clippy::panic,
    clippy::large_enum_variant,
    clippy::large_futures,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("hermes.v1");
}

mod rpcs {
    include!(concat!(env!("OUT_DIR"), "/rpcs.rs"));
}
pub use rpcs::Rpc;

/// The encoded `FileDescriptorSet` of every file, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Largest encoded message either side accepts, in bytes (1 MiB). Longer content travels as a stream of chunks.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Bytes of content in one chunk of a stream (256 KiB): well under [`MAX_MESSAGE_BYTES`] with any framing around it.
pub const CHUNK_BYTES: usize = 256 << 10;

/// The worker protocol this build speaks.
pub const WORKER_PROTOCOL_VERSION: u32 = 2;

/// The oldest worker protocol this build still serves: the one before its own, so that workers and control plane can be
/// upgraded one after the other, in either order.
pub const WORKER_PROTOCOL_OLDEST: u32 = 1;
