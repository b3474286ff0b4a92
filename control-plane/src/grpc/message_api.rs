//! MessageService: the way in for external gateways and hermesctl.

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use hermes_core::AgentId;
use hermes_core::attachment::{Attachment, MAX_FILES};
use hermes_core::source::OWN_PLATFORMS;
use hermes_core::turn::TurnState;
use hermes_proto::v1;
use hermes_proto::v1::message_service_server::{MessageService, MessageServiceServer};
use hermes_proto::v1::turn_event::Event;
use sha2::{Digest as _, Sha256};
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::convert::{agent_id, end_to, intake_status, source_from, store_status, turn_state_to, unsigned};
use super::files;
use super::layers::principal;
use super::status::{Reason, invalid, refuse};
use crate::attachments::Attachments;
use crate::dispatch::TurnEvent;
use crate::identity::Principal;
use crate::intake::{Accepted, Dedupe, Intake, Message, Surface};
use crate::outbox::Adapters;
use crate::store::{LaneKey, Store, TurnId, TurnRow};

/// The service.
#[derive(Clone)]
pub struct MessageApi {
    intake: Intake,
    adapters: Adapters,
    store: Store,
    attachments: Attachments,
}

impl std::fmt::Debug for MessageApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MessageApi")
    }
}

impl MessageApi {
    /// As a tonic service.
    pub fn server(
        intake: Intake,
        adapters: Adapters,
        store: Store,
        attachments: Attachments,
    ) -> MessageServiceServer<Self> {
        // Larger than a message may be, so that a long one is refused with its limit.
        MessageServiceServer::new(Self { intake, adapters, store, attachments })
            .max_decoding_message_size(8 * hermes_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
    }

    async fn accept(
        &self,
        caller: &Principal,
        request: v1::SubmitRequest,
    ) -> Result<(Accepted, v1::SubmitResponse), Status> {
        let source = source_from(request.source)?;
        if OWN_PLATFORMS.contains(&source.platform.as_str()) {
            let message = format!(
                "{} is no platform that messages come from; name the one that yours comes from",
                source.platform
            );
            return Err(invalid("source.platform", message));
        }
        let preset = request.agent.as_deref().map(|id| agent_id("agent", id)).transpose()?;
        let preset = reached(caller, preset)?;
        let reply_to = if request.deliver { Some(self.target(&source)?) } else { None };
        if let (Some(chat), Principal::Api { agent: Some(own), .. }) = (&reply_to, caller) {
            self.reaches(own, chat).await?;
        }
        let submitter = caller.caller();
        let attachments = self.uploads(&submitter, &request.attachments).await?;
        let body_hash = body_hash(&source, &request.text, &attachments);
        let given = request.dedupe_key.filter(|key| !key.is_empty());
        // The key belongs to its caller: two gateways never collide. A message id belongs to its chat.
        let dedupe = match (given, &source.message_id) {
            (Some(key), _) => Dedupe::Key {
                key: format!("api:{}:{key}", caller.caller()),
                event_time: None,
                body_hash: Some(body_hash),
            },
            (None, Some(message)) => Dedupe::Key {
                key: format!(
                    "msg:{}:{}:{}:{}:{message}",
                    source.platform,
                    source.account.as_deref().unwrap_or_default(),
                    source.chat_id,
                    source.thread_id.as_deref().unwrap_or_default()
                ),
                event_time: None,
                body_hash: Some(body_hash),
            },
            (None, None) => Dedupe::New,
        };
        let message = Message {
            source,
            text: request.text,
            attachments,
            history: None,
            preset,
            dedupe,
            submitter: Some(submitter),
            reply_to,
            surface: Surface::Gateway,
        };
        let accepted = self.intake.submit(message).await.map_err(intake_status)?;
        if let Some(said) = accepted.command.clone() {
            let response = self.command_response(&accepted, said).await?;
            return Ok((accepted, response));
        }
        let state = if accepted.duplicate {
            self.store.turn_get(accepted.turn).await.map_err(store_status)?.state()
        } else if accepted.running {
            TurnState::Running
        } else {
            TurnState::Queued
        };
        let response = v1::SubmitResponse {
            agent: accepted.agent.to_string(),
            session_key: accepted.session_key.clone(),
            session_id: accepted.turn.session.to_string(),
            turn: accepted.turn.to_string(),
            duplicate: accepted.duplicate,
            state: turn_state_to(state).into(),
            notice: String::new(),
        };
        Ok((accepted, response))
    }

    /// The files that a caller uploaded before.
    async fn uploads(&self, submitter: &str, ids: &[String]) -> Result<Vec<Attachment>, Status> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        if ids.len() > MAX_FILES {
            return Err(invalid("attachments", format!("a message has at most {MAX_FILES} files")));
        }
        let ids = ids.iter().map(|id| {
            id.parse::<Uuid>().map_err(|_| invalid("attachments", "an id is what UploadAttachment answered"))
        });
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        self.store.uploads(submitter, &ids).await.map_err(store_status)
    }

