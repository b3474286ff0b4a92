//! Everything that one command on one machine needs beside the control plane: a Postgres of its own, a data directory,
//! listeners and worker processes.
//!
//! Put together by the composition root for `hermesctl up`; [`listeners`] and [`launcher`] also serve alone. Always true:
//! no child outlives us, nothing that a killed predecessor left behind blocks the next start, and no secret is in an
//! argument, an environment or a log. It deliberately knows nothing of turns, routes or platforms.

pub mod data_dir;
pub mod homes;
pub mod launcher;
pub mod listeners;
pub mod postgres;
pub mod spawn;
