//! Asking the daemon.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;
use shared::control::{self, Announcement, Answer, FrameError, HEADER, MAX_ANSWER, MAX_ROOT_REQUEST, Request, VERSION};

/// How long the daemon may take from the question to the last byte of the answer. It writes to a disk before it answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same for requests that may be as long as a whole ruleset.
const LONG_PATIENCE: Duration = Duration::from_secs(600);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket.
    #[error(
        "app-fw is not running, or listens elsewhere: there is no socket {} (--socket PATH or APP_FW_SOCKET name another)",
        .0.display()
    )]
    NoSocket(PathBuf),
    /// There is one, but nobody listens on it.
    #[error(
        "app-fw is not running: nobody listens on {} (start it; --socket PATH or APP_FW_SOCKET name another socket)",
        .0.display()
    )]
    NotRunning(PathBuf),
    /// Only root and the socket's group may connect.
    #[error(
        "permission denied on {}: changing rules needs root; members of the group app-fw may list them and ask for the status",
        .0.display()
    )]
    Permission(PathBuf),
    /// The daemon is stopped, starved or stuck.
    #[error("app-fw did not answer within {} s: is it stopped? What was asked may still happen (looked at {})", .1.as_secs_f32(), .0.display())]
    Timeout(PathBuf, Duration),
    /// The daemon ended, or cut the connection.
    #[error("app-fw closed the connection before its answer was complete: what was asked may or may not have happened")]
    Closed,
    /// The answer is too long or no answer.
    #[error("the answer cannot be read: {0} (do ctl-fw and app-fw have the same version?)")]
    Frame(#[from] FrameError),
    /// Anything else the system says.
    #[error("cannot talk to app-fw on {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// A [`control::Call`] that is written without a copy of the request, which may be a whole ruleset.
#[derive(Serialize)]
struct Call<'a> {
    version: u32,
    #[serde(flatten)]
    request: &'a Request,
}

/// Edits of which the daemon makes short work.
const FEW: usize = 1000;

/// How long the answer to `request` may take if nobody says otherwise.
fn patience_for(request: &Request) -> Duration {
    match request {
        Request::Restore { .. } | Request::Undo { .. } => LONG_PATIENCE,
        Request::Change { edits, .. } if edits.len() > FEW => LONG_PATIENCE,
        _ => PATIENCE,
    }
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    /// How long a call may take; `None`: what its request deserves.
    patience: Option<Duration>,
}

