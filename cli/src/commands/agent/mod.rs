//! `agent …`: the registry of agents. Every change is one call; the control plane judges ids, models and homes.

mod archive;
mod files;
mod mcp;
mod runtime;
mod transfer;
mod view;

use hermes_core::approvals::Mode;
use hermes_home::sandbox::{Level, Network};
use hermes_proto::v1::agent_service_client::AgentServiceClient;
use hermes_proto::v1::{self, AgentSpec, Approvals, Sandbox, StringList};
use tonic::Code;

use self::view::{AgentList, AgentView, RemovedView, RevisionList};
use super::{Invocation, TEXTS, all_pages, input, required};
use crate::args::{AgentAddArgs, AgentCommand, AgentRemoveArgs, AgentUpdateArgs, LimitArgs, SpecArgs};
use crate::connect::{ANSWER_BYTES, Connection, Transport};
use crate::error::{ExitStatus, Lines, Usage, status_text};

/// Runs one of them.
///
/// # Errors
/// What the control plane answered, or a SOUL file that cannot be read.
pub(crate) async fn run(command: AgentCommand, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    match command {
        AgentCommand::Add(args) => Box::pin(add(args, inv)).await,
        AgentCommand::List(limit) => list(limit, inv).await,
        AgentCommand::Show { id } => show(id, inv).await,
        AgentCommand::Update(args) => Box::pin(update(args, inv)).await,
        AgentCommand::Remove(args) => remove(args, inv).await,
        AgentCommand::History { id, limit } => history(id, limit, inv).await,
        AgentCommand::Mcp(command) => mcp::run(command, inv).await,
        AgentCommand::Rollback { id, revision } => rollback(id, revision, inv).await,
        AgentCommand::Files(args) => files::run(args, inv).await,
        AgentCommand::Edit(args) => files::edit(args, inv).await,
        AgentCommand::Export(args) => transfer::export(args, inv).await,
        AgentCommand::Import(args) => transfer::import(args, inv).await,
    }
}

fn client(connection: &Connection) -> AgentServiceClient<Transport> {
    AgentServiceClient::new(connection.transport()).max_decoding_message_size(ANSWER_BYTES)
}

async fn add(args: AgentAddArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let (spec, soul) = spec(args.spec)?;
    let connection = inv.connect().await?;
    let request = v1::AddAgentRequest { id: args.id, spec: Some(spec), soul, from_agent: args.from_agent };
    let answer = connection.answer(client(&connection).add_agent(request)).await?;
    changed(answer.agent, &answer.warnings, inv)
}

async fn list(limit: LimitArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let agents = all_pages(TEXTS, limit.limit, |page| {
        let (connection, mut client) = (&connection, client(&connection));
        async move {
            let answer = connection.answer(client.list_agents(v1::ListAgentsRequest { page: Some(page) })).await?;
            Ok((answer.agents, answer.next_page_token))
        }
    })
    .await?;
    inv.printer.show(&AgentList(agents.into_iter().map(AgentView::from_proto).collect()))?;
    Ok(ExitStatus::Done)
}

async fn show(id: String, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let answer = connection.answer(client(&connection).get_agent(v1::GetAgentRequest { id })).await?;
    inv.printer.show(&AgentView::from_proto(required(answer.agent, "the agent")?))?;
    Ok(ExitStatus::Done)
}

async fn update(args: AgentUpdateArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let (spec, soul) = spec(args.spec)?;
    if spec == AgentSpec::default() && soul.is_none() && args.clear.is_empty() {
        return Err(Usage("nothing to change: give at least one field, --soul-file or --clear FIELD".into()).into());
    }
    let connection = inv.connect().await?;
    let request = v1::UpdateAgentRequest {
        id: args.id,
        spec: Some(spec),
        clear: args.clear,
        soul,
        expected_revision: args.expected_revision,
    };
    let answer = Box::pin(connection.answer(client(&connection).update_agent(request))).await?;
    changed(answer.agent, &answer.warnings, inv)
}

async fn remove(args: AgentRemoveArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let undecided = !args.yes && args.reroute_to.is_none();
    let request = v1::RemoveAgentRequest {
        id: args.id.clone(),
        drop_routes: args.yes,
        reroute_to: args.reroute_to,
        purge: args.purge,
    };
    let removed = connection.within(async { client(&connection).remove_agent(request).await }).await;
    let answer = match removed {
        Ok(answer) => answer.into_inner(),
        Err(status) if undecided && status.code() == Code::FailedPrecondition => {
            return Err(what_names_it(&connection, &args.id, &status).await);
        }
        Err(status) => return Err(status.into()),
    };
    inv.printer.show(&RemovedView {
        id: args.id,
        purged: args.purge,
        routes_changed: answer.routes_changed,
        turns_cancelled: answer.turns_cancelled,
        jobs_stopped: answer.jobs_stopped,
    })?;
    Ok(ExitStatus::Done)
}

