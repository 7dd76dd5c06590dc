//! The rules as text: what is wanted, what there is, and the way from one to the other. Pure.
//!
//! The daemon's rules stand in chains of its own, `app-fw-N-OUTPUT` and so on, where N is its first OUTPUT queue; all there
//! is in the built-in chains is a turning for each hook. So a transaction can empty and fill the chains without naming a
//! rule that is in them. (iptables-legacy cannot delete a rule with a pinned program by its text, because the text is
//! compared with the descriptor the program had; nor by its number, which may be another's by then.) And a chain says by
//! its name whose it is.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use shared::Chain;

use super::place::{Place, Turning};

/// The table. It comes before `filter` on every hook, so that what Docker, ufw or firewalld accept there was judged before,
/// and what app-fw accepts they still judge: to accept ends a table, not the packet's way. It comes before NAT rewrites
/// what local processes send, so that the packet still has the ends of its socket.
pub const TABLE: &str = "mangle";

/// What the names of our chains begin with.
const PREFIX: &str = "app-fw-";

/// Whose rules: the first OUTPUT queue. A queue is one daemon's at a time, so the rules are.
pub type Instance = u16;

/// What the queue rule is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queues {
    /// By [`Chain::ALL`].
    pub of: [RangeInclusive<u16>; 3],
    /// Packets pass while nobody is bound.
    pub bypass: bool,
}

/// What is to be there, the same for both families.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Whose.
    pub instance: Instance,
    /// Where packets are taken from, ordered.
    pub places: Vec<Place>,
    /// Where they go.
    pub queues: Queues,
    /// The programs of the verdict cache, by [`Chain::ALL`]: whether to accept, and whether to drop. None: all packets of the
    /// chain go to its queues.
    pub programs: [Option<[PathBuf; 2]>; 3],
}

/// The name of one of our chains.
fn own_chain(instance: Instance, chain: Chain) -> String {
    format!("{PREFIX}{instance}-{}", chain.name())
}

/// Whose chain it is, if it is one of ours.
fn owner(chain: &str) -> Option<Instance> {
    let (instance, kind) = chain.strip_prefix(PREFIX)?.split_once('-')?;
    let known = Chain::ALL.iter().any(|chain| chain.name() == kind);
    instance.parse().ok().filter(|_| known)
}

/// Where a chain comes in [`Chain::ALL`].
fn index(chain: Chain) -> usize {
    Chain::ALL.iter().position(|one| *one == chain).unwrap_or_default()
}

impl Wanted {
    fn turnings(&self) -> impl Iterator<Item = Turning> + '_ {
        self.places.iter().flat_map(Place::turnings)
    }

    /// Chains of ours that a place leads to, each once.
    fn chains(&self) -> Vec<Chain> {
        Chain::ALL.into_iter().filter(|chain| self.turnings().any(|turning| turning.to == *chain)).collect()
    }

    /// The rules of one of our chains, without the leading `-A NAME`.
    fn rules_of(&self, chain: Chain) -> Vec<String> {
        let mut rules = Vec::new();
        for (program, verdict) in self.programs[index(chain)].iter().flatten().zip(["ACCEPT", "DROP"]) {
            rules.push(format!("-m bpf --object-pinned {} -j {verdict}", program.display()));
        }
        let queues = &self.queues.of[index(chain)];
        let (first, last) = (queues.start(), queues.end());
        let queue =
            if first == last { format!("--queue-num {first}") } else { format!("--queue-balance {first}:{last}") };
        let bypass = if self.queues.bypass { " --queue-bypass" } else { "" };
        rules.push(format!("-j NFQUEUE {queue}{bypass}"));
        rules
    }

    fn turning_rule(&self, turning: &Turning) -> Rule {
        let of = if turning.of.is_empty() { String::new() } else { format!("{} ", turning.of) };
        Rule { chain: turning.from.name().into(), text: format!("{of}-j {}", own_chain(self.instance, turning.to)) }
    }

    /// What leads to our chains for one place.
    fn turnings_of<'a>(&'a self, place: &'a Place) -> impl Iterator<Item = Rule> + 'a {
        place.turnings().into_iter().map(|turning| self.turning_rule(&turning))
    }

    /// Everything that is to be there: our chains first, then the turnings.
    fn rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for chain in self.chains() {
            let name = own_chain(self.instance, chain);
            rules.extend(self.rules_of(chain).into_iter().map(|text| Rule { chain: name.clone(), text }));
        }
        rules.extend(self.turnings().map(|turning| self.turning_rule(&turning)));
        rules
    }
}

