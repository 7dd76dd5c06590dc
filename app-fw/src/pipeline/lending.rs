//! Which answers the kernel may use without asking.

use shared::{Chain, Ports, Protocol, Verdict};
use syscall_probe::{Basis, CachedChain, CachedFlow, CachedVerdict};

use super::{Answer, Arrived, Pipeline, Place, Tell};
use crate::image::Process;
use crate::packet::About;

impl Pipeline {
    /// Lets the kernel use an answer for the next packets of its flow, if all that it depends on is seen there.
    ///
    /// The kernel compares what [`Answer::check`] compares, and finds a flow by what [`super::FlowKey`] has.
    pub fn lend(&self, arrived: &Arrived, answer: &Answer, tell: Tell) {
        let Some(kernel) = &self.world.kernel else { return };
        let verdict = match answer.judgement.verdict {
            // Whoever is to be told of each packet has to see it.
            _ if tell.of(&answer.judgement) || !answer.may_be_kept() => return,
            Verdict::Accept => CachedVerdict::Accept,
            Verdict::Drop => CachedVerdict::Drop,
            Verdict::Reject => return,
        };
        let Some(flow) = self.cached_flow(arrived) else { return };
        let Some(basis) = self.cached_basis(arrived, answer) else { return };
        let Some(stamp) = kernel.cache().stamp(flow, basis) else { return };
        if answer.check(self.basis(), self.world.generations.as_ref()).is_ok() {
            kernel.put(&stamp, verdict, answer.judgement.rule.as_ref().map(|rule| &rule.state));
        }
    }

    fn cached_flow(&self, arrived: &Arrived) -> Option<CachedFlow> {
        let packet = arrived.packet.as_ref().ok().filter(|packet| packet.about == About::Itself)?;
        let chain = match self.world.chain {
            Chain::Output => CachedChain::Output,
            Chain::Input => CachedChain::Input,
            Chain::Forward => return None,
        };
        let (Ports::Known { source, destination }, Place::Here(device)) = (packet.flow.ports, arrived.place) else {
            return None;
        };
        matches!(packet.flow.protocol, Protocol::TCP | Protocol::UDP).then_some(CachedFlow {
            chain,
            protocol: packet.flow.protocol.0,
            source: packet.flow.source,
            source_port: source,
            destination: packet.flow.destination,
            destination_port: destination,
            device,
        })
    }

    fn cached_basis(&self, arrived: &Arrived, answer: &Answer) -> Option<Basis> {
        let Some(identity) = &answer.identity else { return Some(Basis::Flow) };
        let ([holder], None) = (&identity.owners.holders[..], identity.owners.undetermined) else { return None };
        let packet = arrived.packet.as_ref().ok()?;
        let tgid = holder.process.tgid;
        match (self.world.chain, packet.flow.protocol) {
            (Chain::Input, _) => Some(Basis::Holder { tgid }),
            // The kernel tells TCP's own segments by the checksum that is left to the device.
            (_, Protocol::TCP) => (self.world.as_made && arrived.checksum_missing).then_some(Basis::Holder { tgid }),
            _ => {
                let sender = self.sender(arrived, packet)?;
                let is_plain = sender.image.settled && !sender.traced && !sender.finished;
                let is_holder = Process::new(sender.tgid, sender.start) == holder.process;
                (is_plain && is_holder).then_some(Basis::Sender {
                    tgid,
                    start: sender.start,
                    uid: sender.uid,
                    gid: sender.gid,
                    cgroup: sender.cgroup,
                })
            }
        }
    }
}
