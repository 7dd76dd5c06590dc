//! What match options take as their values.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::lists::{Element, Label};
use crate::set::SetKind;
use crate::{Protocol, Selector};

/// A network, as `ADDR[/LEN]`. Bits beyond the length are cleared, as iptables does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Net(pub IpNet);

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Net, String> {
        let net = match text.parse::<IpNet>() {
            Ok(net) => Ok(net),
            Err(_) => text.parse::<std::net::IpAddr>().map(IpNet::from),
        };
        net.map(|net| Net(net.trunc()))
            .map_err(|_| format!("{text:?} is no address or prefix: 192.0.2.0/24, 2001:db8::/32 or a single address"))
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Element for Net {
    const SETS: Option<SetKind> = Some(SetKind::Addresses);
}

impl Element for Protocol {}

/// `80` or `8000:8080`, host byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port, not below the first.
    pub last: u16,
}

impl PortRange {
    /// Whether `port` is one of them.
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl From<u16> for PortRange {
    fn from(port: u16) -> PortRange {
        PortRange { first: port, last: port }
    }
}

/// Reads `N` or `N:M`; either end of a range may be missing.
fn range<T: FromStr + PartialOrd + Copy>(text: &str, separator: char, least: T, most: T) -> Option<(T, T)> {
    let end = |text: &str, otherwise: T| if text.is_empty() { Some(otherwise) } else { text.parse().ok() };
    match text.split_once(separator) {
        None => text.parse().ok().map(|one| (one, one)),
        Some(("", "")) => None,
        Some((first, last)) => Some((end(first, least)?, end(last, most)?)).filter(|(first, last)| first <= last),
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<PortRange, String> {
        range(text, ':', 0, u16::MAX)
            .map(|(first, last)| PortRange { first, last })
            .ok_or_else(|| format!("{text:?} is no port: a number from 0 to 65535, or a range such as 8000:8080"))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last > self.first { write!(f, ":{}", self.last) } else { Ok(()) }
    }
}

impl Element for PortRange {
    const SETS: Option<SetKind> = Some(SetKind::Ports);
}

/// `1000` or `1000-1999`: user or group ids, as they are in the initial user namespace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IdRange {
    /// The first id.
    pub first: u32,
    /// The last id, not below the first.
    pub last: u32,
}

impl IdRange {
    /// Whether `id` is one of them.
    pub fn contains(&self, id: u32) -> bool {
        (self.first..=self.last).contains(&id)
    }
}

impl From<u32> for IdRange {
    fn from(id: u32) -> IdRange {
        IdRange { first: id, last: id }
    }
}

impl FromStr for IdRange {
    type Err = String;

    fn from_str(text: &str) -> Result<IdRange, String> {
        range(text, '-', 0, u32::MAX)
            .map(|(first, last)| IdRange { first, last })
            .ok_or_else(|| format!("{text:?} is no id: a number, or a range such as 1000-1999"))
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last > self.first { write!(f, "-{}", self.last) } else { Ok(()) }
    }
}

impl Element for IdRange {}

/// A network interface, or with a `+` at the end all whose names begin so, as iptables has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Interface(String);

/// `IFNAMSIZ` of linux/if.h, without the final zero.
const LONGEST_INTERFACE: usize = 15;

impl Interface {
    /// Whether the interface of this name is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('+') {
            Some(beginning) => name.starts_with(beginning),
            None => self.0 == name,
        }
    }

    /// The one name that is meant, if it is one.
    pub fn exact(&self) -> Option<&str> {
        (!self.0.ends_with('+')).then_some(self.0.as_str())
    }
}

impl FromStr for Interface {
    type Err = String;