/// A rule as iptables-save writes it: `-A CHAIN TEXT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    chain: String,
    text: String,
}

impl Rule {
    /// Where a packet goes that it takes.
    fn target(&self) -> Option<&str> {
        let mut words = self.text.split_whitespace();
        words.find(|word| matches!(*word, "-j" | "-g"))?;
        words.next()
    }

    /// Whether another version of iptables may have written this for `meant`: the same words, perhaps in another order or
    /// with more that says nothing new. No negation comes in by that.
    fn may_be(&self, meant: &Rule) -> bool {
        let has = |word: &str| self.text.split_whitespace().any(|one| one == word);
        self.chain == meant.chain && !has("!") && meant.text.split_whitespace().all(has)
    }

    fn line(&self, command: &str) -> String {
        format!("{command} {} {}\n", self.chain, self.text)
    }
}

/// A table as iptables-save writes it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listing {
    /// Chains of users.
    chains: Vec<String>,
    rules: Vec<Rule>,
}

impl Listing {
    /// Reads [`TABLE`] out of what iptables-save printed.
    pub fn read(text: &str) -> Listing {
        let mut listing = Listing::default();
        let mut inside = false;
        for line in text.lines() {
            if let Some(table) = line.strip_prefix('*') {
                inside = table.trim() == TABLE;
            } else if let Some(chain) = line.strip_prefix(':').filter(|_| inside) {
                let mut words = chain.split_whitespace();
                // A built-in chain has a policy.
                if let (Some(name), Some("-")) = (words.next(), words.next()) {
                    listing.chains.push(name.into());
                }
            } else if let Some(rule) = line.strip_prefix("-A ").filter(|_| inside) {
                let (chain, text) = rule.split_once(' ').unwrap_or((rule, ""));
                listing.rules.push(Rule { chain: chain.into(), text: text.into() });
            }
        }
        listing
    }

    /// Whose chains there are.
    pub fn instances(&self) -> Vec<Instance> {
        let mut instances: Vec<_> = self.chains.iter().filter_map(|chain| owner(chain)).collect();
        instances.sort_unstable();
        instances.dedup();
        instances
    }

    /// The rules in our chains and those that lead there, as they are written.
    pub fn of(&self, instance: Instance) -> Vec<Rule> {
        let ours = |chain: &str| owner(chain) == Some(instance);
        let rules = self.rules.iter();
        rules.filter(|rule| ours(&rule.chain) || rule.target().is_some_and(ours)).cloned().collect()
    }

    /// Whether all is there, and nothing else in our chains. `seen`: how it was written when it was put in place.
    pub fn holds(&self, wanted: &Wanted, seen: Option<&[Rule]>) -> bool {
        let there = self.of(wanted.instance);
        match seen {
            Some(seen) => there == seen,
            None => self.has_what_was_meant(&there, wanted),
        }
    }

    fn has_what_was_meant(&self, there: &[Rule], wanted: &Wanted) -> bool {
        let meant = wanted.rules();
        // In each chain as many, in the same order.
        meant.len() == there.len()
            && meant.iter().all(|rule| {
                let of =
                    |rules: &[Rule]| rules.iter().filter(|one| one.chain == rule.chain).cloned().collect::<Vec<_>>();
                let (meant, there) = (of(&meant), of(there));
                meant.len() == there.len() && there.iter().zip(&meant).all(|(there, meant)| there.may_be(meant))
            })
    }

