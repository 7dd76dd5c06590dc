//! Where the project's own binaries are.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The folder that holds `app-fw`, `ctl-fw` and `actor`: cargo's `target/debug` or `target/release`.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// The binaries in `folder`.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The binaries of the profile that the running program was built in. Cargo tells a test the path of its own
    /// package's binaries only, so the folder above `deps` is taken for all of them.
    ///
    /// # Errors
    /// The running program's path cannot be told.
    pub fn beside_this() -> Result<Self> {
        let this = std::env::current_exe().context("finding the running program")?;
        let folder = this.parent().context("a program without a folder")?;
        let above = if folder.ends_with("deps") { folder.parent() } else { Some(folder) };
        Ok(Self::in_folder(above.context("no folder above `deps`")?))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of the binary `name`.
    ///
    /// # Errors
    /// It has not been built.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        if !path.is_file() {
            bail!(
                "{} is missing: build it first (`cargo build -p app-fw -p ctl-fw -p actors`; `cargo xtask test` does)",
                path.display()
            );
        }
        Ok(path)
    }
}

/// Copies the ELF file `from` to `to` and adds bytes behind its end: it runs or loads as before and has another
/// SHA-256, so rules tell the two apart.
///
/// # Errors
/// Reading or writing failed.
pub fn copy_with_other_digest(from: &Path, to: &Path) -> Result<()> {
    let mut bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    // The name makes two copies differ from each other too.
    bytes.extend_from_slice(to.as_os_str().as_encoded_bytes());
    // Written to another name and moved: a descriptor of `to` open for writing in a process that another test thread
    // forks at this moment would make executing it fail with ETXTBSY.
    let mut file = tempfile::NamedTempFile::new_in(to.parent().context("no folder to copy to")?)?;
    file.write_all(&bytes)?;
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o755))?;
    file.into_temp_path().persist(to)?;
    Ok(())
}
