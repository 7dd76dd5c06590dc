//! Stub.
use crate::Exit;
use crate::session::Session;
use crate::trouble::Trouble;
/// Stub.
#[derive(clap::Subcommand, Clone, PartialEq, Debug)]
pub enum ImportCommand {
    /// x
    Iptables,
}
impl ImportCommand {
    pub(crate) fn run(&self, _session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        Err(Trouble::OtherAnswer)
    }
}
