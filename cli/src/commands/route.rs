//! `route list|add|remove`: the ordered route table. The control plane judges keys, agents and shadowed routes.

use hermes_proto::v1::route_service_client::RouteServiceClient;
use hermes_proto::v1::{self, AddRouteRequest, ListRoutesRequest, RemoveRouteRequest};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::{Invocation, LINES, all_pages, required, warning_text};
use crate::args::{LimitArgs, RouteAddArgs, RouteCommand};
use crate::connect::{Connection, Transport};
use crate::error::ExitStatus;
use crate::output::{Grid, Paint, View, plain, warnings};

/// The order in which a route's keys are shown beside an agent.
const SHOWN_ORDER: [&str; 9] = [
    "platform",
    "account",
    "chat_type",
    "chat_id",
    "thread_id",
    "user_id",
    "user_id_alt",
    "guild_id",
    "parent_chat_id",
];

/// Runs one of them.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn run(command: RouteCommand, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    match command {
        RouteCommand::List(limit) => list(limit, inv).await,
        RouteCommand::Add(args) => add(args, inv).await,
        RouteCommand::Remove { index, expected_version } => remove(index, expected_version, inv).await,
        RouteCommand::Explain(args) => super::explain::run(*args, inv).await,
    }
}

fn client(connection: &Connection) -> RouteServiceClient<Transport> {
    RouteServiceClient::new(connection.transport())
}

async fn list(limit: LimitArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let mut default_agent = String::new();
    let mut total = 0;
    let known = std::cell::RefCell::new((&mut default_agent, &mut total));
    let routes = all_pages(LINES, limit.limit, |page| {
        let (connection, mut client, known) = (&connection, client(&connection), &known);
        async move {
            let answer = connection.answer(client.list_routes(ListRoutesRequest { page: Some(page) })).await?;
            let mut known = known.borrow_mut();
            *known.0 = answer.default_agent;
            *known.1 = answer.total;
            Ok((answer.routes, answer.next_page_token))
        }
    })
    .await?;
    let routes = routes.into_iter().map(IndexedRouteView::from_proto).collect::<anyhow::Result<_>>()?;
    inv.printer.show(&RouteList { routes, default_agent, total })?;
    Ok(ExitStatus::Done)
}

async fn add(args: RouteAddArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let pairs = args.matches.into_iter().map(|(key, value)| v1::route::Match { key, value });
    let route = v1::Route { r#match: pairs.collect(), agent: args.agent };
    let connection = inv.connect().await?;
    let request = AddRouteRequest { route: Some(route.clone()), at: args.at };
    let answer = connection.answer(client(&connection).add_route(request)).await?;
    let warnings: Vec<String> = answer.warnings.iter().map(|warning| warning_text(None, warning)).collect();
    warnings.iter().for_each(|warning| inv.printer.warning(warning));
    inv.printer.show(&ChangedRoute {
        did: "added",
        index: answer.index,
        route: RouteView::from_proto(route),
        version: answer.version,
        warnings,
    })?;
    Ok(ExitStatus::Done)
}

async fn remove(index: u64, expected_version: Option<u64>, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let request = RemoveRouteRequest { index, expected_version };
    let answer = connection.answer(client(&connection).remove_route(request)).await?;
    inv.printer.show(&ChangedRoute {
        did: "removed",
        index,
        route: RouteView::from_proto(required(answer.route, "the route")?),
        version: answer.version,
        warnings: Vec::new(),
    })?;
    Ok(ExitStatus::Done)
}

/// One route: `{"match": {…}, "agent": …}`, keys in the order written.
pub(crate) struct RouteView {
    keys: Vec<(String, String)>,
    agent: String,
}

impl RouteView {
    /// From the wire.
    pub(crate) fn from_proto(route: v1::Route) -> Self {
        Self { keys: route.r#match.into_iter().map(|pair| (pair.key, pair.value)).collect(), agent: route.agent }
    }

    /// `key=value` pairs in the order people know; `(any)` for none.
    pub(crate) fn shown(&self) -> String {
        let place = |key: &str| SHOWN_ORDER.iter().position(|known| *known == key).unwrap_or(SHOWN_ORDER.len());
        let mut keys: Vec<_> = self.keys.iter().collect();
        keys.sort_by_key(|(key, _)| place(key));
        joined(keys.into_iter())
    }

    /// `key=value` pairs in the order written.
    fn written(&self) -> String {
        joined(self.keys.iter())
    }
}

fn joined<'a>(keys: impl Iterator<Item = &'a (String, String)>) -> String {
    let text = keys.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ");
    if text.is_empty() { "(any)".to_owned() } else { text }
}

/// A route's keys as a map that keeps their order.
struct Keys<'a>(&'a [(String, String)]);

