//! RouteService: the ordered route table and its explanation.

use hermes_core::routing::{DecidedBy, explain};
use hermes_proto::v1;
use hermes_proto::v1::route_service_server::{RouteService, RouteServiceServer};
use tonic::{Request, Response, Status};

use super::convert::{self, agent_id, edit_status, route_from, route_to, source_from, unsigned, warning_to};
use super::status::{Reason, refuse};
use crate::registry::{Edit, EditError, Registry, Snapshot};

/// The service.
#[derive(Clone, Debug)]
pub struct RouteApi {
    registry: Registry,
}

impl RouteApi {
    /// As a tonic service.
    pub fn server(registry: Registry) -> RouteServiceServer<Self> {
        RouteServiceServer::new(Self { registry })
            .max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl RouteService for RouteApi {
    async fn list_routes(
        &self,
        request: Request<v1::ListRoutesRequest>,
    ) -> Result<Response<v1::ListRoutesResponse>, Status> {
        let (size, token) = convert::page(request.into_inner().page)?;
        let snapshot = self.registry.current();
        let all = &snapshot.document.routes;
        let (start, page, next_page_token) = convert::slice(all, size, &token)?;
        let routes = page.iter().enumerate().map(|(offset, route)| v1::IndexedRoute {
            index: (start + offset) as u64,
            route: Some(route_to(route)),
            shadowed_by: snapshot.table.shadow_of(start + offset).map(|by| by as u64),
        });
        Ok(Response::new(v1::ListRoutesResponse {
            routes: routes.collect(),
            next_page_token,
            version: unsigned(snapshot.version),
            total: all.len() as u64,
            default_agent: snapshot.document.default_agent.to_string(),
        }))
    }

    async fn add_route(&self, request: Request<v1::AddRouteRequest>) -> Result<Response<v1::AddRouteResponse>, Status> {
        let request = request.into_inner();
        let route = route_from(request.route)?;
        let edit = |_: &Snapshot, edit: &mut Edit| {
            let routes = &mut edit.document.routes;
            let at = request.at.map_or(routes.len(), |at| usize::try_from(at).unwrap_or(usize::MAX));
            if at > routes.len() {
                return Err(EditError::Invalid(format!(
                    "--at {at} is behind the end: the table has {} routes",
                    routes.len()
                )));
            }
            routes.insert(at, route.clone());
            Ok(at)
        };
        let edited = self.registry.edit("route add", edit).await.map_err(edit_status)?;
        // Only what this route is about: itself, or those it now covers.
        let mine = format!("routes[{}]", edited.answer);
        let covers = format!("route {} covers it", edited.answer);
        let about =
            |warning: &&hermes_core::config::Warning| warning.path == mine || warning.message.ends_with(&covers);
        Ok(Response::new(v1::AddRouteResponse {
            index: edited.answer as u64,
            version: unsigned(edited.version),
            warnings: edited.warnings.iter().filter(about).map(warning_to).collect(),
        }))
    }

    async fn remove_route(
        &self,
        request: Request<v1::RemoveRouteRequest>,
    ) -> Result<Response<v1::RemoveRouteResponse>, Status> {
        let request = request.into_inner();
        let edit = |snapshot: &Snapshot, edit: &mut Edit| {
            if let Some(expected) = request.expected_version
                && expected != unsigned(snapshot.version)
            {
                return Err(EditError::Store(crate::store::Error::Conflict(format!(
                    "the table is at version {} by now, not {expected}; list the routes again",
                    snapshot.version
                ))));
            }
            let routes = &mut edit.document.routes;
            let index = usize::try_from(request.index).unwrap_or(usize::MAX);
            if index >= routes.len() {
                return Err(EditError::NotFound(format!(
                    "there is no route {index}: the table has {} routes",
                    routes.len()
                )));
            }
            Ok(routes.remove(index))
        };
        let edited = self.registry.edit("route remove", edit).await.map_err(edit_status)?;
        Ok(Response::new(v1::RemoveRouteResponse {
            route: Some(route_to(&edited.answer)),
            version: unsigned(edited.version),
        }))
    }

    async fn explain_route(
        &self,
        request: Request<v1::ExplainRouteRequest>,
    ) -> Result<Response<v1::ExplainRouteResponse>, Status> {
        let request = request.into_inner();
        let source = source_from(request.source)?;
        let preset = request.preset_agent.as_deref().map(|id| agent_id("preset_agent", id)).transpose()?;
        let hook = request.hook_result.as_deref().map(|id| agent_id("hook_result", id)).transpose()?;
        let snapshot = self.registry.current();
        for id in preset.iter().chain(hook.iter()) {
            if snapshot.agent(id).is_none() {
                return Err(refuse(Reason::NotFound, format!("agent {id} is not registered")));
            }
        }
        let told = explain(&snapshot.table, &snapshot.document.default_agent, preset.as_ref(), hook.as_ref(), &source);
        let decided_by = match told.decision.decided_by {
            DecidedBy::Preset => v1::DecidedBy::Preset,
            DecidedBy::Hook => v1::DecidedBy::Hook,
            DecidedBy::Route => v1::DecidedBy::Route,
            DecidedBy::Default => v1::DecidedBy::Default,
        };
        let verdicts = told.routes.iter().map(|verdict| v1::RouteVerdict {
            index: verdict.index as u64,
            matched: verdict.matched,
            failed_key: verdict.failed_key.map(|key| key.as_str().to_owned()),
        });
        Ok(Response::new(v1::ExplainRouteResponse {
            agent: told.decision.agent.to_string(),
            decided_by: decided_by.into(),
            route_index: told.decision.route_index.map(|index| index as u64),
            routes: verdicts.collect(),
            truncated: told.truncated,
        }))
    }
}
