//! Arguments that a verb passes on to the program that it builds and starts.

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed on.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) arguments: Vec<String>,
}