/// The refusal, with the routes that caused it and what to say about them.
async fn what_names_it(connection: &Connection, id: &str, refused: &tonic::Status) -> anyhow::Error {
    let mut lines = vec![status_text(refused)];
    let looked = connection.answer(client(connection).get_agent(v1::GetAgentRequest { id: id.to_owned() })).await;
    // Without the agent the refusal itself is still the answer.
    let Some(agent) = looked.ok().and_then(|answer| answer.agent) else { return Lines(lines).into() };
    let agent = AgentView::from_proto(agent);
    if agent.route_count == 0 && !agent.is_default {
        return Lines(lines).into();
    }
    if agent.is_default {
        lines.push("  default_agent".to_owned());
    }
    lines.extend(agent.routes.iter().map(|route| format!("  route {}", route.shown())));
    let shown = u64::try_from(agent.routes.len()).unwrap_or(u64::MAX);
    if agent.route_count > shown {
        lines.push(format!("  … and {} more", agent.route_count - shown));
    }
    lines.push(
        "say --yes to drop all that names it (main becomes the default agent), or --reroute-to AGENT to have it name another"
            .to_owned(),
    );
    Lines(lines).into()
}

async fn history(id: String, limit: LimitArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let revisions = all_pages(TEXTS, limit.limit, |page| {
        let (connection, mut client) = (&connection, client(&connection));
        let request = v1::ListRevisionsRequest { id: id.clone(), page: Some(page) };
        async move {
            let answer = connection.answer(client.list_revisions(request)).await?;
            Ok((answer.revisions, answer.next_page_token))
        }
    })
    .await?;
    inv.printer.show(&RevisionList::from_proto(revisions))?;
    Ok(ExitStatus::Done)
}

async fn rollback(id: String, revision: u64, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let answer =
        connection.answer(client(&connection).rollback_agent(v1::RollbackAgentRequest { id, revision })).await?;
    changed(answer.agent, &answer.warnings, inv)
}

fn changed(agent: Option<v1::Agent>, warnings: &[String], inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let mut view = AgentView::from_proto(required(agent, "the agent")?);
    for warning in warnings {
        inv.printer.warning(warning);
        view.warnings.retain(|known| known != warning);
    }
    for warning in &view.warnings {
        inv.printer.warning(warning);
    }
    let mut all = warnings.to_vec();
    all.append(&mut view.warnings);
    view.warnings = all;
    view.warnings_told = true;
    inv.printer.show(&view)?;
    Ok(ExitStatus::Done)
}

fn spec(args: SpecArgs) -> anyhow::Result<(AgentSpec, Option<Vec<u8>>)> {
    let soul = match &args.soul_file {
        Some(file) => Some(input::text(file, input::SOUL_BYTES)?.into_bytes()),
        None => None,
    };
    let spec = AgentSpec {
        model: args.model,
        provider: args.provider,
        base_url: args.base_url,
        api_key_env: args.api_key_env,
        home_dir: args.home_dir,
        enabled_toolsets: args.enabled_toolsets.as_deref().map(list_of),
        disabled_toolsets: args.disabled_toolsets.as_deref().map(list_of),
        sandbox: args.sandbox.as_deref().map(sandbox).transpose()?,
        approvals: args.approvals.as_deref().map(approvals).transpose()?,
        // They have more to them than fits on a command line; they stand in the document.
        mcp_servers: None,
        fallback_models: args.fallback_models.as_deref().map(list_of),
        // Budgets stand in the document; `hermesctl budget raise` and `pause` act beside it.
        budget: None,
        // So does when its skills are looked after.
        curator: None,
        may_ask: args.may_ask.as_deref().map(list_of),
        runtime: args.runtime.as_deref().map(runtime::read).transpose()?,
    };
    Ok((spec, soul))
}

/// `a,b`; the empty text is the empty list.
fn list_of(text: &str) -> StringList {
    StringList { values: text.split(',').map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned).collect() }
}

