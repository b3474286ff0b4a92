//! The session key of a source (spec a.3, a.4).