    fn from_str(text: &str) -> Result<Interface, String> {
        let is_name = text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'!'));
        if !text.is_empty() && text.strip_suffix('+').unwrap_or(text).len() <= LONGEST_INTERFACE && is_name {
            Ok(Interface(text.into()))
        } else {
            Err(format!(
                "{text:?} is no interface: a name of at most 15 characters such as eth0, or eth+ for all that begin so"
            ))
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Element for Interface {
    const ALONE: bool = true;
}

impl Element for Selector {
    const ALONE: bool = true;
}

/// A pattern for paths: `*` and `?` stand for anything but a slash, `**` for anything, `[a-z]` and `{one,other}` for a choice.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Glob(String);

/// Bytes of the longest path (`PATH_MAX` of linux/limits.h).
pub(super) const LONGEST_PATH: usize = 4096;

impl Glob {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Ready to match.
    ///
    /// # Errors
    /// None for one that was read.
    pub fn compile(&self) -> Result<globset::Glob, globset::Error> {
        globset::GlobBuilder::new(&self.0).literal_separator(true).build()
    }
}

impl FromStr for Glob {
    type Err = String;

    fn from_str(text: &str) -> Result<Glob, String> {
        if !text.starts_with(['/', '*']) || text.len() > LONGEST_PATH || text.contains(char::is_control) {
            return Err(format!("{text:?} is no pattern for an absolute path: /usr/bin/curl, /opt/**, **/libssl.so*"));
        }
        let glob = Glob(text.into());
        match glob.compile() {
            Ok(_) => Ok(glob),
            Err(error) => Err(format!("{text:?} is no pattern: {}", error.kind())),
        }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Element for Glob {
    const ALONE: bool = true;
}

/// A control group by its path in the cgroup hierarchy, and all below it: `/system.slice/nginx.service`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// As it was written, without slashes at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `path` is it or below it.
    pub fn holds(&self, path: &str) -> bool {
        path.strip_prefix(self.0.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for CgroupPath {
    type Err = String;

    fn from_str(text: &str) -> Result<CgroupPath, String> {
        let parts_are_names = !text.split('/').any(|part| matches!(part, "." | ".."));
        if text.starts_with('/') && text.len() <= LONGEST_PATH && parts_are_names && !text.contains(char::is_control) {
            Ok(CgroupPath(text.trim_end_matches('/').into()))
        } else {
            Err(format!("{text:?} is no path of a control group: /system.slice/nginx.service"))
        }
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

impl Element for CgroupPath {
    const ALONE: bool = true;
}

/// A unit of systemd: `nginx.service`. A name without a known ending is a service, as systemctl has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Unit(String);

impl Unit {
    /// With its ending.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a process in this control group belongs to it: systemd gives each unit a group of its name.
    pub fn holds(&self, cgroup: &str) -> bool {
        cgroup.split('/').any(|part| part == self.0)
    }
}

impl FromStr for Unit {
    type Err = String;

    fn from_str(text: &str) -> Result<Unit, String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if text.is_empty() || text.len() > 255 || !text.chars().all(is_name) {
            return Err(format!("{text:?} is no unit of systemd: nginx.service, user-1000.slice"));
        }
        // systemd.unit(5). Processes belong to the first six.
        let without = [".target", ".timer", ".path", ".device", ".automount"];
        if without.iter().any(|ending| text.ends_with(ending)) {
            return Err(format!("{text:?} has no processes: a service, scope, slice, socket, mount or swap has"));
        }
        let with = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];
        let has_ending = with.iter().any(|ending| text.ends_with(ending));
        Ok(Unit(if has_ending { text.into() } else { format!("{text}.service") }))
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Element for Unit {}

/// A container by its id, or the beginning of it: hexadecimal digits as `docker ps` shows them, at least 12 of the 64.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ContainerId(String);

const CONTAINER_ID: std::ops::RangeInclusive<usize> = 12..=64;

impl ContainerId {
    /// Lower-case hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a process in this control group belongs to it. Docker, containerd, CRI-O and podman all give a container a
    /// group whose name holds its id: `docker-ID.scope`, `ID`, `cri-containerd-ID.scope`.
    pub fn holds(&self, cgroup: &str) -> bool {
        let digits = |part: &str| {
            let is_id = |word: &&str| word.len() == *CONTAINER_ID.end() && word.bytes().all(|b| b.is_ascii_hexdigit());
            part.split(['-', '.', ':', '_']).find(is_id).is_some_and(|id| id.starts_with(&self.0))
        };
        cgroup.split('/').any(digits)
    }
}

impl FromStr for ContainerId {
    type Err = String;

    fn from_str(text: &str) -> Result<ContainerId, String> {
        if CONTAINER_ID.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(ContainerId(text.to_ascii_lowercase()))
        } else {
            Err(format!("{text:?} is no container's id: 12 to 64 hexadecimal digits"))
        }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Whether anybody holds a packet's socket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum OwnerClass {
    /// Processes do, and each is known.
    Owned,
    /// No process does: made by the kernel, or passing through.
    Unowned,
    /// Some process does or may, and which one is not known.
    Undetermined,
}

impl FromStr for OwnerClass {
    type Err = String;

    fn from_str(text: &str) -> Result<OwnerClass, String> {
        match text {
            "owned" => Ok(OwnerClass::Owned),
            "unowned" => Ok(OwnerClass::Unowned),
            "undetermined" => Ok(OwnerClass::Undetermined),
            _ => Err(format!("{text:?} is not one of owned, unowned, undetermined")),
        }
    }
}

impl fmt::Display for OwnerClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            OwnerClass::Owned => "owned",
            OwnerClass::Unowned => "unowned",
            OwnerClass::Undetermined => "undetermined",
        })
    }
}

/// `10/s:20`: so many packets in a unit of time, and so many at once after a pause.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rate {
    /// Packets in a unit of time, at least 1.
    pub packets: u32,
    /// The unit of time.
    pub per: Per,
    /// Packets at once, at least 1.
    pub burst: u32,
}

/// A unit of time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Per {
    /// `s`.
    Second,
    /// `m`.
    Minute,
    /// `h`.
    Hour,
    /// `d`.
    Day,
}

impl Per {
    const ALL: [(Per, &'static str, u64); 4] =
        [(Per::Second, "second", 1), (Per::Minute, "minute", 60), (Per::Hour, "hour", 3600), (Per::Day, "day", 86_400)];

    /// Its length.
    pub fn seconds(self) -> u64 {
        Per::ALL.iter().find(|(per, ..)| *per == self).map_or(1, |(.., seconds)| *seconds)
    }
}

impl Rate {
    /// As in iptables.
    pub const DEFAULT_BURST: u32 = 5;

    /// Nanoseconds from one packet to the next when they come evenly.
    pub fn interval(&self) -> u64 {
        self.per.seconds() * 1_000_000_000 / u64::from(self.packets)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let read = || {
            let (rate, burst) = match text.split_once(':') {
                Some((rate, burst)) => (rate, burst.parse().ok()?),
                None => (text, Rate::DEFAULT_BURST),
            };
            let (packets, unit) = rate.split_once('/')?;
            let is_meant = |name: &str| !unit.is_empty() && name.starts_with(unit);
            let (per, ..) = Per::ALL.iter().find(|(_, name, _)| is_meant(name))?;
            let packets = packets.parse().ok()?;
            (packets > 0 && burst > 0).then_some(Rate { packets, per: *per, burst })
        };
        read().ok_or_else(|| format!("{text:?} is no rate: 10/s, 3/minute, or 10/s:20 for 20 at once after a pause"))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = Per::ALL.iter().find(|(per, ..)| *per == self.per).map_or("s", |(_, name, _)| &name[..1]);
        write!(f, "{}/{unit}", self.packets)?;
        if self.burst == Rate::DEFAULT_BURST { Ok(()) } else { write!(f, ":{}", self.burst) }
    }
}

/// `mon-fri@08:00-18:00`: part of a day, on some days of the week, by the machine's local time; `08:00-18:00/utc` by UTC.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TimeWindow {
    /// On which days it begins: bit 0 is Monday. Not empty.
    pub days: u8,
    /// When it begins, minutes after midnight.
    pub from: u16,
    /// When it is over, minutes after midnight, up to 1440. Not after `from`: on the next day.
    pub to: u16,
    /// By UTC.
    pub utc: bool,
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const EVERY_DAY: u8 = 0x7f;
/// Minutes of a day.
const DAY: u16 = 24 * 60;

impl TimeWindow {
    /// Whether it is open on a weekday (Monday is 0) at a minute after midnight.
    pub fn is_open(&self, weekday: u8, minute: u16) -> bool {
        let begins_on = |day: u8| self.days & 1 << (day % 7) != 0;
        if self.from < self.to {
            return begins_on(weekday) && (self.from..self.to).contains(&minute);
        }
        begins_on(weekday) && minute >= self.from || begins_on(weekday + 6) && minute < self.to
    }
}

impl FromStr for TimeWindow {
    type Err = String;

    fn from_str(text: &str) -> Result<TimeWindow, String> {
        let minute = |text: &str| -> Option<u16> {
            let (hours, minutes) = text.split_once(':')?;
            let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
            (minutes < 60 && hours * 60 + minutes <= DAY).then(|| hours * 60 + minutes).filter(|_| hours <= 24)
        };
        let day = |text: &str| DAYS.iter().position(|day| text.eq_ignore_ascii_case(day));
        let days = |text: &str| {
            text.split(',').try_fold(0u8, |days, part| {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let (first, last) = (day(first)?, day(last)?);
                let span = if first <= last { last - first } else { last + 7 - first };
                Some((0..=span).fold(days, |days, step| days | 1 << ((first + step) % 7)))
            })
        };
        let read = || {
            let (rest, utc) = match text.strip_suffix("/utc") {
                Some(rest) => (rest, true),
                None => (text, false),
            };
            let (on, hours) = match rest.split_once('@') {
                Some((on, hours)) => (days(on)?, Some(hours)),
                None if rest.contains(':') => (EVERY_DAY, Some(rest)),
                None => (days(rest)?, None),
            };
            let (from, to) = match hours {
                Some(hours) => hours.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)))?,
                None => (0, DAY),
            };
            (from < DAY).then_some(TimeWindow { days: on, from, to, utc })
        };
        read().ok_or_else(|| {
            format!("{text:?} is no time of the week: 08:00-18:00, mon-fri@22:00-06:00, sat,sun, or 08:00-18:00/utc")
        })
    }
}

