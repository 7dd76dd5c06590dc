//! The hook that runs `refresh` after dpkg did something.

use std::fs;
use std::path::{Path, PathBuf};

use crate::trouble::Trouble;

/// Where apt reads its configuration.
pub(super) const DIRECTORY: &str = "/etc/apt/apt.conf.d";
const FILE: &str = "90app-fw";

/// Seconds it may take; apt waits for it.
const PATIENCE: u32 = 20;

/// Writes the hook, and tells where.
pub(super) fn install(dir: &Path) -> Result<PathBuf, Trouble> {
    let program = std::env::current_exe().map_err(|source| Trouble::Read { path: "/proc/self/exe".into(), source })?;
    let path = dir.join(FILE);
    let text = text(&program)?;
    super::super::ruleset::replace(&path, text.as_bytes())
        .and_then(|()| fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)))
        .map_err(|source| Trouble::Write { path: path.clone(), source })?;
    Ok(path)
}

/// Removes it.
pub(super) fn remove(dir: &Path) -> Result<PathBuf, Trouble> {
    let path = dir.join(FILE);
    match fs::remove_file(&path) {
        Ok(()) => Ok(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Trouble::Missing(format!("there is no {}", path.display())))
        }
        Err(source) => Err(Trouble::Write { path, source }),
    }
}

fn text(program: &Path) -> Result<String, Trouble> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/_.+-".contains(c);
    let name = program.to_str().filter(|name| name.chars().all(is_plain)).ok_or_else(|| {
        Trouble::Other(format!("{} has characters that mean something to a shell or to apt", program.display()))
    })?;
    Ok(format!(
        "// Written by ctl-fw refresh --install-hook: rules of app-fw follow the files of upgraded packages.\n\
         // It talks to app-fw by a Unix socket only, takes {PATIENCE} seconds at most, and never fails.\n\
         DPkg::Post-Invoke {{ \"if test -x {name}; then \
         timeout --kill-after=1 {PATIENCE} {name} refresh --dpkg --quiet || true; fi\"; }};\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn apt_understands_the_hook() {
        let dir = tempfile::tempdir().unwrap();
        let path = install(dir.path()).unwrap();
        if let Ok(output) = Command::new("apt-config").arg("-c").arg(&path).arg("dump").output() {
            let dump = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(dump.contains("DPkg::Post-Invoke:: \"if test -x /") && dump.contains("|| true; fi\""), "{dump}");
        }
        assert!(text(Path::new("/a b")).is_err() && text(Path::new("/a\"")).is_err());
        assert_eq!(remove(dir.path()).unwrap(), path);
        assert!(matches!(remove(dir.path()), Err(Trouble::Missing(_))));
    }
}
