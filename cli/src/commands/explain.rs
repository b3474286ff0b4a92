//! `route explain`: who would answer a source and why, without sending anything. With a control plane it asks the stored
//! table; with `-f` it decides by a document with the very code the control plane uses, and needs no server. Both answer
//! in the same shape.

use std::path::Path;

use anyhow::{anyhow, bail};
use hermes_core::AgentId;
use hermes_core::config::{self, Document};
use hermes_core::routing::{self, RouteTable};
use hermes_proto::v1::route_service_client::RouteServiceClient;
use hermes_proto::v1::{self, DecidedBy, ExplainRouteRequest};
use serde::Serialize;

use super::{Invocation, input, place, source, unknown};
use crate::args::ExplainArgs;
use crate::error::{ExitStatus, Lines};
use crate::output::{Grid, Paint, View, or_dash, plain};

/// Explains.
///
/// # Errors
/// What the control plane answered; with `-f` the faults of the document.
pub(crate) async fn run(args: ExplainArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let view = match args.file.clone() {
        Some(file) => offline(args, &file, inv)?,
        None => online(args, inv).await?,
    };
    inv.printer.show(&view)?;
    Ok(ExitStatus::Done)
}

async fn online(args: ExplainArgs, inv: &Invocation) -> anyhow::Result<ExplainView> {
    let connection = inv.connect().await?;
    let request = ExplainRouteRequest {
        source: Some(source::to_proto(args.source)),
        preset_agent: named(args.agent.as_deref()).map(str::to_owned),
        hook_result: named(args.hook_result.as_deref()).map(str::to_owned),
    };
    let mut client = RouteServiceClient::new(connection.transport());
    ExplainView::from_proto(connection.answer(client.explain_route(request)).await?)
}

fn offline(args: ExplainArgs, file: &Path, inv: &mut Invocation) -> anyhow::Result<ExplainView> {
    let text = input::text(file, input::DOCUMENT_BYTES)?;
    let name = input::name(file);
    let (document, warnings) = config::load_offline(&text).map_err(|faults| {
        Lines(faults.iter().map(|fault| place(Some(&name), fault.line, &fault.path, &fault.message)).collect())
    })?;
    for warning in &warnings {
        inv.printer.warning(&place(Some(&name), warning.line, &warning.path, &warning.message));
    }
    let preset = registered(&document, named(args.agent.as_deref()), &name)?;
    let hook = registered(&document, named(args.hook_result.as_deref()), &name)?;
    let table = RouteTable::compile(document.routes.as_slice().into());
    let source = source::to_core(args.source);
    let explanation = routing::explain(&table, &document.default_agent, preset.as_ref(), hook.as_ref(), &source);
    ExplainView::from_core(explanation)
}

/// A blank text names nobody.
fn named(id: Option<&str>) -> Option<&str> {
    id.map(str::trim).filter(|id| !id.is_empty())
}

fn registered(document: &Document, id: Option<&str>, name: &str) -> anyhow::Result<Option<AgentId>> {
    let Some(id) = id else { return Ok(None) };
    let id = AgentId::parse(id)?;
    if !document.agents.contains_key(&id) {
        bail!("{name} has no agent {id}; add it under agents:");
    }
    Ok(Some(id))
}

#[derive(Serialize)]
struct ExplainView {
    agent: String,
    decided_by: &'static str,
    route_index: Option<u64>,
    routes: Vec<VerdictView>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

#[derive(Serialize)]
struct VerdictView {
    index: u64,
    matched: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_key: Option<String>,
}

impl ExplainView {
    fn from_proto(answer: v1::ExplainRouteResponse) -> anyhow::Result<Self> {
        let decided_by = match answer.decided_by() {
            DecidedBy::Preset => "preset",
            DecidedBy::Hook => "hook",
            DecidedBy::Route => "route",
            DecidedBy::Default => "default",
            DecidedBy::Unspecified => return Err(unknown("reason of a decision", answer.decided_by)),
        };
        let verdict = |verdict: v1::RouteVerdict| VerdictView {
            index: verdict.index,
            matched: verdict.matched,
            failed_key: verdict.failed_key,
        };
        Ok(Self {
            agent: answer.agent,
            decided_by,
            route_index: answer.route_index,
            routes: answer.routes.into_iter().map(verdict).collect(),
            truncated: answer.truncated,
        })
    }

