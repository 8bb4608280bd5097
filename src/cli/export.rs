use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::artifact::{Artifacts, tar};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding, spelled};
use crate::document::flow_manifest::PackagedFile;
use crate::document::path::{RepoPath, printable};
use crate::pipeline::counted;
use crate::pipeline::finished::{self, Finished};
use crate::store::Store;

/// Take something out of the store, as a file.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write the package of a finished run as a tar archive.
    ///
    /// The archive is the same, byte for byte, wherever it is written. The run is verified first, and every file once more while it is
    /// written.
    Bundle {
        /// The run: first digits of its commit, or of its state key. By default that of the work tree's state.
        run: Option<String>,
        /// The file to write; - is standard output.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let Command::Bundle { run, output } = &args.command;
    bundle(context, run.as_deref(), output, ui)
}

fn bundle(context: &Context<'_>, run: Option<&str>, output: &Path, ui: &mut Ui) -> Result<u8, CommandError> {
    let to_stdout = output == Path::new("-");
    if to_stdout && ui.is_json() {
        return Err(CommandError::usage("the archive and the JSON document cannot both go to standard output: name a file"));
    }
    let refused = |findings| CommandError::all(exit::DENIED, findings);
    let listing = if run.is_none() && context.store.work_dir().is_none() {
        return Err(CommandError::usage("this repository is bare: it has no state of its own; name a run"));
    } else {
        super::promote::named(context, run)?.1.map_err(|finding| refused(vec![*finding]))?
    };
    let finished = finished::read(context.store, listing)?.map_err(refused)?;
    let package = Package::new(context.store, &finished);
    let failed = |error: &tar::TarError| {
        let finding = Finding::error(Code::CommandFailed, spelled(error));
        CommandError::found(finding.hint("nothing was left behind; git fsck says whether objects are damaged"))
    };
    if to_stdout {
        ui.stream(|out| tar::write(&package, out)).map_err(|error| failed(&error))?;
        return Ok(exit::DONE);
    }
    let target = context.environment.started_in(output)?;
    let sha256 = write(&target, |out| tar::write(&package, out).map_err(|error| failed(&error)))?;
    let flow = &finished.flow;
    let shown = printable(&output.to_string_lossy());
    ui.line(&format!("{sha256}  {shown}"));
    ui.note(&format!("{} of run {}", counted(flow.files.len(), "file", "files"), finished.listing.tip.to_hex_with_len(12)));
    let result = json!({
        "run": finished.listing.tip.to_string(), "output": shown, "sha256": sha256,
        "package_hash": flow.package_hash, "files": crate::document::json::to_value(&flow.files),
    });
    ui.result(result, &[]);
    Ok(exit::DONE)
}

/// Writes a file whole or not at all; its SHA-256.
fn write(target: &Path, fill: impl FnOnce(&mut dyn std::io::Write) -> Result<(), CommandError>) -> Result<Digest, CommandError> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |error: &std::io::Error| {
        let shown = printable(&target.to_string_lossy());
        CommandError::found(Finding::error(Code::CommandFailed, format!("{shown} cannot be written: {error}")).at(shown))
    };
    let folder = target.parent().unwrap_or(target);
    let made = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o666)).tempfile_in(folder);
    let file = made.map_err(|error| failed(&error))?;
    let mut out = BufWriter::new(file);
    fill(&mut out)?;
    let file = out.into_inner().map_err(|error| failed(error.error()))?;
    file.as_file().sync_all().map_err(|error| failed(&error))?;
    let mut archive = file.reopen().map_err(|error| failed(&error))?;
    let sha256 = Digest::of_reader(&mut archive).map_err(|error| failed(&error))?;
    file.persist(target).map_err(|error| failed(&error.error))?;
    Ok(sha256)
}

/// The package, one file at a time, each held against the manifest as it is read.
struct Package<'a> {
    store: &'a Store,
    finished: &'a Finished,
    files: BTreeMap<&'a RepoPath, &'a PackagedFile>,
}

impl<'a> Package<'a> {
    fn new(store: &'a Store, finished: &'a Finished) -> Self {
        Self { store, finished, files: finished.flow.files.iter().map(|file| (&file.path, file)).collect() }
    }
}

impl Artifacts for Package<'_> {
    fn paths(&self) -> Box<dyn Iterator<Item = &RepoPath> + '_> {
        Box::new(self.files.keys().copied())
    }

    fn bytes(&self, path: &RepoPath) -> Option<Cow<'_, [u8]>> {
        let file = self.files.get(path)?;
        let bytes = self.store.read_blob(&self.finished.blob(path)?, file.bytes).ok()?;
        (Digest::of(&bytes) == file.sha256).then_some(Cow::Owned(bytes))
    }
}
