//! Connections and the faults that need a hand on them.
//!
//! hyper is used directly: only an error of its service ends a connection without an answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{Answer, Call, error};
use super::{Bot, Bots, Fault};

type Body = BoxBody<Bytes, Cut>;

/// Ends the connection at once when a service or a body yields it.
#[derive(Debug)]
pub(super) struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("the fake cuts the connection")
    }
}

impl std::error::Error for Cut {}

/// Accepts until `stop`.
pub(super) async fn serve(listener: TcpListener, bots: Bots, stop: CancellationToken, tasks: TaskTracker) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((stream, _)) = accepted else { continue };
        let _ = stream.set_nodelay(true);
        let (bots, stop) = (Arc::clone(&bots), stop.clone());
        tasks.spawn(async move {
            stop.run_until_cancelled(connection(stream, bots)).await;
        });
    }
}

async fn connection(stream: TcpStream, bots: Bots) {
    let service = service_fn(move |request| handle(Arc::clone(&bots), request));
    // An error here is a client that left, or a cut that a test asked for.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn handle(bots: Bots, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
    let path = request.uri().path();
    if let Some((token, place)) = path.strip_prefix("/file/bot").and_then(|rest| rest.split_once('/')) {
        return file(&bots, token, place).await;
    }
    let Some((token, method)) = path.strip_prefix("/bot").and_then(|rest| rest.split_once('/')) else {
        return Ok(whole(error(404, "Not Found", None)));
    };
    let bot = bots.lock().unwrap_or_else(PoisonError::into_inner).get(token).cloned();
    let Some(bot) = bot else {
        return Ok(whole(error(401, "Unauthorized", None)));
    };
    let method = method.to_owned();
    let early = |fault: &Fault| matches!(fault, Fault::CutBeforeReading | Fault::CutWhileReading);
    if let Some(fault) = bot.take_fault_if(&method, early) {
        bot.count(&method);
        if fault == Fault::CutWhileReading {
            let mut body = request.into_body();
            let _ = body.frame().await;
        }
        return Err(Cut);
    }
    let call = Call::read(method, request).await.map_err(|_| Cut)?;
    bot.count(&call.method);
    match bot.take_fault(&call) {
        None | Some(Fault::Pass) => Ok(whole(bot.answer(&call).await)),
        Some(Fault::Answer { code, description, retry_after }) => Ok(whole(error(code, &description, retry_after))),
        Some(Fault::Proxy(code)) => Ok(whole(Answer::html(code))),
        Some(Fault::CutBeforeReading | Fault::CutWhileReading) => Err(Cut),
        Some(Fault::CutAfterApplying) => {
            bot.answer(&call).await;
            Err(Cut)
        }
        Some(Fault::CutMidResponse) => Ok(torn(bot.answer(&call).await)),
        Some(Fault::Late(time)) => {
            let answer = bot.answer(&call).await;
            tokio::time::sleep(time).await;
            Ok(whole(answer))
        }
        Some(Fault::Hang) => std::future::pending().await,
    }
}

/// A file, whatever strikes the method `file`.
async fn file(bots: &Bots, token: &str, place: &str) -> Result<Response<Body>, Cut> {
    let bot = bots.lock().unwrap_or_else(PoisonError::into_inner).get(token).cloned();
    let Some(bot) = bot else {
        return Ok(whole(error(401, "Unauthorized", None)));
    };
    bot.count("file");
    let content = bot.file(place);
    match (bot.take_fault_if("file", |_| true), content) {
        (None | Some(Fault::Pass), Some(content)) => {
            let body = Full::new(Bytes::from(content)).map_err(|never: Infallible| match never {}).boxed();
            Ok(Response::new(body))
        }
        (None | Some(Fault::Pass), None) => Ok(whole(error(404, "Not Found", None))),
        (Some(Fault::Answer { code, description, retry_after }), _) => {
            Ok(whole(error(code, &description, retry_after)))
        }
        (Some(Fault::Proxy(code)), _) => Ok(whole(Answer::html(code))),
        (Some(Fault::CutMidResponse), Some(content)) => {
            let half = content.get(..content.len() / 2).map(Bytes::copy_from_slice);
            Ok(Response::new(StreamBody::new(Torn { half, flushed: false }).boxed()))
        }
        (Some(Fault::Hang), _) => std::future::pending().await,
        (Some(_), _) => Err(Cut),
    }
}

fn whole(answer: Answer) -> Response<Body> {
    response(&answer, Full::new(Bytes::from(answer.text.clone())).map_err(|never: Infallible| match never {}).boxed())
}

/// The head, half of the body, then the end of the connection.
fn torn(answer: Answer) -> Response<Body> {
    let half = answer.text.as_bytes().get(..answer.text.len() / 2).unwrap_or_default();
    let body = StreamBody::new(Torn { half: Some(Bytes::copy_from_slice(half)), flushed: false });
    response(&answer, body.boxed())
}

fn response(answer: &Answer, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = http::HeaderValue::from_static(answer.content_type);
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response.headers_mut().insert(http::header::CONTENT_LENGTH, answer.text.len().into());
    response
}

struct Torn {
    half: Option<Bytes>,
    flushed: bool,
}

impl futures_util::Stream for Torn {
    type Item = Result<Frame<Bytes>, Cut>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(half) = self.half.take() {
            return Poll::Ready(Some(Ok(Frame::data(half))));
        }
        if !self.flushed {
            // One turn of the connection's task writes the half out.
            self.flushed = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(Cut)))
    }
}

impl Bot {
    /// Takes the first scripted fault of `method` for any chat when `which` holds for it.
    fn take_fault_if(&self, method: &str, which: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let mut state = self.locked();
        let at = state.faults.iter().position(|fault| fault.method == method && fault.chat_id.is_none())?;
        state.faults.get(at).filter(|scripted| which(&scripted.fault))?;
        state.take_fault_at(at)
    }

    fn take_fault(&self, call: &Call) -> Option<Fault> {
        let mut state = self.locked();
        let chat_id = call.get("chat_id");
        let fits = |chat: &Option<String>| chat.is_none() || *chat == chat_id;
        let at = state.faults.iter().position(|fault| fault.method == call.method && fits(&fault.chat_id))?;
        state.take_fault_at(at)
    }

    fn count(&self, method: &str) {
        *self.locked().calls.entry(method.to_owned()).or_default() += 1;
        self.0.happened.notify_waiters();
    }
}

impl super::State {
    fn take_fault_at(&mut self, at: usize) -> Option<Fault> {
        let scripted = self.faults.get_mut(at)?;
        if scripted.left > 1 {
            scripted.left = if scripted.left == u32::MAX { u32::MAX } else { scripted.left - 1 };
            return Some(scripted.fault.clone());
        }
        Some(self.faults.remove(at).fault)
    }
}