    /// What a command came to.
    async fn command_response(&self, accepted: &Accepted, said: String) -> Result<v1::SubmitResponse, Status> {
        let turn = accepted.turn;
        let (session_id, turn, state) = if turn.seq > 0 {
            let state = self.store.turn_get(turn).await.map_err(store_status)?.state();
            (turn.session.to_string(), turn.to_string(), turn_state_to(state))
        } else {
            (String::new(), String::new(), v1::TurnState::Succeeded)
        };
        let notice = if accepted.duplicate { "This command was carried out before.".to_owned() } else { said };
        Ok(v1::SubmitResponse {
            agent: accepted.agent.to_string(),
            session_key: accepted.session_key.clone(),
            session_id,
            turn,
            duplicate: accepted.duplicate,
            state: state.into(),
            notice,
        })
    }

    /// A token of one agent has a reply delivered only where that agent may write by itself.
    async fn reaches(&self, agent: &AgentId, chat: &LaneKey) -> Result<(), Status> {
        if self.store.agent_reaches(agent.as_str(), chat).await.map_err(store_status)? {
            return Ok(());
        }
        let LaneKey { platform, chat_id, .. } = chat;
        Err(refuse(
            Reason::NotFound,
            format!(
                "agent {agent} may not write to {platform}:{chat_id}: only to its homes, and to chats that have written to it"
            ),
        ))
    }

    fn target(&self, source: &hermes_core::Source) -> Result<LaneKey, Status> {
        let account = source.account.as_deref().unwrap_or_default();
        if self.adapters.get(&source.platform, account).is_none() {
            return Err(refuse(
                Reason::NotFound,
                format!(
                    "the reply cannot be delivered: there is no {} account {account:?}; send without deliver, or configure it",
                    source.platform
                ),
            ));
        }
        Ok(LaneKey {
            platform: source.platform.clone(),
            account: account.to_owned(),
            chat_id: source.chat_id.clone(),
            thread_id: source.thread_id.clone().unwrap_or_default(),
        })
    }
}

/// The agent that a message is for: a token of one agent reaches no other, and is told the same of one that there is as of one that there is not.
fn reached(caller: &Principal, preset: Option<AgentId>) -> Result<Option<AgentId>, Status> {
    let Principal::Api { agent: Some(own), .. } = caller else { return Ok(preset) };
    match preset {
        Some(other) if other != *own => Err(intake_status(crate::intake::Error::UnknownAgent(other.to_string()))),
        _ => Ok(Some(own.clone())),
    }
}

/// Turn numbers can be guessed and a platform's message id is nobody's secret: an API token reads only what it submitted.
fn readable(caller: &Principal, row: TurnRow) -> Result<TurnRow, Status> {
    let allowed = match caller {
        Principal::Operator { .. } | Principal::Viewer { .. } => true,
        Principal::Api { .. } => row.submitter.as_deref() == Some(caller.caller().as_str()),
        Principal::Worker { .. } | Principal::None => false,
    };
    if allowed { Ok(row) } else { Err(refuse(Reason::NotFound, format!("there is no turn {}", row.id))) }
}

