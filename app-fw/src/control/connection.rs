//! One client: its frames in, its answers out.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use shared::control::{
    self, Answer, Failure, FailureKind, FrameError, HEADER, MAX_ANSWER, MAX_REQUEST, MAX_ROOT_REQUEST, Request, VERSION,
};
use shared::document::Form;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::admission::{Admission, Patience};
use super::{Caller, Handler, Limits, Subscription};

/// Longer requests of users who may only ask come few at a time: what JSON takes in memory is many times its length.
const LONG_REQUEST: usize = 16 << 10;

/// Who is at the other end, as the kernel saw it when it connected (SO_PEERCRED).
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) uid: u32,
    /// For people only: the process may be gone and its number somebody else's.
    pub(super) pid: Option<i32>,
}

impl Peer {
    pub(super) fn is_root(self) -> bool {
        self.uid == 0
    }

    /// Root may do everything; others who can connect may look.
    fn may(self, request: &Request) -> bool {
        let looks = match request {
            Request::Change { .. } | Request::Restore { .. } | Request::Undo { .. } => false,
            // It tells what other users' programs are made of, and hashes them.
            Request::Explain { .. } => false,
            Request::Learned { clear } => !clear,
            Request::List { .. } | Request::History { .. } | Request::Subscribe { .. } | Request::Status => true,
        };
        looks || self.is_root()
    }

    fn longest_request(self) -> usize {
        if self.is_root() { MAX_ROOT_REQUEST } else { MAX_REQUEST }
    }

    fn caller(self) -> Caller {
        Caller { uid: self.uid, pid: self.pid.and_then(|pid| u32::try_from(pid).ok()) }
    }
}

/// Why a connection ended before the client closed it.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the connection ended within a frame")]
    Truncated,
    #[error("a frame was not complete in time")]
    SlowFrame,
    #[error("nothing was asked for too long")]
    Idle,
    #[error("{0}")]
    Busy(&'static str),
    #[error("a subscriber sent something")]
    Talkative,
    #[error("an answer was not taken in time")]
    SlowReader,
    #[error("the handler failed: {0}")]
    Handler(tokio::task::JoinError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An answer ready to be sent.
struct Reply {
    frame: Vec<u8>,
    then: Then,
}

/// What follows an answer.
enum Then {
    /// The next request.
    Request,
    /// Announcements.
    Announcements(Subscription),
    /// Nothing: after a frame that made no sense nothing the client says can be trusted to start where it seems to.
    End,
}

/// A request that has arrived.
struct Body {
    bytes: Vec<u8>,
    /// Held until it is answered.
    _patience: Option<Patience>,
}

/// One connection.
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) peer: Peer,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) admission: Admission,
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) limits: Limits,
}

impl Connection {
    /// Answers the client until either side has enough.
    pub(super) async fn run(mut self) {
        let Err(broken) = self.converse().await else { return };
        let Peer { uid, pid } = self.peer;
        match broken {
            Broken::Idle => tracing::debug!(uid, pid, "control connection closed: {broken}"),
            Broken::Handler(_) => tracing::error!(uid, pid, "control connection closed: {broken}"),
            _ => tracing::warn!(uid, pid, "control connection closed: {broken}"),
        }
    }

    async fn converse(&mut self) -> Result<(), Broken> {
        loop {
            let body = match self.read_frame().await {
                Ok(Some(body)) => body,
                Ok(None) => return Ok(()),
                Err(Broken::Frame(error)) => {
                    self.send(&malformed(error.to_string()).frame()).await?;
                    return Err(error.into());
                }
                Err(Broken::Busy(why)) => {
                    self.send(&busy(why)).await?;
                    return Err(Broken::Busy(why));
                }
                Err(broken) => return Err(broken),
            };
            let (handler, peer) = (self.handler.clone(), self.peer);
            let reply = tokio::task::spawn_blocking(move || reply(&*handler, peer, body));
            let reply = reply.await.map_err(Broken::Handler)?;
            self.send(&reply.frame).await?;
            match reply.then {
                Then::Request => {}
                Then::Announcements(subscription) => return self.announce(&subscription).await,
                Then::End => return Ok(()),
            }
        }
    }

    /// Tells of what happens until the client hangs up or the server stops. A client that does not read misses something,
    /// and is told how much when it reads again.
    async fn announce(&mut self, subscription: &Subscription) -> Result<(), Broken> {
        let (mut from, mut to) = self.stream.split();
        let tell = async {
            loop {
                to.write_all(&subscription.next().await).await?;
            }
        };
        let mut byte = [0];
        tokio::select! {
            told = tell => told,
            read = from.read(&mut byte) => match read? {
                0 => Ok(()),
                _ => Err(Broken::Talkative),
            },
            _ = self.stopping.wait_for(|stopping| *stopping) => Ok(()),
        }
    }

