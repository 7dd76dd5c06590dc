//! A Docker of the test's own: dockerd in one of a world's network namespaces, where docker0 is too.
//!
//! dockerd also gets a mount namespace and a pid namespace. So whatever way it ends, all containers, their supervisors and
//! their mounts end with it: the kernel sees to that. What it keeps is in the world's folder. Only control groups stay
//! behind a run that was killed; the next one sweeps them.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::daemon::{Watch, wait_listening};
use crate::process::{Captured, run, wait_readable};
use crate::{Actor, LIMIT, Ns, Running, World};

/// Prefix of the containers' IPv6 addresses. They are not translated: the peer has a route back.
pub const SUBNET6: &str = "fd00:af:0:d::/64";
/// The image that every container is made of: busybox, curl, wget, the actor and their libraries.
const IMAGE: &str = "app-fw-test";
/// Where programs are in the image.
const IN_IMAGE: &str = "usr/bin";
/// Where dockerd is looked for, with docker, containerd and runc.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Docker keeps sockets under /run and a key in /etc/docker, whatever its options say: it shall have its own of both.
const START: &str = r#"mount -t tmpfs tmpfs /run && mkdir /run/etc /run/work &&
    mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work overlay /etc && exec dockerd "$@""#;

/// A running dockerd. Dropping it ends it and all its containers.
#[derive(Debug)]
pub struct Docker<'w> {
    world: &'w World,
    ns: Ns,
    running: Running,
    folder: PathBuf,
    /// Name of its control group.
    group: String,
}

impl<'w> Docker<'w> {
    /// Starts dockerd in a namespace of `world` and imports the image.
    ///
    /// Containers reach the world's peer: by IPv4 under the namespace's own address, by IPv6 under one of [`SUBNET6`].
    /// They are told to ask the peer for names.
    ///
    /// # Errors
    /// Docker is not installed or does not start here; the error has what it said.
    pub fn start(world: &'w World, ns: Ns) -> Result<Self> {
        let folder = world.folder().join("docker");
        fs::create_dir(&folder)?;
        let (socket, messages) = (folder.join("docker.sock"), folder.join("dockerd.stderr"));
        // Not the machine's settings.
        fs::write(folder.join("daemon.json"), "{}")?;
        let group = format!("{}-docker", world.name());
        // docker0 would not answer for its IPv6 address for a second after the first container came.
        world.namespace(ns).sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        let changes = Watch::new(&folder)?;
        let mut running = Running::start(
            world
                .command(
                    ns,
                    &["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c"],
                )?
                .args([START, "sh"])
                .args(["--dns", &world.peer4().to_string(), "--ipv6", "--fixed-cidr-v6", SUBNET6])
                .args(["--cgroup-parent", &format!("/{group}"), "--host", &format!("unix://{}", socket.display())])
                .arg("--data-root")
                .arg(folder.join("data"))
                .arg("--exec-root")
                .arg(folder.join("exec"))
                .arg("--pidfile")
                .arg(folder.join("dockerd.pid"))
                // Where systemd runs, Docker would have it make control groups outside ours.
                .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
                .arg("--config-file")
                .arg(folder.join("daemon.json"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(&messages)?),
        )?;
        let listens = wait_listening(&mut running, &socket, &changes, None);
        let docker = Self { world, ns, running, folder, group };
        // It listens before it is ready, and answers then.
        listens.and_then(|()| docker.docker(&["version"])?.ok()).and_then(|_| docker.import()).with_context(|| {
            format!("starting Docker (`apt-get install docker.io busybox-static`)\n{}", docker.messages())
        })?;
        world.namespace(Ns::Peer).ip(&format!("route replace {SUBNET6} via {}", crate::world::LOCAL6))?;
        Ok(docker)
    }

    /// Runs the command-line client.
    ///
    /// # Errors
    /// It could not be started, or hung. A non-zero exit is no error.
    pub fn docker(&self, arguments: &[&str]) -> Result<Captured> {
        run(&mut self.command(arguments)?, LIMIT)
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.world.command(self.ns, &["docker"])?;
        command.env("PATH", PATH).env("DOCKER_HOST", self.host()).args(arguments);
        Ok(command)
    }

    fn host(&self) -> String {
        format!("unix://{}/docker.sock", self.folder.display())
    }

    /// Runs ctl-fw as somebody who uses this Docker.
    ///
    /// # Errors
    /// As [`World::ctl`].
    pub fn ctl(&self, arguments: &[&str]) -> Result<Captured> {
        let mut command = self.world.ctl_command(Ns::Local)?;
        run(command.env("DOCKER_HOST", self.host()).args(arguments), LIMIT)
    }

    /// What dockerd said on standard error so far.
    pub fn messages(&self) -> String {
        fs::read_to_string(self.folder.join("dockerd.stderr")).unwrap_or_default()
    }

    /// The process id of dockerd in the caller's pid namespace.
    ///
    /// # Errors
    /// It has ended.
    pub fn pid(&self) -> Result<u32> {
        only_child(self.running.pid())
    }

    /// Starts a container that does nothing. `options` are for `docker run`.
    ///
    /// # Errors
    /// Docker refused.
    pub fn container(&self, options: &[&str]) -> Result<Container<'_>> {
        let mut arguments = vec!["run", "--detach"];
        arguments.extend(options);
        arguments.extend([IMAGE, "busybox", "sleep", "1d"]);
        let id = self.docker(&arguments)?.ok()?.trim().to_owned();
        let mut container = Container { docker: self, id, pid: 0 };
        container.pid = container.first_process()?;
        Ok(container)
    }

