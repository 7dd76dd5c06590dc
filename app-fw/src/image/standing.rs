//! Whose a process is: its effective user and group, and its control group.
//!
//! All of it can change while the program stays the same, so it has a generation of its own
//! ([`Generations::standing`]): who changes users right after a packet leaves that packet's image as it was.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shared::Cause;
use syscall_probe::{Generation, Generations};

use super::{ATTEMPTS, ProcDir, Process};
use crate::sys::files::open_kernfs;

/// Whose a process is, as far as it is known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Effective user id, as the initial user namespace has it. `None` if its threads differ.
    pub uid: Option<u32>,
    /// The same for its group id.
    pub gid: Option<u32>,
    /// Path of its control group, from the root of version 2 on; without version 2, of systemd's hierarchy or the longest. That of
    /// its first thread.
    pub cgroup: Option<Arc<str>>,
    /// The generation it was read under, if nothing changed meanwhile.
    stamp: Option<Generation>,
}

impl Standing {
    /// Looks at a process.
    ///
    /// # Errors
    /// It is gone, or cannot be read.
    pub fn of(process: Process, generations: Option<&Generations>) -> Result<Standing, Cause> {
        let dir = ProcDir::open(process)?;
        let standing = Standing::look(process, &dir, generations)?;
        // It may have ended, and its pid been given away, before the last look.
        dir.start()?;
        Ok(standing)
    }

    pub(super) fn look(process: Process, dir: &ProcDir, generations: Option<&Generations>) -> Result<Standing, Cause> {
        let generation = || generations.map(|generations| generations.standing(process.tgid));
        let mut before = None;
        for _ in 0..ATTEMPTS {
            let stamp = generation().filter(|generation| generation.settled);
            let found = Standing::read(dir)?;
            if stamp.is_some() && generation() == stamp {
                // Threads that differ may end without a sign: then another look may tell more.
                let all_agree = found.uid.is_some() && found.gid.is_some();
                return Ok(Standing { stamp: stamp.filter(|_| all_agree), ..found });
            }
            // Without generations two equal looks tell.
            if before.as_ref() == Some(&found) {
                return Ok(found);
            }
            before = Some(found);
        }
        Ok(Standing::default())
    }

    fn read(dir: &ProcDir) -> Result<Standing, Cause> {
        let (uid, gid) = dir.users()?;
        let cgroup = parse_cgroup(&dir.read_of_first("cgroup").map_err(|_| Cause::ProcessGone)?);
        Ok(Standing { uid, gid, cgroup, stamp: None })
    }

    /// Whether nothing has changed since it was read.
    pub fn is_current(&self, process: Process, generations: &Generations) -> bool {
        self.stamp.is_some_and(|stamp| stamp.settled && generations.standing(process.tgid) == stamp)
    }

    /// Whether [`Standing::is_current`] may ever find it so.
    pub fn may_be_kept(&self) -> bool {
        self.stamp.is_some()
    }
}

/// What the kernel writes behind the path of what is not there any more. A group may be called so, too.
const DELETED: &[u8] = b" (deleted)";

/// A path that can be compared with others'.
fn whole(path: &[u8]) -> Option<Arc<str>> {
    std::str::from_utf8(path).ok().filter(|_| path.first() == Some(&b'/') && !path.ends_with(DELETED)).map(Arc::from)
}

/// The path of a control group from /proc/PID/cgroup; see cgroups(7). No name holds a line end.
fn parse_cgroup(text: &[u8]) -> Option<Arc<str>> {
    // HIERARCHY:CONTROLLERS:PATH; the path may hold colons.
    let lines = text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        Some((fields.next()?, fields.next()?, fields.next()?))
    });
    let of_version_2 = |(hierarchy, controllers, path)| (hierarchy == b"0" && controllers == b"").then_some(path);
    let of_systemd = |(_, controllers, path)| (controllers == b"name=systemd").then_some(path);
    let path = lines
        .clone()
        .find_map(of_version_2)
        .or_else(|| lines.clone().find_map(of_systemd))
        .or_else(|| lines.map(|(_, _, path)| path).max_by_key(|path| path.len()))?;
    whole(path)
}

/// Leads from the ids of control groups of version 2 to their paths.
pub struct ControlGroups {
    mount: File,
    place: PathBuf,
}

impl ControlGroups {
    /// `None` if version 2 is not mounted.
    pub fn find() -> Option<ControlGroups> {
        let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
        let place = mounts.split(|byte| *byte == b'\n').find_map(parse_mount)?;
        Some(ControlGroups { mount: File::open(&place).ok()?, place })
    }

    /// The path of a group that is still there. It has no other as long as it is.
    pub fn path(&self, id: u64) -> Option<Arc<str>> {
        use std::os::fd::AsRawFd;
        let group = open_kernfs(self.mount.as_fd(), id).ok()?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", group.as_raw_fd())).ok()?;
        self.inside(&path)
    }

