//! Who may call what, over real listeners: the principal matrix, mutual TLS, joining, tokens and the limits.

mod fixture;
mod joining;
mod limits;
mod matrix;
mod tokens;
