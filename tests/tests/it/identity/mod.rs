//! Who may call what, over real listeners: the principal matrix, mutual TLS, joining, tokens and the limits.

pub(crate) mod fixture;
mod joining;
mod limits;
mod matrix;
mod tokens;