    fn import(&self) -> Result<()> {
        let (root, archive) = (self.folder.join("root"), self.folder.join("root.tar"));
        let bin = root.join("bin");
        fs::create_dir_all(root.join("tmp"))?;
        fs::create_dir_all(&bin)?;
        fs::copy("/bin/busybox", bin.join("busybox")).context("/bin/busybox, of the package busybox-static")?;
        symlink("busybox", bin.join("sh"))?;
        let actor = self.world.programs().path("actor")?;
        for program in [Path::new("/usr/bin/curl"), Path::new("/usr/bin/wget"), &actor] {
            install(&root, program)?;
        }
        run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."), LIMIT)?.ok()?;
        let archive = archive.to_str().context("a folder whose name is not text")?;
        self.docker(&["import", archive, IMAGE])?.ok().map(drop)
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- dockerd said:\n{}", self.messages().trim_end());
        }
        if let Err(error) = self.end() {
            eprintln!("cleaning up Docker: {error:#}");
        }
    }
}

impl Docker<'_> {
    fn end(&mut self) -> Result<()> {
        // Process 1 of a pid namespace ends when all others in it have.
        let first = self.pid().ok().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let first = first.map(|pid| pidfd_open(pid, PidfdFlags::empty())).transpose();
        self.running.kill()?;
        if let Ok(Some(first)) = first {
            use std::os::fd::AsFd;
            ensure!(wait_readable(&[first.as_fd()], Instant::now() + LIMIT)?[0], "containers do not end");
        }
        remove_cgroups(&self.group)
    }
}

/// Copies a program and its libraries into a root file system.
fn install(root: &Path, program: &Path) -> Result<()> {
    let name = program.file_name().context("a program without a name")?;
    let folder = root.join(IN_IMAGE);
    fs::create_dir_all(&folder)?;
    fs::copy(program, folder.join(name)).with_context(|| program.display().to_string())?;
    for library in run(Command::new("ldd").arg(program), LIMIT)?.ok()?.split_whitespace().filter(|w| w.starts_with('/'))
    {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a library without a folder")?)?;
        fs::copy(library, to).with_context(|| library.to_owned())?;
    }
    Ok(())
}

fn only_child(parent: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    children.trim().parse().with_context(|| format!("children of {parent}: `{children}`"))
}

/// A running container. Dropping it removes it.
#[derive(Debug)]
pub struct Container<'d> {
    docker: &'d Docker<'d>,
    id: String,
    pid: u32,
}

impl Container<'_> {
    /// The process id of its first process in the caller's pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The file of its network namespace, `/proc/PID/ns/net`.
    pub fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.pid)
    }

    /// Whether a process, named in the caller's pid namespace, belongs to it.
    pub fn has(&self, pid: u64) -> bool {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.contains(&self.id)
    }

    /// Runs a command inside to its end.
    ///
    /// # Errors
    /// It could not be started, or hung. A non-zero exit is no error.
    pub fn exec(&self, argv: &[&str], limit: Duration) -> Result<Captured> {
        let mut arguments = vec!["exec", &self.id];
        arguments.extend(argv);
        run(&mut self.docker.command(&arguments)?, limit)
    }

    /// Starts the image's actor inside. Its [`Actor::pid`] is that of the client outside.
    ///
    /// # Errors
    /// As [`Actor::start`].
    pub fn actor(&self, arguments: &[&str]) -> Result<Actor> {
        let mut line = vec!["exec", "--interactive", &self.id, "/usr/bin/actor"];
        line.extend(arguments);
        Actor::from_command(&mut self.docker.command(&line)?)
    }

    /// Gives a file of the container another digest, in place: same name, and on an overlay the same inode number.
    ///
    /// # Errors
    /// It cannot be written to.
    pub fn tamper(&self, file: &str) -> Result<()> {
        self.exec(&["sh", "-c", "printf tampered >>\"$1\"", "sh", file], LIMIT)?.ok().map(drop)
    }

    /// Docker tells process ids of its own pid namespace; control groups are named after the container everywhere.
    fn first_process(&self) -> Result<u32> {
        let processes = fs::read_dir("/proc")?.flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_first = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            // proc_pid_status(5): the process's id in every pid namespace, the innermost last.
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            self.has(u64::from(*pid)) && ids.and_then(|ids| ids.split_whitespace().last()) == Some("1")
        };
        pids.into_iter().find(is_first).with_context(|| format!("no process 1 in the container {}", self.id))
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        match self.docker.docker(&["rm", "--force", &self.id]).and_then(Captured::ok) {
            Ok(_) => {}
            Err(error) => eprintln!("removing a container: {error:#}"),
        }
    }
}

/// Removes control groups named `PREFIX-<pid>-...` whose process is gone; returns their paths.
///
/// # Errors
/// Something still runs in one.
pub(crate) fn sweep_cgroups(prefix: &str) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for root in cgroup_roots()? {
        for name in crate::netns::leftovers(&root, prefix) {
            let path = root.join(name);
            remove_cgroup(&path)?;
            removed.push(path.display().to_string());
        }
    }
    Ok(removed)
}

fn remove_cgroups(name: &str) -> Result<()> {
    cgroup_roots()?.iter().try_for_each(|root| remove_cgroup(&root.join(name)))
}

/// Where control groups are mounted: one hierarchy, or one for each controller.
fn cgroup_roots() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // proc_pid_mountinfo(5): the mount point is the fifth word, the file system's type comes behind a lone hyphen.
    let root = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup").then(|| mount.split_whitespace().nth(4).map(PathBuf::from))?
    };
    Ok(mounts.lines().filter_map(root).collect())
}

/// A control group and those in it. What is not there is no error.
fn remove_cgroup(path: &Path) -> Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_cgroup(&entry.path())?;
    }
    let deadline = Instant::now() + LIMIT;
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // A process that has ended leaves its group a moment later; not every hierarchy has an event for that.
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => bail!("removing {}: {error}", path.display()),
        }
    }
}
