//! Names of network devices, as they were when a packet was queued.
//!
//! A packet comes with the indexes of its devices. A device can get another name, and an index another device. The probe
//! counts every such change, and notes the count with each packet: so a name that was asked for once is good for all packets
//! of which no change came between.

use std::collections::HashMap;
use std::os::fd::AsFd;

use ahash::RandomState;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use syscall_probe::Generations;

use crate::matcher::Device;
use crate::sys::socket::device_name;

/// Name of a network device, padded with zeros.
pub type Name = [u8; 16];

/// The devices that a packet passes, as iptables sees them at its hook.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Interfaces {
    /// It came in there. `None`: it was made here.
    pub input: Option<Name>,
    /// It leaves there. `None`: it stays here.
    pub output: Option<Name>,
    /// These may be others: a device was gone, or had got another name, when its name was asked for.
    pub uncertain: bool,
}

impl Interfaces {
    /// Where the packet came in.
    pub fn input(&self) -> Device<'_> {
        self.device(self.input.as_ref())
    }

    /// Where the packet leaves.
    pub fn output(&self) -> Device<'_> {
        self.device(self.output.as_ref())
    }

    fn device<'a>(&self, name: Option<&'a Name>) -> Device<'a> {
        // The kernel takes any bytes but a few for a name; no rule can name what is no text.
        let text = name.map(|name| std::str::from_utf8(name).map(|name| name.trim_end_matches('\0')));
        match text {
            Some(Ok(name)) => Device::Named(name),
            None if !self.uncertain => Device::None,
            _ => Device::Unknown,
        }
    }
}

/// Asks the kernel for names, and remembers them.
pub struct Devices {
    generations: Option<Generations>,
    known: HashMap<u32, Known, RandomState>,
    ask: Ask,
}

type Ask = Box<dyn Fn(u32) -> Option<Name> + Send>;

/// What a device was called.
#[derive(Clone, Copy)]
struct Known {
    /// `None`: it was not there.
    name: Option<Name>,
    /// [`Generations::links`] when it was first seen to be called so, and last.
    from: u64,
    until: u64,
}

/// Devices that are remembered. Beyond that all are forgotten.
const MAX_KNOWN: usize = 4096;
/// Devices that change under who asks are asked for so often.
const ATTEMPTS: usize = 4;

impl Devices {
    /// Those of the calling thread's network namespace.
    pub fn new(generations: Option<Generations>) -> Devices {
        let generations = generations.filter(|generations| generations.exact().links);
        let any = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
        let any = any.inspect_err(|error| tracing::warn!("no names of network devices: {error}")).ok();
        let ask = Box::new(move |index| device_name(any.as_ref()?.as_fd(), index).ok());
        Devices { generations, known: HashMap::default(), ask }
    }

    /// Names of the devices with these indexes; 0: there is none. `at`: [`Generations::links`] when the packet was queued, if that is
    /// known.
    pub fn interfaces(&mut self, input: u32, output: u32, at: Option<u64>) -> Interfaces {
        let mut uncertain = false;
        let [input, output] = [input, output].map(|index| {
            let name = if index == 0 { Ok(None) } else { self.name(index, at).map(Some) };
            uncertain |= name.is_err();
            name.unwrap_or_default()
        });
        Interfaces { input, output, uncertain }
    }

    /// An error: it is not certain.
    fn name(&mut self, index: u32, at: Option<u64>) -> Result<Name, ()> {
        let Some(generations) = &self.generations else { return (self.ask)(index).ok_or(()) };
        let generations = generations.clone();
        self.name_by(index, at, || generations.links())
    }