impl Client {
    /// Connects to the daemon that listens at `path`.
    ///
    /// # Errors
    /// Nobody listens there, or not for us.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        Client::open(path, None)
    }

    /// Connects; each call may then take as long as `patience`.
    ///
    /// # Errors
    /// Nobody listens there, or not for us.
    pub fn connect_within(path: &Path, patience: Duration) -> Result<Client, ClientError> {
        Client::open(path, Some(patience))
    }

    fn open(path: &Path, patience: Option<Duration>) -> Result<Client, ClientError> {
        let limit = patience.unwrap_or(PATIENCE);
        let stream = open(path, limit).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR => ClientError::NoSocket(path.into()),
            Errno::ECONNREFUSED => ClientError::NotRunning(path.into()),
            Errno::EACCES | Errno::EPERM => ClientError::Permission(path.into()),
            Errno::EAGAIN => ClientError::Timeout(path.into(), limit),
            errno => ClientError::Io { path: path.into(), source: errno.into() },
        })?;
        Ok(Client { stream, path: path.into(), patience })
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// The daemon is too slow, hangs up, or answers nonsense. Whether it did what was asked is then unknown.
    pub fn call(&mut self, request: &Request) -> Result<Answer, ClientError> {
        let patience = self.patience.unwrap_or_else(|| patience_for(request));
        let frame = control::encode(&Call { version: VERSION, request })?;
        let length = frame.len() - HEADER;
        if length > MAX_ROOT_REQUEST {
            return Err(FrameError::TooLong { length, limit: MAX_ROOT_REQUEST }.into());
        }
        let mut stream = Timed { stream: &self.stream, deadline: Instant::now() + patience };
        match stream.write_all(&frame) {
            Ok(()) => {}
            // A daemon that refuses to listen says why before it hangs up.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(self.error(error, patience)),
        }
        let body = read_frame(&mut stream)?.map_err(|error| self.error(error, patience))?;
        Ok(control::decode(&body)?)
    }

    /// Waits until something can be read. False if before that the reader of the pipe `out` has gone.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn wait(&self, out: Option<BorrowedFd<'_>>) -> Result<bool, ClientError> {
        let mut watched = vec![PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        // Asked for nothing, it tells of errors.
        watched.extend(out.map(|out| PollFd::new(out, PollFlags::empty())));
        loop {
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.error(errno.into(), PATIENCE)),
            }
        }
        let has_gone = |out: &PollFd<'_>| out.revents().is_some_and(|events| events.contains(PollFlags::POLLERR));
        let readable = watched[0].any().unwrap_or(true);
        Ok(readable || !watched[1..].iter().any(has_gone))
    }

    /// The next announcement after an answer [`Answer::Subscribed`]; waits for it as long as it takes.
    ///
    /// # Errors
    /// The daemon hangs up, or announces nonsense.
    pub fn announcement(&mut self) -> Result<Announcement, ClientError> {
        self.stream.set_read_timeout(None).map_err(|error| self.error(error, PATIENCE))?;
        let body = read_frame(&mut &self.stream)?.map_err(|error| self.error(error, PATIENCE))?;
        Ok(control::decode(&body)?)
    }

    fn error(&self, error: io::Error, patience: Duration) -> ClientError {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ClientError::Timeout(self.path.clone(), patience),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => ClientError::Closed,
            _ => ClientError::Io { path: self.path.clone(), source: error },
        }
    }
}

/// Reads the body of a frame.
fn read_frame(stream: &mut impl Read) -> Result<io::Result<Vec<u8>>, FrameError> {
    let mut header = [0; HEADER];
    if let Err(error) = stream.read_exact(&mut header) {
        return Ok(Err(error));
    }
    let length = control::body_length(header, MAX_ANSWER)?;
    let mut body = Vec::new();
    Ok(match stream.take(length as u64).read_to_end(&mut body) {
        Ok(_) if body.len() < length => Err(io::ErrorKind::UnexpectedEof.into()),
        read => read.map(|_| body),
    })
}

/// Not `UnixStream::connect`: that waits for ever if a stopped daemon's queue of connections is full.
fn open(path: &Path, patience: Duration) -> nix::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket: OwnedFd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let timeout = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
    socket::setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
    socket::connect(socket.as_raw_fd(), &address)?;
    Ok(UnixStream::from(socket))
}