    fn from_core(explanation: routing::Explanation) -> anyhow::Result<Self> {
        let index =
            |index: usize| u64::try_from(index).map_err(|_too_large| anyhow!("route index {index} is too large"));
        let mut routes = Vec::with_capacity(explanation.routes.len());
        for verdict in explanation.routes {
            routes.push(VerdictView {
                index: index(verdict.index)?,
                matched: verdict.matched,
                failed_key: verdict.failed_key.map(|key| key.as_str().to_owned()),
            });
        }
        Ok(Self {
            agent: explanation.decision.agent.to_string(),
            decided_by: explanation.decision.decided_by.as_str(),
            route_index: explanation.decision.route_index.map(index).transpose()?,
            routes,
            truncated: explanation.truncated,
        })
    }
}

impl View for ExplainView {
    fn table(&self, paint: Paint) -> String {
        let agent = plain(&self.agent);
        let mut text = match (self.route_index, self.decided_by) {
            (Some(index), _) => format!("{} answers, by route {index}", paint.bold(&agent)),
            (None, "default") => format!("{} answers, by default: no route matches", paint.bold(&agent)),
            (None, by) => format!("{} answers, by {by}", paint.bold(&agent)),
        };
        if self.routes.is_empty() {
            return text;
        }
        let mut grid = Grid::new(paint, &["ROUTE", "MATCHES", "FIRST KEY THAT DOES NOT HOLD"]).right(&[0]);
        for verdict in &self.routes {
            let matches = if verdict.matched { "yes" } else { "no" };
            grid.row([verdict.index.to_string(), matches.to_owned(), or_dash(verdict.failed_key.as_deref())]);
        }
        text.push_str("\n\n");
        text.push_str(&grid.finish(""));
        if self.truncated {
            text.push_str("\n… more routes are not shown; none of them decides");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    #[test]
    fn the_answer_names_the_winner_and_the_first_failed_key_of_the_others() {
        let answer = v1::ExplainRouteResponse {
            agent: "coder".into(),
            decided_by: DecidedBy::Route.into(),
            route_index: Some(0),
            routes: vec![
                v1::RouteVerdict { index: 0, matched: true, failed_key: None },
                v1::RouteVerdict { index: 1, matched: false, failed_key: Some("guild_id".into()) },
            ],
            truncated: false,
        };
        let view = ExplainView::from_proto(answer.clone()).unwrap();
        let json = render(&view, Format::Json, Paint::Off).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let expected = r#"{"agent":"coder","decided_by":"route","route_index":0,
            "routes":[{"index":0,"matched":true},{"index":1,"matched":false,"failed_key":"guild_id"}]}"#;
        assert_eq!(json, serde_json::from_str::<serde_json::Value>(expected).unwrap());
        insta::assert_snapshot!("route_explain_table", render(&view, Format::Table, Paint::Off).unwrap());

        let by_default = v1::ExplainRouteResponse {
            agent: "main".into(),
            decided_by: DecidedBy::Default.into(),
            route_index: None,
            truncated: true,
            ..answer
        };
        let view = ExplainView::from_proto(by_default).unwrap();
        insta::assert_snapshot!("route_explain_default_json", render(&view, Format::Json, Paint::Off).unwrap());
        insta::assert_snapshot!("route_explain_default_table", render(&view, Format::Table, Paint::Off).unwrap());
    }

    #[test]
    fn a_decision_without_a_reason_is_refused() {
        assert!(ExplainView::from_proto(v1::ExplainRouteResponse::default()).is_err());
        let newer = v1::ExplainRouteResponse { decided_by: 99, ..v1::ExplainRouteResponse::default() };
        assert!(ExplainView::from_proto(newer).is_err());
    }
}