impl fmt::Display for TimeWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != EVERY_DAY {
            let days: Vec<_> = (0..7).filter(|day| self.days & 1 << day != 0).map(|day| DAYS[day]).collect();
            write!(f, "{}@", days.join(","))?;
        }
        let Self { from, to, .. } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)?;
        if self.utc { f.write_str("/utc") } else { Ok(()) }
    }
}

/// Written and read as text.
macro_rules! as_text {
    ($($name:ty),+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                super::from_text(deserializer)
            }
        }
    )+};
}

as_text!(Net, PortRange, Label, OwnerClass, Rate, TimeWindow);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn round<T: FromStr<Err: fmt::Debug> + fmt::Display>(text: &str) -> String {
        text.parse::<T>().unwrap().to_string()
    }

    #[test]
    fn networks_are_truncated_and_addresses_are_whole() {
        assert_eq!(round::<Net>("10.1.2.3/8"), "10.0.0.0/8");
        assert_eq!(round::<Net>("10.1.2.3"), "10.1.2.3/32");
        assert_eq!(round::<Net>("2001:db8::1"), "2001:db8::1/128");
        for bad in ["", "10.1.2", "10.1.2.3/33", "::/129", "10.0.0.0/", "a.b"] {
            assert!(bad.parse::<Net>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges() {
        assert_eq!(round::<PortRange>("80"), "80");
        assert_eq!(round::<PortRange>("80:80"), "80");
        assert_eq!("1024:".parse(), Ok(PortRange { first: 1024, last: 65535 }));
        assert_eq!(":1023".parse(), Ok(PortRange { first: 0, last: 1023 }));
        for bad in ["", ":", "2:1", "65536", "1:2:3", "-1", "http"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
        assert_eq!(round::<IdRange>("1000-1999"), "1000-1999");
        assert!("root".parse::<IdRange>().is_err());
    }

    #[test]
    fn interfaces() {
        let matches = |pattern: &str, name| pattern.parse::<Interface>().unwrap().matches(name);
        assert!(matches("eth0", "eth0") && !matches("eth0", "eth01") && matches("eth+", "eth01") && matches("+", "lo"));
        for bad in ["", "a b", "a/b", "abcdefghijklmnop"] {
            assert!(bad.parse::<Interface>().is_err(), "{bad}");
        }
    }

    #[test]
    fn control_groups_units_and_containers() {
        let group: CgroupPath = "/system.slice/a.service/".parse().unwrap();
        assert!(group.holds("/system.slice/a.service") && group.holds("/system.slice/a.service/x"));
        assert!(!group.holds("/system.slice/a.services") && !group.holds("/system.slice"));
        assert!("/".parse::<CgroupPath>().unwrap().holds("/anything"));
        assert_eq!(round::<CgroupPath>("/"), "/");
        assert!("/a/../b".parse::<CgroupPath>().is_err());
        assert!("nginx".parse::<Unit>().unwrap().holds("/system.slice/nginx.service"));
        assert_eq!(round::<Unit>("user-1000.slice"), "user-1000.slice");
        let id = "0123456789abcdef".repeat(4);
        let container: ContainerId = id[..12].parse().unwrap();
        for group in [
            format!("/docker/{id}"),
            format!("/system.slice/docker-{id}.scope"),
            format!("/a/cri-containerd-{id}.scope/x"),
        ] {
            assert!(container.holds(&group), "{group}");
        }
        assert!(!container.holds(&format!("/docker/f{}", &id[..63])));
        assert!(!container.holds(&format!("/docker/{}", &id[..12])));
        assert!("0123".parse::<ContainerId>().is_err());
    }

    #[test]
    fn rates() {
        assert_eq!("10/s".parse(), Ok(Rate { packets: 10, per: Per::Second, burst: 5 }));
        assert_eq!("3/min:7".parse(), Ok(Rate { packets: 3, per: Per::Minute, burst: 7 }));
        assert_eq!(round::<Rate>("3/minute:7"), "3/m:7");
        assert_eq!("3/m".parse::<Rate>().unwrap().interval(), 20_000_000_000);
        for bad in ["", "10", "0/s", "10/x", "10/s:0", "/s", "10/"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times_of_the_week() {
        let window = |text: &str| text.parse::<TimeWindow>().unwrap();
        let office = window("mon-fri@08:00-18:00");
        assert_eq!(office.to_string(), "mon,tue,wed,thu,fri@08:00-18:00");
        assert!(office.is_open(0, 480) && !office.is_open(0, 1080) && !office.is_open(5, 600));
        let night = window("fri@22:00-06:00");
        assert!(night.is_open(4, 1400) && night.is_open(5, 100) && !night.is_open(4, 100) && !night.is_open(5, 1400));
        assert_eq!(window("sat,sun").to_string(), "sat,sun@00:00-24:00");
        assert!(
            window("sun-mon").is_open(6, 0) && window("sun-mon").is_open(0, 1439) && !window("sun-mon").is_open(1, 0)
        );
        assert_eq!(round::<TimeWindow>("00:00-24:00/utc"), "00:00-24:00/utc");
        for bad in ["", "8-18", "25:00-26:00", "24:00-06:00", "08:60-09:00", "fry", "mon@", "08:00"] {
            assert!(bad.parse::<TimeWindow>().is_err(), "{bad}");
        }
    }

    #[test]
    fn globs() {
        let matches =
            |glob: &str, path: &str| glob.parse::<Glob>().unwrap().compile().unwrap().compile_matcher().is_match(path);
        assert!(matches("/usr/bin/*", "/usr/bin/curl") && !matches("/usr/bin/*", "/usr/bin/a/b"));
        assert!(matches("/opt/**", "/opt/a/b") && matches("**/libssl.so*", "/usr/lib/libssl.so.3"));
        for bad in ["", "curl", "/a[", "/a\n"] {
            assert!(bad.parse::<Glob>().is_err(), "{bad}");
        }
    }
}