    /// Whether the rules of one place are there.
    pub fn has(&self, place: &Place, wanted: &Wanted, seen: Option<&[Rule]>) -> bool {
        let there = self.of(wanted.instance);
        let chains: Vec<String> =
            place.turnings().iter().map(|turning| own_chain(wanted.instance, turning.to)).collect();
        let is_there = |rule: &Rule| match seen.and_then(|seen| seen.iter().find(|seen| seen.may_be(rule))) {
            Some(seen) => there.contains(seen),
            None => there.iter().any(|there| there.may_be(rule)),
        };
        let content = |name: &String| {
            let meant: Vec<_> = wanted.rules().into_iter().filter(|rule| rule.chain == *name).collect();
            let count = there.iter().filter(|rule| rule.chain == *name).count();
            count == meant.len() && meant.iter().all(is_there)
        };
        wanted.turnings_of(place).all(|rule| is_there(&rule)) && chains.iter().all(content)
    }

    /// Whether rules of others stand behind ours in a built-in chain: what app-fw accepts does not reach them.
    pub fn is_followed(&self, wanted: &Wanted) -> bool {
        wanted.turnings().any(|turning| {
            let here = || self.rules.iter().filter(|rule| rule.chain == turning.from.name());
            let ours = |rule: &Rule| rule.target().and_then(owner);
            let first = here().position(|rule| ours(rule) == Some(wanted.instance));
            first.is_some_and(|first| here().skip(first).any(|rule| ours(rule).is_none()))
        })
    }

    /// Rules in front of ours, as they are written, that let packets pass without being judged: they accept, or go elsewhere.
    pub fn ways_around(&self, wanted: &Wanted) -> Vec<String> {
        let mut found = Vec::new();
        for chain in Chain::ALL {
            if wanted.turnings().all(|turning| turning.from != chain) {
                continue;
            }
            let here = self.rules.iter().filter(|rule| rule.chain == chain.name());
            let before = here.take_while(|rule| rule.target().and_then(owner) != Some(wanted.instance));
            found.extend(before.filter(|rule| self.lets_pass(rule, &mut Vec::new(), true)));
        }
        found.iter().map(|rule| rule.line("-A").trim_end().to_owned()).collect()
    }

    fn lets_pass<'a>(&'a self, rule: &'a Rule, visited: &mut Vec<&'a str>, built_in: bool) -> bool {
        match rule.target() {
            Some("ACCEPT" | "QUEUE" | "NFQUEUE") => true,
            // From a user's chain it returns to where ours come yet.
            Some("RETURN") => built_in,
            Some(chain) if self.chains.iter().any(|one| one == chain) && !visited.contains(&chain) => {
                visited.push(chain);
                let gone = built_in && rule.text.split_whitespace().any(|word| word == "-g");
                gone || self
                    .rules
                    .iter()
                    .filter(|rule| rule.chain == chain)
                    .any(|rule| self.lets_pass(rule, visited, false))
            }
            _ => false,
        }
    }
}

/// Makes it so, whatever there is, for iptables-restore --noflush: rules of `gone` go, ours are put at the end, all in one
/// transaction.
///
/// At the end, because what app-fw accepts meets no later rule of the table, and others' rules there change packets (TCPMSS,
/// MARK) rather than let them pass.
pub fn to_place(listing: &Listing, wanted: &Wanted, gone: &[Instance]) -> String {
    let mut text = format!("*{TABLE}\n");
    for chain in wanted.chains() {
        // With --noflush this makes it if it is missing, and empties it if it is there.
        text += &format!(":{} - [0:0]\n", own_chain(wanted.instance, chain));
    }
    let kept: Vec<String> = wanted.chains().iter().map(|chain| own_chain(wanted.instance, *chain)).collect();
    text += &taken_down(
        listing,
        |chain| owner(chain).is_some_and(|instance| instance == wanted.instance || gone.contains(&instance)),
        &kept,
    );
    wanted.rules().iter().for_each(|rule| text += &rule.line("-A"));
    text + "COMMIT\n"
}

/// Takes all rules and chains of these instances away. `None`: there are none.
pub fn to_remove(listing: &Listing, gone: &[Instance]) -> Option<String> {
    let ours = |chain: &str| owner(chain).is_some_and(|instance| gone.contains(&instance));
    let text = taken_down(listing, ours, &[]);
    (!text.is_empty()).then(|| format!("*{TABLE}\n{text}COMMIT\n"))
}

