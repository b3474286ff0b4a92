//! Runtimes on the wire: what answers an agent's turns, what its workers are told of it, and the secrets of its program.
//!
//! Called by the services of operators and workers. Always true: operators see where a secret is found, workers which secrets there are;
//! the value of one leaves the control plane only in [`secrets`], for a turn that the caller runs, as the revision of that turn names it.

use hermes_core::config::{AgentSpec, SecretRef};
use hermes_core::runtime::{Acp, Runtime};
use hermes_proto::v1;
use secrecy::ExposeSecret as _;
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::convert::store_status;
use super::mcp;
use super::status::{Reason, refuse};
use crate::registry::AgentEntry;
use crate::store::Store;
use crate::tools::Secrets;

/// Longest secret, bytes.
const MAX_SECRET: usize = 16 << 10;

pub(super) fn from(runtime: v1::Runtime) -> Runtime {
    if runtime.kind() != v1::RuntimeKind::Acp {
        return Runtime::Native;
    }
    let secret = |secret: v1::RuntimeSecret| {
        let reference = match secret.from {
            Some(v1::runtime_secret::From::Env(name)) => SecretRef::Env(name),
            Some(v1::runtime_secret::From::File(path)) => SecretRef::File(path),
            // It is refused as a name that is none.
            None => SecretRef::Env(String::new()),
        };
        (secret.name, reference)
    };
    let seconds = match runtime.start_timeout_seconds {
        0 => Acp::USUAL_START_TIMEOUT_SECONDS,
        seconds => seconds.into(),
    };
    Runtime::Acp(Acp {
        command: runtime.command,
        env: runtime.env.into_iter().map(|variable| (variable.name, variable.value)).collect(),
        secrets: runtime.secrets.into_iter().map(secret).collect(),
        start_timeout_seconds: seconds,
    })
}

/// Whole, as operators see it.
pub(super) fn to(runtime: &Runtime) -> v1::Runtime {
    let Runtime::Acp(acp) = runtime else {
        return v1::Runtime { kind: v1::RuntimeKind::Native.into(), ..v1::Runtime::default() };
    };
    let secrets = acp.secrets.iter().map(|(name, reference)| {
        let from = match reference {
            SecretRef::Env(name) => v1::runtime_secret::From::Env(name.clone()),
            SecretRef::File(path) => v1::runtime_secret::From::File(path.clone()),
        };
        v1::RuntimeSecret { name: name.clone(), from: Some(from), reference: Vec::new() }
    });
    v1::Runtime {
        kind: v1::RuntimeKind::Acp.into(),
        command: acp.command.clone(),
        env: mcp::variables_to(&acp.env),
        secrets: secrets.collect(),
        start_timeout_seconds: u32::try_from(acp.start_timeout_seconds).unwrap_or(u32::MAX),
    }
}

/// As workers see it: where a secret is found is none of their business.
pub(super) fn to_worker(runtime: &Runtime) -> v1::Runtime {
    let mut runtime = to(runtime);
    for secret in &mut runtime.secrets {
        // Opaque, but another one when the reference is: then the program is started anew.
        let reference = match secret.from.take() {
            Some(v1::runtime_secret::From::Env(name)) => format!("env {name}"),
            Some(v1::runtime_secret::From::File(path)) => format!("file {path}"),
            None => String::new(),
        };
        secret.reference = Sha256::digest(reference).to_vec();
    }
    runtime
}

/// The secrets of an agent's program, as that revision of the agent names them.
///
/// # Errors
/// For operators: which of them cannot be had, and why.
pub(super) async fn secrets(
    store: &Store,
    resolve: &Secrets,
    agent: &AgentEntry,
    revision: i64,
) -> Result<v1::FetchRuntimeSecretsResponse, Status> {
    let older;
    let spec = if agent.revision == revision {
        &agent.spec
    } else {
        let rows = store.agent_revisions(agent.no, revision.saturating_add(1), 1).await.map_err(store_status)?;
        let row = rows.into_iter().next().filter(|row| row.revision == revision);
        older = row.and_then(|row| serde_json::from_value::<AgentSpec>(row.spec).ok()).unwrap_or_default();
        &older
    };
    let mut secrets = Vec::new();
    for (name, reference) in spec.acp().into_iter().flat_map(|acp| &acp.secrets) {
        let cannot = |why: &str| {
            tracing::warn!(agent = %agent.id, secret = name, why, "a secret of an agent's program cannot be had");
            refuse(Reason::Conflict, format!("the secret {name} of agent {} cannot be had: {why}", agent.id))
        };
        let value = resolve(reference).map_err(|why| cannot(&why))?;
        let value = value.expose_secret();
        if value.len() > MAX_SECRET || value.contains('\0') {
            return Err(cannot(&format!("it is longer than {MAX_SECRET} bytes, or contains a NUL character")));
        }
        secrets.push(v1::fetch_runtime_secrets_response::Secret { name: name.clone(), value: value.to_owned() });
    }
    Ok(v1::FetchRuntimeSecretsResponse { secrets })
}
