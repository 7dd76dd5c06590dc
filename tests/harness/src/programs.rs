//! Where the project's own binaries are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::LIMIT;
use crate::process::run;

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
    // The name makes two copies differ from each other too. A shell writes the file: a descriptor of it open for writing in
    // this process would be inherited by whatever another thread starts at this moment, and until that has executed its
    // program nobody could execute the copy (ETXTBSY).
    let script = r#"cp -- "$1" "$2.new" && printf %s "$2" >>"$2.new" && chmod 755 "$2.new" && mv -- "$2.new" "$2""#;
    run(Command::new("sh").args(["-c", script, "sh"]).args([from, to]), LIMIT)?
        .ok()
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}
