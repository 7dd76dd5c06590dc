//! Stub.
use crate::Exit;
use crate::session::Session;
use crate::trouble::Trouble;
/// Stub.
#[derive(clap::Args, Clone, PartialEq, Debug)]
pub struct ExplainArgs {}
impl ExplainArgs {
    pub(crate) fn run(&self, _session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        Err(Trouble::OtherAnswer)
    }
}
