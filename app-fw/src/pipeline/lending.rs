//! Which answers the kernel may use without asking, and for how much of what comes.

use shared::{Chain, Ports, Protocol, Verdict};
use smallvec::SmallVec;
use syscall_probe::{Basis, CachedChain, CachedFlow, CachedSender, CachedVerdict, Scope, SentBy};

use super::{Answer, Arrived, Identity, Pipeline, Place, Tell, Whose};
use crate::image::Process;
use crate::matcher::Dependence;
use crate::packet::{About, Packet};

impl Pipeline {
    /// Lets the kernel use an answer for what comes after, if it sees all that the answer depends on.
    ///
    /// The kernel compares what `Answer::check` compares. The answer is lent for as much as the rules say the same of: for all
    /// that the process sends, if they do not ask where. If it was lent so already, and the packet came here all the same,
    /// the kernel could not tell whose the packet is: then for its flow, which the kernel finds by what `FlowKey` has.
    ///
    /// `wanted`: somebody wants to be told of such packets. If he is told of this one, he is to see the next one too.
    pub fn lend(&self, arrived: &Arrived, answer: &Answer, tell: Tell, wanted: bool) {
        let Some(kernel) = &self.world.kernel else { return };
        let verdict = match answer.judgement.verdict {
            // Whoever is to be told of each packet has to see it.
            _ if tell.of(&answer.judgement) || !answer.may_be_kept() => return,
            Verdict::Accept => CachedVerdict::Accept,
            Verdict::Drop => CachedVerdict::Drop,
            Verdict::Reject => return,
        };
        let Ok(packet) = &arrived.packet else { return };
        let Some(flow) = self.cached_flow(arrived, packet) else { return };
        let rule = answer.judgement.rule.as_ref().map(|rule| &rule.state);
        let lend = |scope: Scope, basis: Basis| {
            // What changes after the stamp is taken makes it another; what changed before shows in the check.
            let stamp = kernel.cache().stamp(flow, scope, basis.clone())?;
            let holds =
                answer.check(self.basis(), self.world.generations.as_ref()).is_ok() && self.census_allows(&basis);
            (holds && kernel.put(&stamp, verdict, rule, wanted)).then_some(())
        };
        let widely = || match self.dependence(answer, arrived, packet.flow.protocol)? {
            Dependence::Nothing => lend(Scope::All, self.basis_of_maker(arrived, packet, answer)?),
            Dependence::Destination => lend(Scope::Destination, self.basis_of_maker(arrived, packet, answer)?),
            Dependence::Flow => None,
        };
        if widely().is_none()
            && let Some(basis) = self.basis_of_flow(arrived, packet, answer)
        {
            lend(Scope::Flow, basis);
        }
    }

    fn cached_flow(&self, arrived: &Arrived, packet: &Packet) -> Option<CachedFlow> {
        let Ports::Known { source, destination } = packet.flow.ports else { return None };
        let is_kept = packet.about == About::Itself && matches!(packet.flow.protocol, Protocol::TCP | Protocol::UDP);
        is_kept.then_some(CachedFlow {
            chain: match self.world.chain {
                Chain::Output => CachedChain::Output,
                Chain::Input => CachedChain::Input,
                Chain::Forward => CachedChain::Forward,
            },
            protocol: packet.flow.protocol.0,
            source: packet.flow.source,
            source_port: source,
            destination: packet.flow.destination,
            destination_port: destination,
            in_device: arrived.devices.0,
            out_device: arrived.devices.1,
        })
    }

    /// What of a packet the rules ask for, where that is the same for more than a flow.
    fn dependence(&self, answer: &Answer, arrived: &Arrived, protocol: Protocol) -> Option<Dependence> {
        let Place::Here(_) = arrived.place else { return None };
        let (made, view) = self.of_rules.views.peek(&answer.namespace.as_ref()?.id)?;
        if (made.rules, made.namespaces) != (answer.basis.rules, answer.basis.namespaces) {
            return None;
        }
        let Some(identity) = &answer.identity else { return Some(view.dependence(protocol)) };
        let (image, whose) = identity.sole()?;
        let asked = self.of_rules.asked.peek(&image.process)?;
        asked.is_of(image, whose, view).then(|| asked.residual.dependence(protocol))
    }

    /// Whoever made a socket of the process that the answer is about.
    fn basis_of_maker(&self, arrived: &Arrived, packet: &Packet, answer: &Answer) -> Option<Basis> {
        let Some(identity) = &answer.identity else { return Some(Basis::Nobody) };
        let ([holder], None) = (&identity.owners.holders[..], identity.owners.undetermined) else { return None };
        let Process { tgid, start } = holder.process;
        if self.world.chain == Chain::Input || packet.flow.protocol == Protocol::TCP {
            let as_made = self.world.chain == Chain::Input || self.is_tcps_own(arrived);
            return as_made.then_some(Basis::Maker(CachedSender { tgid, start, by: SentBy::Kernel }));
        }
        self.cached_sender(arrived, packet, identity).map(Basis::Maker)
    }

    /// Those that the answer is about.
    fn basis_of_flow(&self, arrived: &Arrived, packet: &Packet, answer: &Answer) -> Option<Basis> {
        let Some(identity) = &answer.identity else { return Some(Basis::Nobody) };
        let holders = holders(identity)?;
        match (self.world.chain, arrived.place) {
            (Chain::Input, _) => Some(Basis::Holders(holders)),
            // Nobody knows who sent it: it is theirs, for there is nobody else.
            (_, Place::Behind(_)) => Some(Basis::HoldersAlone(holders)),
            (_, Place::Here(_)) if packet.flow.protocol == Protocol::TCP => {
                self.is_tcps_own(arrived).then_some(Basis::Holders(holders))
            }
            (_, Place::Here(_)) => match &identity.owners.holders[..] {
                [_] => self.cached_sender(arrived, packet, identity).map(Basis::Sender),
                _ => None,
            },
        }
    }

    /// The kernel tells TCP's own segments by the checksum that is left to the device.
    fn is_tcps_own(&self, arrived: &Arrived) -> bool {
        self.world.as_made && arrived.checksum_missing
    }

    /// The only owner, if the packet was sent in a call of his.
    fn cached_sender(&self, arrived: &Arrived, packet: &Packet, identity: &Identity) -> Option<CachedSender> {
        let (holder, whose) = (identity.owners.holders.first()?.process, identity.whose.first()?);
        let sender = self.sender(arrived, packet)?;
        let is_plain = sender.image.settled && !sender.traced && !sender.finished;
        // Rules that do not ask whose it is, or who traces it, say the same of all its threads.
        let by = match *whose == Whose::default() {
            true => SentBy::Call,
            false => SentBy::CallOf { uid: sender.uid, gid: sender.gid },
        };
        let Process { tgid, start } = holder;
        (is_plain && Process::new(sender.tgid, sender.start) == holder).then_some(CachedSender { tgid, start, by })
    }

    /// Whether there are no raw sockets, where the answer says so.
    fn census_allows(&self, basis: &Basis) -> bool {
        let is_clear =
            || self.world.generations.as_ref().is_some_and(|generations| self.world.census.is_clear(generations));
        !matches!(basis, Basis::HoldersAlone(_)) || is_clear()
    }
}

/// `None`: not all are known, or there are too many.
fn holders(identity: &Identity) -> Option<SmallVec<[u32; 1]>> {
    let holders = &identity.owners.holders;
    let is_known = identity.owners.undetermined.is_none() && (1..=Basis::MOST_HOLDERS).contains(&holders.len());
    is_known.then(|| holders.iter().map(|holder| holder.process.tgid).collect())
}
