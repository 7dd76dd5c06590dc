//! Small servers on threads that have entered a namespace.
//!
//! Threads, not processes: a socket stays in the namespace in which it was opened.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};

use crate::netns::Namespace;

/// What the web server answers.
pub const PAGE: &str = "hello from the peer\n";

/// Longest request head the web server reads, bytes.
const MAX_REQUEST: usize = 64 * 1024;
/// A client that says nothing for so long is dropped.
const SILENCE: Duration = Duration::from_secs(60);

/// A running server. Dropping it closes its sockets and ends its threads.
#[derive(Debug)]
pub struct Server {
    port: u16,
    served: Arc<AtomicU64>,
    /// Closing this end tells the thread to stop.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

/// What a TCP server does with a connection; what it returns is added to [`Server::served`].
type Serve = fn(&mut TcpStream) -> io::Result<u64>;

impl Server {
    /// A web server on TCP `port`, IPv4 and IPv6, that answers every request with [`PAGE`].
    ///
    /// # Errors
    /// The port cannot be bound in that namespace.
    pub fn http(namespace: &Namespace, port: u16) -> Result<Self> {
        Self::tcp(namespace, port, answer_http)
    }

    /// A TCP server that sends back what it gets.
    ///
    /// # Errors
    /// The port cannot be bound in that namespace.
    pub fn tcp_echo(namespace: &Namespace, port: u16) -> Result<Self> {
        Self::tcp(namespace, port, |stream| {
            let mut reader = stream.try_clone()?;
            io::copy(&mut reader, stream)?;
            Ok(1)
        })
    }

    /// A UDP server that counts datagrams and does not answer.
    ///
    /// # Errors
    /// The port cannot be bound in that namespace.
    pub fn udp_sink(namespace: &Namespace, port: u16) -> Result<Self> {
        Self::udp(namespace, port, |_| None)
    }

    /// A UDP server that sends every datagram back.
    ///
    /// # Errors
    /// The port cannot be bound in that namespace.
    pub fn udp_echo(namespace: &Namespace, port: u16) -> Result<Self> {
        Self::udp(namespace, port, |datagram| Some(datagram.to_vec()))
    }

    /// A name server on UDP port 53 to which every name has the IPv4 address `address` and nothing else.
    ///
    /// # Errors
    /// The port cannot be bound in that namespace.
    pub fn names(namespace: &Namespace, address: Ipv4Addr) -> Result<Self> {
        Self::udp(namespace, 53, move |query| answer_name(query, address))
    }

    /// The port it listens on (the one chosen, if 0 was asked for).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Requests answered, connections echoed to their end, or datagrams received.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }

    fn tcp(namespace: &Namespace, port: u16, serve: Serve) -> Result<Self> {
        // The unspecified IPv6 address takes IPv4 too (bindv6only is 0 in a new namespace).
        let listener = namespace
            .enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("binding"))
            .with_context(|| format!("a TCP server on port {port} in {}", namespace.name()))?;
        let port = listener.local_addr()?.port();
        Self::start(port, move |stop, served| serve_tcp(&listener, stop, served, serve))
    }

    fn udp(
        namespace: &Namespace,
        port: u16,
        answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> Result<Self> {
        let socket = namespace
            .enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).context("binding"))
            .with_context(|| format!("a UDP server on port {port} in {}", namespace.name()))?;
        let port = socket.local_addr()?.port();
        Self::start(port, move |stop, served| serve_udp(&socket, stop, served, answer))
    }

    fn start(port: u16, work: impl FnOnce(BorrowedFd<'_>, &Arc<AtomicU64>) + Send + 'static) -> Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let served = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&served);
        let thread =
            thread::Builder::new().name(format!("server :{port}")).spawn(move || work(stopped.as_fd(), &counted))?;
        Ok(Self { port, served, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by itself.
            let _ = thread.join();
        }
    }
}

/// Waits until `socket` is readable (true) or the server is told to stop (false).
fn next(socket: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> bool {
    loop {
        let mut fds = [PollFd::from_borrowed_fd(stop, PollFlags::IN), PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => return fds[0].revents().is_empty(),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn serve_tcp(listener: &TcpListener, stop: BorrowedFd<'_>, served: &Arc<AtomicU64>, serve: Serve) {
    let mut connections: Vec<(TcpStream, JoinHandle<()>)> = Vec::new();
    while next(listener.as_fd(), stop) {
        let Ok((mut stream, _)) = listener.accept() else {
            continue; // given up by the client in the meantime
        };
        connections.retain(|(_, thread)| !thread.is_finished());
        let Ok(handle) = stream.try_clone() else {
            continue;
        };
        let counted = Arc::clone(served);
        connections.push((
            handle,
            thread::spawn(move || {
                let done = stream.set_read_timeout(Some(SILENCE)).and_then(|()| serve(&mut stream));
                // A broken connection is what many tests are about; it just does not count.
                counted.fetch_add(done.unwrap_or(0), Ordering::SeqCst);
                // The clone kept for stopping would hold the connection open.
                let _ = stream.shutdown(Shutdown::Both);
            }),
        ));
    }
    for (stream, thread) in connections {
        let _ = stream.shutdown(Shutdown::Both);
        let _ = thread.join();
    }
}

fn serve_udp(
    socket: &UdpSocket,
    stop: BorrowedFd<'_>,
    served: &Arc<AtomicU64>,
    answer: impl Fn(&[u8]) -> Option<Vec<u8>>,
) {
    let mut buffer = [0; 65536];
    while next(socket.as_fd(), stop) {
        // An error here is the ICMP answer to an earlier datagram.
        let Ok((length, sender)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        served.fetch_add(1, Ordering::SeqCst);
        if let Some(answer) = answer(&buffer[..length]) {
            let _ = socket.send_to(&answer, sender);
        }
    }
}

/// The answer to a query, RFC 1035 section 4; none to what is no query.
fn answer_name(query: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    // Type A, class IN.
    const ADDRESS: [u8; 4] = [0, 1, 0, 1];
    // A name is a row of labels that ends with an empty one; type and class follow.
    let mut end = HEADER;
    while *query.get(end)? != 0 {
        end += 1 + usize::from(query[end]);
    }
    let question = query.get(HEADER..end + 5)?;
    let has_address = question.ends_with(&ADDRESS);
    // Response, recursion desired and available; one question, and an answer if there is one.
    let mut answer = query.get(..2)?.to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(has_address), 0, 0, 0, 0]);
    answer.extend(question);
    if has_address {
        // The name of the question; no time to live; four bytes.
        answer.extend([0xc0, HEADER as u8]);
        answer.extend(ADDRESS);
        answer.extend([0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

fn answer_http(stream: &mut TcpStream) -> io::Result<u64> {
    let mut request = Vec::new();
    let mut part = [0; 4096];
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        let length = stream.read(&mut part)?;
        if length == 0 || request.len() > MAX_REQUEST {
            return Ok(0);
        }
        request.extend_from_slice(&part[..length]);
    }
    let length = PAGE.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{PAGE}"
    )?;
    Ok(1)
}