/// A stream on which everything must be done by a deadline. A time limit for each read alone would let a peer that sends
/// a byte now and then keep us for ever.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread::{JoinHandle, spawn};

    use shared::control::{Call, Failure, FailureKind};

    /// A server for one client, which does what `talk` does and hangs up.
    fn server(talk: impl FnOnce(&mut UnixStream) + Send + 'static) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = spawn(move || talk(&mut listener.accept().unwrap().0));
        (dir, path, thread)
    }

    fn read_request(stream: &mut UnixStream) -> Call {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).unwrap();
        let mut body = vec![0; control::body_length(header, control::MAX_REQUEST).unwrap()];
        stream.read_exact(&mut body).unwrap();
        control::decode(&body).unwrap()
    }

    /// What a client gets from a server that reads the request and then does what `talk` does.
    fn call(talk: impl FnOnce(&mut UnixStream) + Send + 'static) -> Result<Answer, ClientError> {
        let (_dir, path, thread) = server(move |stream| {
            read_request(stream);
            talk(stream);
        });
        let answer = Client::connect(&path).unwrap().call(&Request::Status);
        thread.join().unwrap();
        answer
    }

    #[test]
    fn an_answer_comes_back() {
        let (_dir, path, thread) = server(|stream| {
            assert_eq!(read_request(stream), Call { version: VERSION, request: Request::Status });
            for byte in control::encode(&Answer::Subscribed).unwrap() {
                stream.write_all(&[byte]).unwrap();
            }
        });
        assert_eq!(Client::connect(&path).unwrap().call(&Request::Status).unwrap(), Answer::Subscribed);
        thread.join().unwrap();
    }

    #[test]
    fn broken_answers_are_told_apart() {
        assert!(matches!(call(|_| {}), Err(ClientError::Closed)));
        assert!(matches!(call(|stream| stream.write_all(&[0, 0]).unwrap()), Err(ClientError::Closed)));
        assert!(matches!(call(|stream| stream.write_all(b"\0\0\0\x09\"polic").unwrap()), Err(ClientError::Closed)));
        let too_long = call(|stream| stream.write_all(&u32::MAX.to_be_bytes()).unwrap());
        assert!(matches!(too_long, Err(ClientError::Frame(FrameError::TooLong { limit: MAX_ANSWER, .. }))));
        for nonsense in [&b"\0\0\0\x02{}"[..], b"\0\0\0\x00", b"\0\0\0\x03\xff\xfe\xfd", b"\0\0\0\x07\"other\""] {
            let answer = call(|stream| stream.write_all(nonsense).unwrap());
            assert!(matches!(answer, Err(ClientError::Frame(FrameError::Json(_)))), "{answer:?}");
        }
    }

    #[test]
    fn a_refusal_is_heard_though_the_request_was_not_read() {
        let refusal = Answer::Error(Failure { kind: FailureKind::Busy, message: "busy".into(), index: None });
        let sent = refusal.clone();
        let (_dir, path, thread) = server(move |stream| stream.write_all(&control::encode(&sent).unwrap()).unwrap());
        let mut client = Client::connect(&path).unwrap();
        thread.join().unwrap();
        assert_eq!(client.call(&Request::Status).unwrap(), refusal);
    }

    #[test]
    fn a_slow_daemon_is_not_waited_for() {
        for trickle in [false, true] {
            let (_dir, path, thread) = server(move |stream| {
                read_request(stream);
                // Bytes of a header that never ends; blocks in the end until the client hangs up.
                if trickle {
                    stream.write_all(&[0, 0]).unwrap();
                }
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            });
            let patience = Duration::from_millis(150);
            let mut client = Client::connect_within(&path, patience).unwrap();
            let begun = Instant::now();
            let error = client.call(&Request::Status).unwrap_err();
            assert!(matches!(error, ClientError::Timeout(..)), "{error:?}");
            assert!(begun.elapsed() >= patience);
            drop(client);
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_full_queue_of_a_stopped_daemon_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let address = UnixAddr::new(&path).unwrap();
        let listener = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        socket::bind(listener.as_raw_fd(), &address).unwrap();
        socket::listen(&listener, socket::Backlog::new(1).unwrap()).unwrap();
        let connect = || Client::connect_within(&path, Duration::from_millis(100));
        let mut waiting = Vec::new();
        let error = loop {
            match connect() {
                Ok(client) => waiting.push(client),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10);
        };
        assert!(matches!(error, ClientError::Timeout(..)), "{error:?}");
    }

    #[test]
    fn errors_say_what_would_help() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let error = Client::connect(&path).unwrap_err().to_string();
        assert!(error.contains("not running") && error.contains("--socket") && error.contains("APP_FW_SOCKET"));
        drop(UnixListener::bind(&path).unwrap());
        let error = Client::connect(&path).unwrap_err();
        assert!(matches!(error, ClientError::NotRunning(_)), "{error:?}");
        assert!(ClientError::Permission(path.clone()).to_string().contains("root"));
        let long = dir.path().join("x".repeat(200));
        assert!(matches!(Client::connect(&long), Err(ClientError::Io { .. })));
    }
}