    fn name_by(&mut self, index: u32, at: Option<u64>, links: impl Fn() -> u64) -> Result<Name, ()> {
        let mut now = links();
        let at = at.unwrap_or(now);
        let held_then = |known: &Known| (known.from..=known.until).contains(&at);
        if let Some(known) = self.known.get(&index).filter(|known| held_then(known)) {
            return known.name.ok_or(());
        }
        for _ in 0..ATTEMPTS {
            let name = (self.ask)(index);
            let before = std::mem::replace(&mut now, links());
            if before != now {
                continue;
            }
            if self.known.len() >= MAX_KNOWN {
                self.known.clear();
            }
            let known = self.known.entry(index).or_insert(Known { name, from: now, until: now });
            // The same at both ends: other devices changed in between. (Or it had another name for a moment, in which nobody asked.)
            let from = if known.name == name { known.from } else { now };
            *known = Known { name, from, until: now };
            return name.filter(|_| held_then(known)).ok_or(());
        }
        Err(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static NAME: Cell<Option<Name>> = const { Cell::new(None) };
        static ASKED: Cell<u32> = const { Cell::new(0) };
        /// Changes that come while the kernel is asked.
        static LATE: Cell<u64> = const { Cell::new(0) };
    }

    const ONE: Name = *b"one\0\0\0\0\0\0\0\0\0\0\0\0\0";
    const TWO: Name = *b"two\0\0\0\0\0\0\0\0\0\0\0\0\0";

    fn play(index: u32) -> Option<Name> {
        assert_eq!(index, 7);
        ASKED.set(ASKED.get() + 1);
        NAME.get()
    }

    fn devices() -> Devices {
        Devices { generations: None, known: HashMap::default(), ask: Box::new(play) }
    }

    #[test]
    fn a_name_is_asked_for_once() {
        let mut devices = devices();
        NAME.set(Some(ONE));
        for at in [None, Some(5), Some(5)] {
            assert_eq!(devices.name_by(7, at, || 5), Ok(ONE));
        }
        assert_eq!(ASKED.get(), 1);
        // Something changed, and not this one; what was queued before is good too.
        for at in [Some(6), Some(5), Some(6), None] {
            assert_eq!(devices.name_by(7, at, || 6), Ok(ONE));
        }
        assert_eq!(ASKED.get(), 2);
    }

    #[test]
    fn another_name_is_that_of_later_packets() {
        let mut devices = devices();
        NAME.set(Some(ONE));
        assert_eq!(devices.name_by(7, Some(5), || 5), Ok(ONE));
        NAME.set(Some(TWO));
        assert_eq!(devices.name_by(7, Some(5), || 6), Ok(ONE), "it was queued before");
        assert_eq!(devices.name_by(7, Some(6), || 6), Ok(TWO));
        assert_eq!(devices.name_by(7, Some(5), || 6), Err(()), "nobody knows any more");
        NAME.set(None);
        assert_eq!(devices.name_by(7, Some(6), || 7), Ok(TWO));
        assert_eq!(devices.name_by(7, Some(7), || 7), Err(()), "it is gone");
        NAME.set(Some(ONE));
        assert_eq!(devices.name_by(7, None, || 8), Ok(ONE));
        // One that was seen later than its packet was queued.
        assert_eq!(self::devices().name_by(7, Some(7), || 8), Err(()));
    }

    #[test]
    fn what_changes_under_the_question_is_asked_again() {
        let mut devices = devices();
        NAME.set(Some(ONE));
        LATE.set(10);
        let links = || {
            LATE.set(LATE.get() + 1);
            LATE.get().min(12)
        };
        assert_eq!(devices.name_by(7, None, links), Err(()), "two changes since it was queued");
        assert_eq!(devices.name_by(7, Some(12), links), Ok(ONE));
        let restless = || {
            LATE.set(LATE.get() + 1);
            LATE.get()
        };
        assert_eq!(devices.name_by(7, None, restless), Err(()));
    }

    #[test]
    fn the_loopback_device_has_its_name() {
        let mut devices = Devices::new(None);
        let lo = *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let Interfaces { input, output, uncertain } = devices.interfaces(1, 0, None);
        assert_eq!((input, output, uncertain), (Some(lo), None, false));
        let nowhere = devices.interfaces(0, 0x7fff_fff0, None);
        assert_eq!(nowhere, Interfaces { uncertain: true, ..Interfaces::default() });
    }
}