impl Serialize for Keys<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl Serialize for RouteView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("match", &Keys(&self.keys))?;
        map.serialize_entry("agent", &self.agent)?;
        map.end()
    }
}

#[derive(serde::Serialize)]
struct IndexedRouteView {
    index: u64,
    #[serde(flatten)]
    route: RouteView,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadowed_by: Option<u64>,
}

impl IndexedRouteView {
    fn from_proto(indexed: v1::IndexedRoute) -> anyhow::Result<Self> {
        let route = RouteView::from_proto(required(indexed.route, "a route")?);
        Ok(Self { index: indexed.index, route, shadowed_by: indexed.shadowed_by })
    }
}

struct RouteList {
    routes: Vec<IndexedRouteView>,
    default_agent: String,
    total: u64,
}

impl Serialize for RouteList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.routes.serialize(serializer)
    }
}

impl View for RouteList {
    fn table(&self, paint: Paint) -> String {
        let mut grid = Grid::new(paint, &["INDEX", "MATCH", "AGENT"]).right(&[0]);
        let mut shadowed = Vec::new();
        for indexed in &self.routes {
            grid.row([indexed.index.to_string(), indexed.route.written(), indexed.route.agent.clone()]);
            if let Some(by) = indexed.shadowed_by {
                shadowed.push(format!("route {} can never win: route {by} covers it", indexed.index));
            }
        }
        let mut text = grid.finish("no route; everything goes to the default agent");
        let shown = u64::try_from(self.routes.len()).unwrap_or(u64::MAX);
        if self.total > shown {
            text.push_str(&format!("\n… {} of {} routes", shown, self.total));
        }
        if !self.default_agent.is_empty() {
            text.push_str(&format!("\n\nelse: {}", plain(&self.default_agent)));
        }
        text.push_str(&warnings(paint, &shadowed));
        text
    }
}

#[derive(serde::Serialize)]
struct ChangedRoute {
    #[serde(skip)]
    did: &'static str,
    index: u64,
    #[serde(flatten)]
    route: RouteView,
    version: u64,
    warnings: Vec<String>,
}

impl View for ChangedRoute {
    fn table(&self, _paint: Paint) -> String {
        let (keys, agent) = (self.route.written(), &self.route.agent);
        format!("{} route {}: {} -> {}", self.did, self.index, plain(&keys), plain(agent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    fn route() -> v1::Route {
        let pair = |key: &str, value: &str| v1::route::Match { key: key.into(), value: value.into() };
        v1::Route { r#match: vec![pair("thread_id", "a=b"), pair("platform", "telegram")], agent: "coder".into() }
    }

    #[test]
    fn routes_keep_the_order_in_which_they_were_written() {
        let indexed = |index, shadowed_by| {
            IndexedRouteView::from_proto(v1::IndexedRoute { index, route: Some(route()), shadowed_by }).unwrap()
        };
        let list =
            RouteList { routes: vec![indexed(0, None), indexed(1, Some(0))], default_agent: "main".into(), total: 7 };
        insta::assert_snapshot!("route_list_table", render(&list, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("route_list_json", render(&list, Format::Json, Paint::Off).unwrap());
        assert_eq!(RouteView::from_proto(route()).shown(), "platform=telegram thread_id=a=b");
    }

    #[test]
    fn a_changed_route_says_where_it_is() {
        let route = RouteView::from_proto(route());
        let changed = ChangedRoute { did: "added", index: 4, route, version: 9, warnings: vec![] };
        insta::assert_snapshot!(render(&changed, Format::Table, Paint::Off).unwrap(), @"added route 4: thread_id=a=b platform=telegram -> coder");
        insta::assert_snapshot!(render(&changed, Format::Json, Paint::Off).unwrap(), @r#"
        {
          "index": 4,
          "match": {
            "thread_id": "a=b",
            "platform": "telegram"
          },
          "agent": "coder",
          "version": 9,
          "warnings": []
        }
        "#);
    }
}