    fn inside(&self, path: &Path) -> Option<Arc<str>> {
        let below = path.strip_prefix(&self.place).ok()?;
        whole(Path::new("/").join(below).as_os_str().as_bytes())
    }
}

/// Where a line of /proc/self/mountinfo has the root of version 2. See proc_pid_mountinfo(5).
fn parse_mount(line: &[u8]) -> Option<PathBuf> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let optional = fields.iter().position(|field| *field == b"-")?;
    // A place with blanks is written with escapes: nobody mounts it there.
    let place = fields.get(4).filter(|place| !place.contains(&b'\\'))?;
    let is_it = fields.get(3) == Some(&&b"/"[..]) && fields.get(optional + 1) == Some(&&b"cgroup2"[..]);
    is_it.then(|| PathBuf::from(OsStr::from_bytes(place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_version_2_counts_wherever_it_is() {
        let hybrid = b"9:name=systemd:/init.scope\n4:memory:/a/much/longer/path\n0::/user.slice/a:b\n";
        assert_eq!(parse_cgroup(hybrid).as_deref(), Some("/user.slice/a:b"));
        assert_eq!(parse_cgroup(b"0::/\n").as_deref(), Some("/"));
        let old = b"9:name=systemd:/init.scope\n4:memory:/a/much/longer/path\n";
        assert_eq!(parse_cgroup(old).as_deref(), Some("/init.scope"));
        let bare = b"4:memory:/longer\n3:cpu:/\n";
        assert_eq!(parse_cgroup(bare).as_deref(), Some("/longer"));
        // It looks like another line, and is a controller's name.
        assert_eq!(parse_cgroup(b"1:cpu:/0::/x\n0::/y\n").as_deref(), Some("/y"));
        for bad in
            [&b""[..], b"0::", b"0:", b"\n\n", b"0::relative\n", b"0::/x (deleted)\n", b"0::/\xff\n", b"nonsense"]
        {
            assert_eq!(parse_cgroup(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn lines_of_mounts() {
        let line = b"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 master:2 - cgroup2 cgroup2 rw";
        assert_eq!(parse_mount(line), Some("/sys/fs/cgroup/unified".into()));
        for other in [
            &b"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw"[..],
            b"41 31 0:38 /branch /mnt rw - cgroup2 cgroup2 rw",
            b"41 31 0:38 / /a\\040b rw - cgroup2 cgroup2 rw",
            b"41 31 0:38 / /mnt rw cgroup2",
            b"41 31 0:38 / /mnt rw -",
            b"",
        ] {
            assert_eq!(parse_mount(other), None, "{}", other.escape_ascii());
        }
    }

    fn me() -> Process {
        let tgid = std::process::id();
        Process { tgid, start: ProcDir::hold(tgid).unwrap().start().unwrap() }
    }

    #[test]
    fn this_process_is_its_users() {
        let standing = Standing::of(me(), None).unwrap();
        assert_eq!(standing.uid, Some(nix::unistd::geteuid().as_raw()));
        assert_eq!(standing.gid, Some(nix::unistd::getegid().as_raw()));
        let text = std::fs::read("/proc/self/cgroup").unwrap();
        assert!(standing.cgroup.is_some());
        assert_eq!(standing.cgroup, parse_cgroup(&text));
        assert!(!standing.may_be_kept(), "no generation tells when it changes");
        let gone = Process { start: me().start + 1, ..me() };
        assert_eq!(Standing::of(gone, None), Err(Cause::ProcessGone));
    }

    #[test]
    fn the_id_of_a_group_leads_to_its_path() {
        use std::os::unix::fs::MetadataExt;
        let groups = ControlGroups::find().unwrap();
        let id = |path: &Path| std::fs::metadata(path).unwrap().ino();
        assert_eq!(groups.path(id(&groups.place)).as_deref(), Some("/"));
        let name = format!("app-fw-test-{}", std::process::id());
        let (outer, inner) = (groups.place.join(&name), groups.place.join(&name).join("a b"));
        std::fs::create_dir_all(&inner).unwrap();
        let (of_outer, of_inner) = (id(&outer), id(&inner));
        let found = [of_outer, of_inner].map(|id| groups.path(id));
        std::fs::remove_dir(&inner).unwrap();
        std::fs::remove_dir(&outer).unwrap();
        assert_eq!(found[0].as_deref(), Some(format!("/{name}").as_str()));
        assert_eq!(found[1].as_deref(), Some(format!("/{name}/a b").as_str()));
        assert_eq!(groups.path(of_inner), None, "it is gone");
        assert_eq!(groups.path(u64::MAX), None);
    }
}