/// `level=strict,network=open`; what it does not name takes the default.
fn sandbox(text: &str) -> anyhow::Result<Sandbox> {
    let mut sandbox = Sandbox::default();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| Usage(format!("--sandbox: {pair:?} is not KEY=VALUE, for example level=strict")))?;
        let number = || {
            let number = value.parse::<u64>();
            number.map_err(|_| Usage(format!("--sandbox: {key} is a whole number, not {value:?}")))
        };
        match key {
            "level" => {
                let level = match Level::parse(value) {
                    Some(Level::Strict) => v1::SandboxLevel::Strict,
                    Some(Level::Home) => v1::SandboxLevel::Home,
                    Some(Level::Off) => v1::SandboxLevel::Off,
                    None => {
                        let message = format!("--sandbox: {value:?} is not a level; write strict, home or off");
                        return Err(Usage(message).into());
                    }
                };
                sandbox.set_level(level);
            }
            "network" => {
                let network = match Network::parse(value) {
                    Some(Network::None) => v1::SandboxNetwork::None,
                    Some(Network::Proxy) => v1::SandboxNetwork::Proxy,
                    Some(Network::Open) => v1::SandboxNetwork::Open,
                    None => {
                        let message = format!("--sandbox: {value:?} is not a network; write none, proxy or open");
                        return Err(Usage(message).into());
                    }
                };
                sandbox.set_network(network);
            }
            "memory_mb" => sandbox.memory_mb = Some(number()?),
            "pids" => sandbox.pids = Some(number()?),
            "cpu_seconds" => sandbox.cpu_seconds = Some(number()?),
            "disk_mb" => sandbox.disk_mb = Some(number()?),
            _ => {
                let keys = "level, network, memory_mb, pids, cpu_seconds and disk_mb";
                return Err(Usage(format!("--sandbox: there is no key {key:?}; the keys are {keys}")).into());
            }
        }
    }
    Ok(sandbox)
}

/// `mode=manual,timeout_seconds=60,allow=git_discard,deny=git push*`; what it does not name takes the default.
fn approvals(text: &str) -> anyhow::Result<Approvals> {
    let mut approvals = Approvals::default();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| Usage(format!("--approvals: {pair:?} is not KEY=VALUE, for example mode=manual")))?;
        match key {
            "mode" => approvals.set_mode(match Mode::parse(value) {
                Some(Mode::Manual) => v1::ApprovalMode::Manual,
                Some(Mode::Smart) => v1::ApprovalMode::Smart,
                Some(Mode::Off) => v1::ApprovalMode::Off,
                None => {
                    let message = format!("--approvals: {value:?} is not a mode; write manual, smart or off");
                    return Err(Usage(message).into());
                }
            }),
            "smart_model" => approvals.smart_model = Some(value.to_owned()),
            "timeout_seconds" => {
                let number = value.parse::<u64>();
                let number =
                    number.map_err(|_| Usage(format!("--approvals: {key} is a whole number, not {value:?}")))?;
                approvals.timeout_seconds = Some(number);
            }
            "allow" => approvals.allow.push(value.to_owned()),
            "deny" => approvals.deny.push(value.to_owned()),
            _ => {
                let keys = "mode, smart_model, timeout_seconds, allow and deny";
                return Err(Usage(format!("--approvals: there is no key {key:?}; the keys are {keys}")).into());
            }
        }
    }
    Ok(approvals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_toolset_list_is_not_an_absent_one() {
        let args = SpecArgs { enabled_toolsets: Some(String::new()), ..SpecArgs::default() };
        let (spec, _) = spec(args).unwrap();
        assert_eq!(spec.enabled_toolsets, Some(StringList { values: vec![] }));
        assert_eq!(spec.disabled_toolsets, None);
        assert_eq!(list_of("files, web").values, ["files", "web"]);
    }

    #[test]
    fn approvals_are_read_key_by_key_and_what_is_wrong_is_named() {
        let read = approvals("mode=off, allow=git_discard,deny=git push*,allow=as_root").unwrap();
        assert_eq!(read.mode(), v1::ApprovalMode::Off);
        assert_eq!((read.allow, read.deny), (vec!["git_discard".into(), "as_root".into()], vec!["git push*".into()]));
        let read = approvals("mode=smart,smart_model=mock/judge").unwrap();
        assert_eq!((read.mode(), read.smart_model()), (v1::ApprovalMode::Smart, "mock/judge"));
        for (text, part) in [
            ("off", "not KEY=VALUE"),
            ("mode=clever", "manual, smart or off"),
            ("timeout_seconds=x", "whole number"),
            ("ask=1", "no key"),
        ] {
            let error = approvals(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_sandbox_is_read_key_by_key_and_what_is_wrong_is_named() {
        let read = sandbox("level=off, network=open,pids=9").unwrap();
        assert_eq!((read.level(), read.network()), (v1::SandboxLevel::Off, v1::SandboxNetwork::Open));
        assert_eq!((read.pids, read.memory_mb), (Some(9), None));
        for (text, part) in [
            ("off", "not KEY=VALUE"),
            ("level=none", "strict, home or off"),
            ("network=proxied", "none, proxy or open"),
            ("pids=x", "whole number"),
            ("disk=1", "no key"),
        ] {
            let error = sandbox(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