    /// The next frame's body; `None` if the client is done or the server stops.
    async fn read_frame(&mut self) -> Result<Option<Body>, Broken> {
        let mut header = [0; HEADER];
        let arrived = tokio::select! {
            read = timeout(self.limits.idle, self.stream.read(&mut header)) => read.map_err(|_| Broken::Idle)??,
            // An error means that the server is gone.
            _ = self.stopping.wait_for(|stopping| *stopping) => return Ok(None),
        };
        if arrived == 0 {
            return Ok(None);
        }
        let (peer, limit) = (self.peer, self.peer.longest_request());
        let rest = async {
            self.stream.read_exact(&mut header[arrived..]).await.map_err(ended)?;
            let length = control::body_length(header, limit)?;
            let is_long = length > LONG_REQUEST && !peer.is_root();
            let patience = is_long.then(|| self.admission.hear(peer)).transpose().map_err(Broken::Busy)?;
            // Grows with what arrives, not with what was announced.
            let mut bytes = Vec::new();
            (&mut self.stream).take(length as u64).read_to_end(&mut bytes).await?;
            if bytes.len() == length { Ok(Some(Body { bytes, _patience: patience })) } else { Err(Broken::Truncated) }
        };
        // Half a request has asked for nothing: the end need not wait for the rest.
        tokio::select! {
            read = timeout(self.limits.frame, rest) => read.map_err(|_| Broken::SlowFrame)?,
            _ = self.stopping.wait_for(|stopping| *stopping) => Ok(None),
        }
    }

    async fn send(&mut self, frame: &[u8]) -> Result<(), Broken> {
        timeout(self.limits.answer, self.stream.write_all(frame)).await.map_err(|_| Broken::SlowReader)??;
        Ok(())
    }
}

fn ended(error: io::Error) -> Broken {
    if error.kind() == io::ErrorKind::UnexpectedEof { Broken::Truncated } else { Broken::Io(error) }
}

/// Reads one request, has it answered, and writes the answer. Blocks.
fn reply(handler: &dyn Handler, peer: Peer, body: Body) -> Reply {
    let request = match read_call(&body.bytes) {
        Ok(request) => request,
        Err(message) => {
            tracing::warn!(uid = peer.uid, pid = peer.pid, "malformed control request: {message}");
            return Reply { frame: malformed(message).frame(), then: Then::End };
        }
    };
    // A whole ruleset may be as long as what it was read from.
    drop(body);
    if !peer.may(&request) {
        tracing::warn!(uid = peer.uid, pid = peer.pid, "control request refused");
        let message = "only root may change rules, policies and sets, and have things explained; others may list them and ask for the status";
        let refusal = failure(FailureKind::Forbidden, message.into());
        return Reply { frame: refusal.frame(), then: Then::Request };
    }
    if let Request::Subscribe { changes, packets } = request {
        let subscription = handler.subscribe(changes, packets);
        return Reply { frame: Answer::Subscribed.frame(), then: Then::Announcements(subscription) };
    }
    Reply { frame: handler.handle(peer.caller(), request).frame(), then: Then::Request }
}

/// Reads what [`shared::control::Call`] writes. Not as serde would: to find out first what is asked it would hold back all
/// the rest, and a whole ruleset is long.
pub(crate) fn read_call(body: &[u8]) -> Result<Request, String> {
    struct Keys;

    impl<'de> Visitor<'de> for Keys {
        type Value = Result<Request, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a request")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let (mut version, mut document, mut rest) = (None::<u32>, None, serde_json::Map::new());
            while let Some(key) = map.next_key::<String>()? {
                match key.as_str() {
                    "version" => version = Some(map.next_value()?),
                    "document" if rest.get("request").is_some_and(|request| request == "restore") => {
                        document = Some(map.next_value::<Form>()?);
                    }
                    _ => drop(rest.insert(key, map.next_value()?)),
                }
                if let Some(version) = version.filter(|version| *version != VERSION) {
                    // What else it says may mean something else in that version.
                    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                    return Ok(Err(format!(
                        "the client speaks version {version} of the control protocol and this app-fw version {VERSION}: \
                         use the ctl-fw that came with it"
                    )));
                }
            }
            if version.is_none() {
                return Err(A::Error::missing_field("version"));
            }
            if document.is_some() {
                rest.insert("document".into(), "".into());
            }
            let mut request = serde_json::from_value(rest.into()).map_err(A::Error::custom)?;
            if let (Request::Restore { document: place, .. }, Some(document)) = (&mut request, document) {
                *place = document;
            }
            Ok(Ok(request))
        }
    }

    let mut reader = serde_json::Deserializer::from_slice(body);
    let read = reader.deserialize_map(Keys).and_then(|read| reader.end().map(|()| read));
    read.map_err(|error| FrameError::from(error).to_string())?
}

fn failure(kind: FailureKind, message: String) -> Answer {
    Answer::Error(Failure { kind, message, index: None })
}

fn malformed(message: String) -> Answer {
    failure(FailureKind::Malformed, message)
}

fn busy(message: &str) -> Vec<u8> {
    failure(FailureKind::Busy, format!("{message}: try again later")).frame()
}

/// Tells a client that it cannot be served. What does not fit into the empty buffer of a new socket is not said.
pub(super) fn refuse(stream: &UnixStream, message: &str) {
    if let Err(error) = stream.try_write(&busy(message)) {
        tracing::debug!(%error, "a refused client was not told");
    }
}

trait Framed {
    /// The answer's frame, or that of an error if it is longer than a client takes.
    fn frame(&self) -> Vec<u8>;
}

impl Framed for Answer {
    fn frame(&self) -> Vec<u8> {
        let message = match control::encode(self) {
            Ok(frame) if frame.len() - HEADER <= MAX_ANSWER => return frame,
            Ok(_) => "the answer is too long: ask for one chain or one namespace".into(),
            Err(error) => error.to_string(),
        };
        tracing::error!("a control answer could not be sent: {message}");
        // A failure is two strings: it can always be encoded.
        control::encode(&failure(FailureKind::Invalid, message)).unwrap_or_default()
    }
}
