//! Why packets get the verdict they get: `ctl-fw explain`.
//!
//! The same search, the same images and the same rules as on the path of a packet; but every rule is asked, and nothing is
//! hurried.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use shared::control::{ExplainedOwner, ExplainedRule, Explanation, Failure, FailureKind, Holds, NamedObject, Subject};
use shared::{Cause, Chain, Digest, Flow, Ports, Reason, Selector, Verdict};

use crate::attribute::diag::Tuple;
use crate::attribute::{Endpoint, Origin};
use crate::image::{Hashing, Image, NoImage, ProcDir, Process, Reader};
use crate::investigate::{Found, Investigators, Mailbox, Means, Question};
use crate::matcher::{ActiveRule, Device, Facts, Made, Owner, Tri, View};
use crate::namespaces::{NAMES, Namespace};

/// How long a search may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Explains.
pub struct Explainer {
    /// How processes and sockets are looked at.
    pub means: Means,
    /// Search for owners.
    pub investigators: Investigators,
}

/// What is to be explained.
pub struct Wanted {
    /// Whose packets.
    pub subject: Subject,
    /// Met in this chain.
    pub chain: Chain,
    /// What they are.
    pub flow: Option<Flow>,
    /// Their namespace.
    pub namespace: Option<Selector>,
}

/// An owner, told of and asked about.
struct Person {
    told: ExplainedOwner,
    /// `None`: undetermined.
    made: Option<Asked>,
}

/// What rules ask of an owner.
#[derive(Default)]
struct Asked {
    digests: Vec<Digest>,
    paths: Vec<Vec<u8>>,
    program: Option<Vec<u8>>,
    complete: bool,
}

impl Person {
    fn undetermined(pid: Option<u32>, cause: Cause) -> Person {
        Person { told: ExplainedOwner { pid, undetermined: Some(cause), ..ExplainedOwner::default() }, made: None }
    }

    fn owner(&self) -> Owner<'_> {
        let Some(made) = &self.made else { return Owner::Undetermined };
        Owner::Known(Made {
            digests: &made.digests,
            complete: made.complete,
            aggregate: self.told.aggregate,
            paths: &made.paths,
            program: made.program.as_deref(),
            uid: self.told.uid,
            gid: self.told.gid,
            cgroup: self.told.cgroup.as_deref(),
            anon_exec: self.told.anon_exec,
            // A program that does not run is traced by nobody.
            traced: Some(self.told.traced_by.is_some()),
            identified: true,
        })
    }
}

impl From<(Process, Image)> for Person {
    fn from((process, image): (Process, Image)) -> Person {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let objects = image.objects.iter().map(|object| NamedObject {
            path: text(&object.path),
            digest: object.digest.ok(),
            undetermined: object.digest.err(),
        });
        let standing = image.standing.clone().unwrap_or_default();
        let told = ExplainedOwner {
            pid: Some(process.tgid),
            program: Some(image.program.clone()),
            uid: standing.uid,
            gid: standing.gid,
            cgroup: standing.cgroup.as_deref().map(str::to_owned),
            anon_exec: image.beyond.and_then(|beyond| beyond.anon_exec),
            traced_by: image.beyond.and_then(|beyond| beyond.traced_by),
            aggregate: image.aggregate,
            objects: objects.collect(),
            undetermined: image.gap,
        };
        let program = Some(image.program_path.clone()).filter(|path| !path.is_empty());
        let complete = image.gap.is_none();
        Person { told, made: Some(Asked { digests: image.digests, paths: image.paths, program, complete }) }
    }
}

fn not_found(message: String) -> Failure {
    Failure { kind: FailureKind::NotFound, message, index: None }
}

fn invalid(message: String) -> Failure {
    Failure { kind: FailureKind::Invalid, message, index: None }
}

