//! The project's integration tests, one module per subject.

mod vectors;
