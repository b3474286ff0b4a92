//! The boundary around tools: what is refused of it.

use crate::config::parse;
use hermes_home::sandbox::{Level, Network, PROXY_WITHOUT_BOUNDARY, Sandbox};

#[test]
fn a_proxy_wants_a_boundary_however_it_is_asked_for() {
    let proxied = |level| Sandbox { level, network: Network::Proxy, ..Sandbox::default() };
    assert!(proxied(Level::Strict).faults().is_empty() && proxied(Level::Home).faults().is_empty());
    assert_eq!(proxied(Level::Off).faults(), [format!("network: {PROXY_WITHOUT_BOUNDARY}")]);
    let text = |level: &str| format!("sandbox:\n  level: {level}\n  network: proxy\n");
    assert!(parse(&text("strict")).is_ok());
    let faults = parse(&text("off")).expect_err("no boundary");
    assert_eq!((faults.len(), faults[0].line, faults[0].path.as_str()), (1, 3, "sandbox.network"));
}