fn body_hash(source: &hermes_core::Source, text: &str, files: &[Attachment]) -> [u8; 32] {
    let mut hash = Sha256::new();
    let parts: [&str; 3] = [&source.platform, &source.chat_id, text];
    for part in parts.into_iter().chain(files.iter().map(|file| file.sha256.as_str())) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

fn turn_id(text: &str) -> Result<TurnId, Status> {
    text.parse().map_err(|error: crate::store::Error| invalid("turn", error.to_string()))
}

#[tonic::async_trait]
impl MessageService for MessageApi {
    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        let caller = principal(&request).clone();
        let (_, response) = self.accept(&caller, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn upload_attachment(
        &self,
        request: Request<Streaming<v1::UploadAttachmentRequest>>,
    ) -> Result<Response<v1::UploadAttachmentResponse>, Status> {
        let submitter = principal(&request).caller();
        let _room = self.attachments.arrival(&submitter).await;
        let mut file = files::uploaded(request.into_inner());
        let (header, content) = (file.header().await?, file.content().await?);
        let kept = self.attachments.keep_upload(&submitter, &header.name, &content).await;
        let (id, file) = kept.map_err(files::unkept)?;
        let Attachment { media_type, bytes, sha256, .. } = file;
        Ok(Response::new(v1::UploadAttachmentResponse { id: id.to_string(), media_type, bytes, sha256 }))
    }

    type SubmitAndStreamStream = BoxStream<'static, Result<v1::TurnEvent, Status>>;

    async fn submit_and_stream(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<Self::SubmitAndStreamStream>, Status> {
        let caller = principal(&request).clone();
        let (accepted, response) = self.accept(&caller, request.into_inner()).await?;
        if accepted.command.is_some() {
            let state = v1::TurnState::Succeeded.into();
            let ended = v1::TurnEnded { state, reply: response.notice.clone(), ..v1::TurnEnded::default() };
            let events = [Event::Accepted(response), Event::Ended(ended)];
            let events = events.map(|event| Ok(v1::TurnEvent { event: Some(event) }));
            return Ok(Response::new(futures_util::stream::iter(events).boxed()));
        }
        if accepted.duplicate {
            readable(&caller, self.store.turn_get(accepted.turn).await.map_err(store_status)?)?;
        }
        let first = v1::TurnEvent { event: Some(Event::Accepted(response)) };
        let events = self.intake.dispatcher().live().follow(self.store.clone(), accepted.turn).map(|event| {
            Ok(v1::TurnEvent {
                event: Some(match event {
                    TurnEvent::Delta(text) => Event::TextDelta(text),
                    TurnEvent::Asked(question) => Event::Approval(v1::ApprovalAsked {
                        id: unsigned(question.id),
                        question: question.text,
                        timeout_ms: u64::try_from(question.left.as_millis()).unwrap_or(u64::MAX),
                    }),
                    TurnEvent::Ended(end) => Event::Ended(end_to(end)),
                }),
            })
        });
        Ok(Response::new(futures_util::stream::once(async { Ok(first) }).chain(events).boxed()))
    }

    async fn get_turn(&self, request: Request<v1::GetTurnRequest>) -> Result<Response<v1::GetTurnResponse>, Status> {
        let caller = principal(&request).clone();
        let request = request.into_inner();
        let id = turn_id(&request.turn)?;
        let mut row = readable(&caller, self.store.turn_get(id).await.map_err(store_status)?)?;
        if request.wait && row.ended.is_none() {
            let mut events = self.intake.dispatcher().live().follow(self.store.clone(), id);
            while let Some(event) = events.next().await {
                if matches!(event, TurnEvent::Ended(_)) {
                    break;
                }
            }
            row = self.store.turn_get(id).await.map_err(store_status)?;
        }
        let accepted = v1::SubmitResponse {
            agent: row.agent_id.clone(),
            session_key: row.session_key.clone(),
            session_id: row.id.session.to_string(),
            turn: row.id.to_string(),
            duplicate: false,
            state: turn_state_to(row.state()).into(),
            notice: String::new(),
        };
        Ok(Response::new(v1::GetTurnResponse { accepted: Some(accepted), ended: row.end().map(end_to) }))
    }
}