impl Explainer {
    /// Looks at whoever is meant and asks all rules.
    ///
    /// # Errors
    /// There is no such process or namespace, or it makes no sense.
    pub fn explain(&self, wanted: Wanted) -> Result<Explanation, Failure> {
        let Wanted { subject, chain, flow, namespace } = wanted;
        let namespace = self.namespace(&subject, namespace)?;
        let people = match subject {
            Subject::Process { pid } => vec![self.process(pid)?],
            Subject::Program { objects } => vec![program(objects)],
            Subject::Holders => {
                let flow = flow.as_ref().ok_or_else(|| invalid("whose packets? a flow is wanted".into()))?;
                self.holders(chain, flow, &namespace)?
            }
        };
        let view = self.means.rules.load().view(&namespace.selectors, chain);
        let owners: Vec<Owner<'_>> = people.iter().map(Person::owner).collect();
        let facts = flow.as_ref().map(|flow| Facts {
            flow,
            // Which way a packet takes is seen only when it does.
            input: Device::Unknown,
            output: Device::Unknown,
            namespace: Some(&namespace.selectors),
            now: self.means.clock.now(),
        });
        let told = asked(&view, facts.as_ref(), &owners);
        let (verdict, reason) = decided(&told, &view);
        let policy = view.policy();
        let name = namespace.best_selector();
        let rules = told.into_iter().map(|(_, rule)| rule).collect();
        let owners = people.into_iter().map(|person| person.told).collect();
        Ok(Explanation { chain, namespace: name, owners, rules, policy, verdict, reason })
    }

    fn namespace(&self, subject: &Subject, wanted: Option<Selector>) -> Result<Arc<Namespace>, Failure> {
        let namespaces = self.means.namespaces.load();
        if let Subject::Process { pid } = subject {
            ProcDir::hold(*pid).map_err(|_| not_found(format!("there is no process {pid}")))?;
        }
        let path: PathBuf = match (wanted, subject) {
            (None | Some(Selector::Any), Subject::Process { pid }) => format!("/proc/{pid}/ns/net").into(),
            (None | Some(Selector::Any), _) => return Ok(namespaces.own.clone()),
            (Some(selector), _) if namespaces.own.selectors.contains(&selector) => return Ok(namespaces.own.clone()),
            (Some(Selector::Host), _) => "/proc/1/ns/net".into(),
            (Some(Selector::Named(name)), _) => PathBuf::from(NAMES).join(name),
            (Some(Selector::File(path)), _) => path,
            (Some(selector @ Selector::Lifetime { .. }), _) => {
                return Err(not_found(format!("{selector}: name one of its processes instead")));
            }
        };
        let found = namespaces.at(&path).map_err(|error| not_found(format!("{}: {error}", path.display())))?;
        Ok(if found.id == namespaces.own.id { namespaces.own.clone() } else { Arc::new(found) })
    }

    fn process(&self, pid: u32) -> Result<Person, Failure> {
        let start = ProcDir::hold(pid).and_then(|dir| dir.start());
        let start = start.map_err(|_| not_found(format!("there is no process {pid}")))?;
        Ok(self.person(Process { tgid: pid, start }))
    }

    fn person(&self, process: Process) -> Person {
        let reader = Reader {
            digests: &self.means.digests,
            generations: self.means.generations.as_ref(),
            chronicle: self.means.chronicle.as_deref(),
            mappings: self.means.mappings.as_ref(),
            beyond: true,
        };
        match reader.read(process, Hashing::Allowed) {
            Ok(image) => Person::from((process, image)),
            Err(NoImage::Because(cause)) => Person::undetermined(Some(process.tgid), cause),
            Err(NoImage::NeedsHashing) => Person::undetermined(Some(process.tgid), Cause::ObjectUnreadable),
        }
    }

    fn holders(&self, chain: Chain, flow: &Flow, namespace: &Arc<Namespace>) -> Result<Vec<Person>, Failure> {
        let (source, destination) = match flow.ports {
            Ports::Known { source, destination } => (source, destination),
            Ports::Absent | Ports::Unknown => (0, 0),
        };
        let (near, far) = ((flow.source, source), (flow.destination, destination));
        let ((local, local_port), (remote, remote_port)) =
            if chain == Chain::Input { (far, near) } else { (near, far) };
        let endpoint = Endpoint {
            namespace: namespace.id,
            protocol: flow.protocol,
            tuple: Tuple { local, local_port, remote, remote_port },
            device: 0,
            origin: if chain == Chain::Input { Origin::Elsewhere } else { Origin::Unknown },
            suspect: None,
        };
        let namespace = namespace.clone();
        let question = Question::Owners { endpoint, namespace, previous: None, likely: None, with_image: false };
        let (mailbox, findings, _wake) = Mailbox::new().map_err(|error| invalid(error.to_string()))?;
        self.investigators.ask(question, &mailbox, Arc::new(AtomicUsize::new(1)));
        let found = findings.recv_timeout(PATIENCE).map(|finding| finding.found);
        let Ok(Found::Owners(owners)) = found else {
            return Ok(vec![Person::undetermined(None, Cause::Overload)]);
        };
        let known = owners.holders.iter().map(|holder| self.person(holder.process));
        Ok(known.chain(owners.undetermined.map(|cause| Person::undetermined(None, cause))).collect())
    }
}

