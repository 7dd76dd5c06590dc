//! The id of a container by its name: dockerd is asked, over its own socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// Where dockerd listens unless `DOCKER_HOST` says otherwise.
const SOCKET: &str = "/var/run/docker.sock";
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than dockerd has ever to say of a container, bytes.
const LONGEST: u64 = 4 << 20;

/// Why a container is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    #[error("{0:?} is neither a container's id (12 to 64 hexadecimal digits) nor a name")]
    NoName(String),
    #[error("DOCKER_HOST={0}: only unix://PATH can be asked for a container's name; its id works without")]
    Elsewhere(String),
    #[error("cannot ask dockerd on {} for the container {name}: {source} (its id works without dockerd)", socket.display())]
    Io { name: String, socket: PathBuf, source: io::Error },
    #[error("dockerd knows no container {0}")]
    Unknown(String),
    #[error("dockerd's answer makes no sense: {0}")]
    Nonsense(String),
}

/// The id of the container of this name.
pub(super) fn id_of(name: &str) -> Result<String, ContainerError> {
    let socket = match std::env::var("DOCKER_HOST") {
        Ok(host) if !host.is_empty() => match host.strip_prefix("unix://") {
            Some(path) => path.into(),
            None => return Err(ContainerError::Elsewhere(host)),
        },
        _ => PathBuf::from(SOCKET),
    };
    ask(&socket, name)
}

fn ask(socket: &Path, name: &str) -> Result<String, ContainerError> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.is_empty() || name.len() > 255 || !name.chars().all(is_name) {
        return Err(ContainerError::NoName(name.into()));
    }
    let talk = || -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // Version 1.0: the answer ends with the connection, and comes in one piece.
        let request = format!("GET /containers/{name}/json HTTP/1.0\r\nHost: docker\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(LONGEST).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = talk().map_err(|source| ContainerError::Io { name: name.into(), socket: socket.into(), source })?;
    read(&answer, name)
}

fn read(answer: &[u8], name: &str) -> Result<String, ContainerError> {
    #[derive(Deserialize)]
    struct Container {
        #[serde(rename = "Id")]
        id: String,
    }
    let nonsense = |what: &str| ContainerError::Nonsense(what.into());
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(|| nonsense("no header"))?;
    let header = String::from_utf8_lossy(&answer[..end]);
    let status = header.lines().next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    match status {
        "200" => {}
        "404" => return Err(ContainerError::Unknown(name.into())),
        other => return Err(nonsense(&format!("status {other:?}"))),
    }
    let container: Container =
        serde_json::from_slice(&answer[end + 4..]).map_err(|error| nonsense(&error.to_string()))?;
    Ok(container.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn dockerd_is_asked_for_the_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let id = "4f66ad9a0b2e".repeat(5);
        let body = format!("{{\"Id\":\"{id}\",\"Name\":\"/web\"}}");
        let server = std::thread::spawn(move || {
            for status in ["200 OK", "404 Not Found"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 128];
                let length = stream.read(&mut request).unwrap();
                assert!(request[..length].starts_with(b"GET /containers/web/json HTTP/1.0\r\n"));
                write!(stream, "HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n{body}").unwrap();
            }
        });
        assert_eq!(ask(&path, "web").unwrap(), id);
        assert!(matches!(ask(&path, "web"), Err(ContainerError::Unknown(_))));
        server.join().unwrap();
        assert!(matches!(ask(&path, "../images"), Err(ContainerError::NoName(_))));
        let error = ask(&dir.path().join("none"), "web").unwrap_err().to_string();
        assert!(error.contains("its id works"), "{error}");
    }

    proptest! {
        #[test]
        fn no_answer_panics(answer in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(&[b"HTTP/1.0 200 OK\r\n\r\n", &answer[..]].concat(), "x");
            let _ = read(&answer, "x");
        }
    }
}
