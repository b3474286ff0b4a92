//! How the stages are told what to do: frames at the head of their stdin, a length of four bytes and JSON.
//!
//! Each stage takes its own frame and not a byte more, so what follows is the task's input.

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest frame, bytes: a command of the longest arguments a model may send, quoted.
const MAX_BYTES: usize = 4 << 20;

/// Appends one.
pub(super) fn push(frames: &mut Vec<u8>, value: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(value)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    frames.extend_from_slice(&length.to_le_bytes());
    frames.extend_from_slice(&body);
    Ok(())
}

/// Takes one from stdin.
pub(super) fn take<T: DeserializeOwned>() -> io::Result<T> {
    // `Stdin` reads ahead; what it had read would be lost to the task.
    let mut input = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
    if length > MAX_BYTES {
        return Err(io::Error::other("the frame is too long"));
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}