fn taken_down(listing: &Listing, ours: impl Fn(&str) -> bool, kept: &[String]) -> String {
    let mut text = String::new();
    // What leads there, first: a chain that something leads to cannot go.
    let leads = |rule: &&Rule| !ours(&rule.chain) && rule.target().is_some_and(&ours);
    listing.rules.iter().filter(leads).for_each(|rule| text += &rule.line("-D"));
    let chains = || listing.chains.iter().filter(|chain| ours(chain) && !kept.contains(chain));
    chains().for_each(|chain| text += &format!("-F {chain}\n"));
    chains().for_each(|chain| text += &format!("-X {chain}\n"));
    text
}

/// Whether any rule of any table says this path; `text` is what iptables-save printed.
pub fn mentions(text: &str, directory: &Path) -> bool {
    let directory = format!("{}/", directory.display());
    text.lines().any(|line| line.starts_with("-A ") && line.contains(&directory))
}

/// How many rules there are in all tables; `text` is what iptables-save printed.
pub fn count(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with("-A ")).count()
}

/// A path can stand in a rule as it is: iptables-save quotes nothing of it, and the kernel keeps 512 bytes.
pub fn can_name(path: &Path) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && !b"\"'\\".contains(byte);
    let bytes = path.as_os_str().as_encoded_bytes();
    path.is_absolute() && bytes.iter().all(is_plain) && bytes.len() < 480
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(places: &[&str], pins: Option<&str>) -> Wanted {
        let places: Vec<Place> = places.iter().map(|place| place.parse().unwrap()).collect();
        Wanted {
            instance: 0,
            places: Place::in_order(&places),
            queues: Queues { of: [0..=3, 4..=4, 5..=5], bypass: false },
            programs: Chain::ALL.map(|chain| Some(super::super::pins::programs(Path::new(pins?), chain))),
        }
    }

    const EMPTY: &str = "*mangle\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [1:2]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";

    /// What a restore makes of a listing, as far as our texts go.
    fn restored(mut listing: Listing, script: &str) -> Listing {
        for line in script.lines() {
            let mut words = line.splitn(3, ' ');
            let (command, chain, text) = (words.next().unwrap(), words.next(), words.next().unwrap_or_default());
            let named = |rule: &Rule| Some(rule.chain.as_str()) == chain;
            match command {
                "-A" => listing.rules.push(Rule { chain: chain.unwrap().into(), text: text.into() }),
                "-D" => {
                    let at = listing.rules.iter().position(|rule| named(rule) && rule.text == text);
                    listing.rules.remove(at.expect("no such rule"));
                }
                "-F" => listing.rules.retain(|rule| !named(rule)),
                "-X" => {
                    let leads = listing.rules.iter().any(|rule| rule.target() == chain || named(rule));
                    assert!(!leads, "{line}: it is in use");
                    listing.chains.retain(|one| Some(one.as_str()) != chain);
                }
                declared if declared.starts_with(':') => {
                    let name = &declared[1..];
                    listing.rules.retain(|rule| rule.chain != name);
                    if !listing.chains.iter().any(|one| one == name) {
                        listing.chains.push(name.into());
                    }
                }
                _ => assert!(line == "*mangle" || line == "COMMIT", "{line}"),
            }
        }
        listing
    }

    #[test]
    fn the_rules_are_those_that_were_promised() {
        let script = to_place(&Listing::read(EMPTY), &wanted(&["OUTPUT", "FORWARD:docker0"], Some("/b/p")), &[]);
        assert_eq!(
            script,
            "*mangle\n:app-fw-0-OUTPUT - [0:0]\n:app-fw-0-INPUT - [0:0]\n\
             -A app-fw-0-OUTPUT -m bpf --object-pinned /b/p/accept-output -j ACCEPT\n\
             -A app-fw-0-OUTPUT -m bpf --object-pinned /b/p/drop-output -j DROP\n\
             -A app-fw-0-OUTPUT -j NFQUEUE --queue-balance 0:3\n\
             -A app-fw-0-INPUT -m bpf --object-pinned /b/p/accept-input -j ACCEPT\n\
             -A app-fw-0-INPUT -m bpf --object-pinned /b/p/drop-input -j DROP\n\
             -A app-fw-0-INPUT -j NFQUEUE --queue-num 4\n\
             -A OUTPUT -j app-fw-0-OUTPUT\n\
             -A FORWARD -i docker0 -j app-fw-0-OUTPUT\n\
             -A FORWARD -o docker0 -j app-fw-0-INPUT\nCOMMIT\n"
        );
        let mut bypass = wanted(&["FORWARD"], None);
        bypass.queues.bypass = true;
        let script = to_place(&Listing::default(), &bypass, &[]);
        assert!(
            script.contains("-A app-fw-0-FORWARD -j NFQUEUE --queue-num 5 --queue-bypass\n-A FORWARD -j"),
            "{script}"
        );
    }

    #[test]
    fn placing_twice_is_placing_once_and_removing_leaves_what_was() {
        let text =
            "*mangle\n:OUTPUT ACCEPT [0:0]\n:mine - [0:0]\n-A OUTPUT -j mine\n-A mine -j MARK --set-mark 1\nCOMMIT\n";
        let before = Listing::read(text);
        let wanted = wanted(&["OUTPUT", "INPUT", "FORWARD:br-+", "FORWARD"], Some("/p"));
        let once = restored(before.clone(), &to_place(&before, &wanted, &[]));
        assert!(once.holds(&wanted, None));
        let seen = once.of(0);
        let twice = restored(once.clone(), &to_place(&once, &wanted, &[]));
        assert!(twice.holds(&wanted, Some(&seen)));
        assert_eq!(twice.rules.len(), once.rules.len());
        assert_eq!(restored(twice.clone(), &to_remove(&twice, &[0]).unwrap()), before);
        assert_eq!(to_remove(&before, &[0]), None);
    }

    #[test]
    fn what_a_former_daemon_left_is_replaced_and_others_are_left_alone() {
        let mut former = wanted(&["OUTPUT", "INPUT"], Some("/old"));
        let listing = restored(Listing::read(EMPTY), &to_place(&Listing::read(EMPTY), &former, &[]));
        former.instance = 10;
        let listing = restored(listing.clone(), &to_place(&listing, &former, &[]));
        former.instance = 20;
        let listing = restored(listing.clone(), &to_place(&listing, &former, &[]));
        assert_eq!(listing.instances(), [0, 10, 20]);
        let now = wanted(&["OUTPUT"], None);
        let after = restored(listing.clone(), &to_place(&listing, &now, &[20]));
        assert_eq!(after.instances(), [0, 10]);
        assert!(after.holds(&now, None));
        assert_eq!(after.of(10), listing.of(10));
        assert!(!after.is_followed(&now), "what follows is another app-fw's");
    }

    #[test]
    fn what_is_missing_changed_or_too_much_is_seen() {
        let wanted = wanted(&["OUTPUT", "FORWARD:docker0"], Some("/p"));
        let placed = restored(Listing::read(EMPTY), &to_place(&Listing::read(EMPTY), &wanted, &[]));
        let seen = placed.of(0);
        let output = Place::Output;
        assert!(placed.has(&output, &wanted, Some(&seen)) && placed.holds(&wanted, Some(&seen)));
        for index in 0..placed.rules.len() {
            let mut less = placed.clone();
            less.rules.remove(index);
            assert!(!less.holds(&wanted, Some(&seen)) && !less.holds(&wanted, None), "{index}");
            let mut other = placed.clone();
            other.rules[index].text = format!("! {}", other.rules[index].text);
            assert!(!other.holds(&wanted, Some(&seen)) && !other.holds(&wanted, None), "{index}");
        }
        let mut without_docker = placed.clone();
        without_docker.rules.retain(|rule| !rule.text.contains("docker0"));
        assert!(without_docker.has(&output, &wanted, Some(&seen)));
        assert!(!without_docker.has(&wanted.places[1], &wanted, Some(&seen)));
        let mut first = placed.clone();
        first.rules.insert(0, Rule { chain: "app-fw-0-OUTPUT".into(), text: "-j ACCEPT".into() });
        assert!(!first.holds(&wanted, Some(&seen)) && !first.has(&output, &wanted, Some(&seen)));
        let mut narrowed = placed.clone();
        narrowed.rules.iter_mut().for_each(|rule| rule.text = format!("-s 192.0.2.1 {}", rule.text));
        assert!(!narrowed.holds(&wanted, Some(&seen)), "once placed, it is to be read back just so");
        assert!(!Listing::default().holds(&wanted, Some(&seen)));
    }

    #[test]
    fn rules_before_and_behind_ours_are_seen() {
        let wanted = wanted(&["OUTPUT"], None);
        let base = "*mangle\n:OUTPUT ACCEPT [0:0]\n:app-fw-0-OUTPUT - [0:0]\n:mine - [0:0]\n:deep - [0:0]\n\
                    -A app-fw-0-OUTPUT -j NFQUEUE --queue-num 0\n";
        let around = |rules: &str| {
            let listing = Listing::read(&format!("{base}{rules}-A OUTPUT -j app-fw-0-OUTPUT\nCOMMIT\n"));
            listing.ways_around(&wanted)
        };
        assert!(
            around("-A OUTPUT -p tcp -j TCPMSS --set-mss 1400\n-A INPUT -j ACCEPT\n-A OUTPUT -j DROP\n").is_empty()
        );
        assert_eq!(around("-A OUTPUT -o lo -j ACCEPT\n"), ["-A OUTPUT -o lo -j ACCEPT"]);
        assert_eq!(around("-A OUTPUT -o lo -j RETURN\n").len(), 1);
        assert!(around("-A OUTPUT -j mine\n-A mine -j RETURN\n").is_empty());
        assert_eq!(around("-A OUTPUT -g mine\n").len(), 1);
        assert_eq!(around("-A OUTPUT -j mine\n-A mine -j deep\n-A deep -j mine\n-A deep -j ACCEPT\n").len(), 1);
        let followed = Listing::read(&format!("{base}-A OUTPUT -j app-fw-0-OUTPUT\n-A OUTPUT -j mine\nCOMMIT\n"));
        assert!(followed.is_followed(&wanted) && followed.ways_around(&wanted).is_empty());
    }

    #[test]
    fn another_table_is_another_table() {
        let text = format!(
            "*filter\n:OUTPUT ACCEPT [0:0]\n:app-fw-0-OUTPUT - [0:0]\n-A OUTPUT -j app-fw-0-OUTPUT\nCOMMIT\n{EMPTY}"
        );
        assert_eq!(Listing::read(&text), Listing::read(EMPTY));
        assert_eq!(count(&text), 1);
        assert!(mentions("-A x -m bpf --object-pinned /p/q/accept-output -j ACCEPT\n", Path::new("/p/q")));
        assert!(!mentions("-A x -m bpf --object-pinned /p/qq/accept-output -j ACCEPT\n", Path::new("/p/q")));
    }

    #[test]
    fn names_of_chains_tell_whose_they_are() {
        assert_eq!(owner("app-fw-0-OUTPUT"), Some(0));
        assert_eq!(owner("app-fw-65535-FORWARD"), Some(65535));
        for other in
            ["app-fw-OUTPUT", "app-fw-x-OUTPUT", "app-fw-1-OTHER", "app-fw-65536-INPUT", "OUTPUT", "my-app-fw-0-INPUT"]
        {
            assert_eq!(owner(other), None, "{other}");
        }
        // The longest that iptables takes is 28 bytes.
        assert!(own_chain(u16::MAX, Chain::Forward).len() <= 28);
    }

    #[test]
    fn only_plain_paths_stand_in_rules() {
        assert!(can_name(Path::new("/sys/fs/bpf/app-fw/net-4026531840-queue-0")));
        for bad in ["relative", "/a b", "/a\"b", "/a\nb", "/\u{e4}"] {
            assert!(!can_name(Path::new(bad)), "{bad:?}");
        }
    }
}