/// A program that does not run yet. What it will be besides its objects is not known.
fn program(objects: Vec<NamedObject>) -> Person {
    let digests: Vec<Digest> = objects.iter().filter_map(|object| object.digest).collect();
    let complete = digests.len() == objects.len();
    let mut by_path: Vec<&NamedObject> = objects.iter().collect();
    by_path.sort_by_key(|object| &object.path);
    let aggregate = complete.then(|| Digest::aggregate(by_path.iter().filter_map(|object| object.digest.as_ref())));
    let path = objects.first().map(|object| object.path.clone());
    let made = Asked {
        digests,
        paths: objects.iter().map(|object| object.path.clone().into_bytes()).collect(),
        program: path.clone().map(String::into_bytes),
        complete,
    };
    Person { told: ExplainedOwner { program: path, aggregate, objects, ..ExplainedOwner::default() }, made: Some(made) }
}

fn holds(answer: Tri) -> Holds {
    match answer {
        Tri::Yes => Holds::Yes,
        Tri::No => Holds::No,
        Tri::Unknown => Holds::Undetermined,
    }
}

/// Every rule, and up to the first that fires whether it does.
fn asked(view: &View, facts: Option<&Facts<'_>>, owners: &[Owner<'_>]) -> Vec<(Arc<ActiveRule>, ExplainedRule)> {
    let mut over = false;
    let explain = |rule: Arc<ActiveRule>| {
        let predicates: Vec<(String, Holds)> = (0..)
            .zip(&rule.rule.predicates)
            .map(|(index, predicate)| {
                let answer = rule.predicate(index, facts, owners).map_or(Holds::Depends, holds);
                (predicate.to_string(), answer)
            })
            .collect();
        let any = |wanted: Holds| predicates.iter().any(|(_, answer)| *answer == wanted);
        // Predicates about one owner belong together, so that each may hold of another owner and the rule of none.
        let of_owners = holds(rule.of_owners(owners));
        let all = match (of_owners, any(Holds::No)) {
            (Holds::No, _) | (_, true) => Holds::No,
            _ if any(Holds::Depends) => Holds::Depends,
            (Holds::Undetermined, _) => Holds::Undetermined,
            _ if any(Holds::Undetermined) => Holds::Undetermined,
            _ => Holds::Yes,
        };
        let refuses = !rule.rule.verdict.lets_pass();
        let fires = !over && (all == Holds::Yes || all == Holds::Undetermined && refuses);
        over |= fires;
        let told = ExplainedRule { id: rule.id, text: rule.text().into(), holds: all, fires, predicates };
        (rule, told)
    };
    view.rules().into_iter().map(explain).collect()
}

/// What happens to all such packets, if it is the same for all.
fn decided(rules: &[(Arc<ActiveRule>, ExplainedRule)], view: &View) -> (Option<Verdict>, Option<Reason>) {
    let mut doubted = false;
    for (rule, told) in rules {
        match told.holds {
            Holds::Depends => return (None, None),
            Holds::Yes => return (Some(rule.rule.verdict), Some(Reason::Rule)),
            Holds::Undetermined if told.fires => return (Some(rule.rule.verdict), Some(Reason::Undetermined)),
            Holds::Undetermined => doubted = true,
            Holds::No => {}
        }
    }
    let reason = if doubted && view.policy() == Verdict::Drop { Reason::Undetermined } else { Reason::Policy };
    (Some(view.policy()), Some(reason))
}
