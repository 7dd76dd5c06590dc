//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// What the arguments say.
#[derive(Debug)]
pub struct Options {
    /// The first argument: what to be.
    pub role: String,
    operands: Vec<String>,
    /// `--bind ADDR:PORT`
    pub bind: Option<SocketAddr>,
    /// `--to ADDR:PORT`: where an inherited socket sends.
    pub to: Option<SocketAddr>,
    /// `--connect`: a datagram socket is connected.
    pub connect: bool,
    /// `--later`: a stream socket connects at the step `connect`.
    pub later: bool,
    /// `--reuseport`
    pub reuseport: bool,
    /// `--device NAME`: SO_BINDTODEVICE.
    pub device: Option<String>,
    /// `--tos N`: IP_TOS, by which its packets are known.
    pub tos: Option<u8>,
    /// `--v4-on-v6`: an IPv6 socket that carries IPv4.
    pub v4_on_v6: bool,
    /// `--passed`: the inherited descriptor is a Unix socket over which the real one comes.
    pub passed: bool,
    /// `--judged`: stays until every packet sent was judged, before it lets go of a socket.
    pub judged: bool,
    /// `--fire`: an heir sends once and ends.
    pub fire: bool,
    /// Whether to say "ready"; not after an exec, whose answer says it.
    pub ready: bool,
    /// `--timeout MS`
    pub timeout: Duration,
}

impl Options {
    /// Reads the arguments behind the program's name.
    ///
    /// # Errors
    /// An unknown option, or a value that is missing or wrong.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            role: arguments.next().context("what should I be? (see the head of main.rs)")?,
            operands: Vec::new(),
            bind: None,
            to: None,
            connect: false,
            later: false,
            reuseport: false,
            device: None,
            tos: None,
            v4_on_v6: false,
            passed: false,
            judged: false,
            fire: false,
            ready: true,
            timeout: Duration::from_secs(2),
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} wants a value"));
            match argument.as_str() {
                "--bind" => options.bind = Some(value()?.parse().context("--bind")?),
                "--to" => options.to = Some(value()?.parse().context("--to")?),
                "--timeout" => options.timeout = Duration::from_millis(value()?.parse().context("--timeout")?),
                "--device" => options.device = Some(value()?),
                "--tos" => options.tos = Some(value()?.parse().context("--tos")?),
                "--connect" => options.connect = true,
                "--later" => options.later = true,
                "--reuseport" => options.reuseport = true,
                "--v4-on-v6" => options.v4_on_v6 = true,
                "--passed" => options.passed = true,
                "--judged" => options.judged = true,
                "--fire" => options.fire = true,
                "--quiet" => options.ready = false,
                option if option.starts_with("--") => bail!("unknown option {option}"),
                _ => options.operands.push(argument),
            }
        }
        Ok(options)
    }

    /// The operand with this index.
    ///
    /// # Errors
    /// There are fewer.
    pub fn operand(&self, index: usize) -> Result<&str> {
        self.operands.get(index).map(String::as_str).with_context(|| format!("{} wants more operands", self.role))
    }

    /// The first operand as ADDR:PORT, mapped into IPv6 with `--v4-on-v6`.
    ///
    /// # Errors
    /// It is none.
    pub fn address(&self) -> Result<SocketAddr> {
        let address: SocketAddr = self.operand(0)?.parse().context("ADDR:PORT")?;
        Ok(self.mapped(address))
    }

    /// The first operand as an address without a port.
    ///
    /// # Errors
    /// It is none.
    pub fn host(&self) -> Result<SocketAddr> {
        let host: IpAddr = self.operand(0)?.parse().context("ADDR")?;
        Ok(self.mapped((host, 0).into()))
    }

    fn mapped(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(v4) if self.v4_on_v6 => (v4.to_ipv6_mapped(), address.port()).into(),
            _ => address,
        }
    }
}
