//! How commands fail: what the thing is, what the cause is, and the next step.

use crate::document::finding::{Code, Finding, spelled};
use crate::pipeline::PipelineError;
use crate::store::StoreError;
use crate::store::materialise::MaterialiseError;
use crate::store::open::{OpenError, RevisionError};
use crate::store::promote::PromoteError;
use crate::store::share::ShareError;
use crate::store::snapshot::ScanError;

/// Exit codes, a documented part of the interface.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// Denied, or verification refused.
    pub const DENIED: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// A document, setting or repository is unreadable or invalid.
    pub const UNREADABLE: u8 = 3;
    /// A ref moved at the same time: try again.
    pub const MOVED: u8 = 4;
    /// The executor failed.
    pub const EXECUTOR: u8 = 5;
    /// CHECK failed.
    pub const CHECK: u8 = 6;
    /// What the command did is done, but its result could not be printed.
    pub const UNPRINTED: u8 = 7;
}

/// A command that could not be carried out.
#[derive(Debug)]
pub struct CommandError {
    /// The exit code.
    pub code: u8,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl CommandError {
    /// The command line is wrong.
    pub fn usage(message: &str) -> Self {
        let message = message.strip_prefix("error: ").unwrap_or(message);
        Self { code: exit::USAGE, findings: vec![Finding::error(Code::Usage, message)] }
    }

    /// A document or setting is wrong.
    pub fn found(finding: Finding) -> Self {
        Self { code: exit::UNREADABLE, findings: vec![finding] }
    }

    /// Documents are wrong.
    pub fn all(code: u8, findings: Vec<Finding>) -> Self {
        Self { code, findings }
    }

    fn failed(code: u8, error: &dyn std::error::Error, hint: Option<&str>) -> Self {
        let mut finding = Finding::error(Code::CommandFailed, spelled(error));
        finding.hint = hint.map(str::to_owned);
        Self { code, findings: vec![finding] }
    }
}

impl From<OpenError> for CommandError {
    fn from(error: OpenError) -> Self {
        let hint = match &error {
            OpenError::NotFound { .. } => "run git init first, or change into a repository".to_owned(),
            OpenError::DubiousOwnership { path } => {
                format!("if you trust it: git config --global --add safe.directory '{}'", path.display())
            }
            OpenError::RefStorage { .. } => "git refs migrate --ref-format=files converts it".to_owned(),
            OpenError::UnknownExtension { .. } => "a newer git cbia may know it".to_owned(),
            OpenError::Quarantine { path, .. } if path.as_os_str().as_encoded_bytes().contains(&b'\n') => {
                "git cbia cannot read what is pushed to such a place: rename the folder above it that has the line break"
                    .to_owned()
            }
            OpenError::Quarantine { .. } => {
                "git sets GIT_QUARANTINE_PATH for hooks; outside of one it must not be set".to_owned()
            }
            OpenError::Unreadable { .. } => "git status says what git thinks of it".to_owned(),
        };
        let mut failed = Self::failed(exit::UNREADABLE, &error, Some(&hint));
        if let OpenError::NotFound { .. } = error {
            // What the search says below this says the same again.
            failed.findings[0].message = error.to_string();
        }
        failed
    }
}

impl From<RevisionError> for CommandError {
    fn from(error: RevisionError) -> Self {
        let hint = match error {
            RevisionError::Unborn { .. } => {
                "git add -A and git commit make the first one; git cbia status looks at the work tree"
            }
            RevisionError::Unknown { .. } | RevisionError::Head { .. } => "git log shows the commits there are",
        };
        Self::failed(exit::UNREADABLE, &error, Some(hint))
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Moved { .. } => Self::failed(exit::MOVED, &error, Some("run the command again")),
            StoreError::Damaged { .. } => Self::failed(
                exit::UNREADABLE,
                &error,
                Some("fetch the ledger from a clone that has it, or look for it with git fsck --lost-found"),
            ),
            _ => Self::failed(exit::UNREADABLE, &error, None),
        }
    }
}

impl From<ShareError> for CommandError {
    fn from(error: ShareError) -> Self {
        match error {
            ShareError::Store(error) => error.into(),
            ShareError::Setting { key, .. } => {
                let finding = Finding::error(Code::SettingInvalid, spelled(&error)).at(key);
                Self::found(finding.hint("git config --show-origin --get-all says where it is set"))
            }
            ShareError::NoRemote { .. } => Self::failed(exit::USAGE, &error, None),
            ShareError::Transport { .. } => {
                let hint = "nothing that is here was changed; git ls-remote shows whether git itself reaches it";
                Self::found(Finding::error(Code::RemoteUnreachable, spelled(&error)).hint(hint))
            }
            ShareError::Rejected { .. } => {
                let hint = "what was taken before is there; run the command again";
                Self::all(exit::MOVED, vec![Finding::error(Code::RemoteUnreachable, spelled(&error)).hint(hint)])
            }
            ShareError::NothingSeen { .. } => {
                Self::failed(exit::UNREADABLE, &error, Some("git cbia fetch remembers what it sees"))
            }
        }
    }
}

impl From<PipelineError> for CommandError {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Store(error) => error.into(),
            PipelineError::Promote(error) => match &error {
                PromoteError::Moved(_) => Self::failed(exit::MOVED, &error, Some("nothing was promoted; run the command again")),
                PromoteError::IndexLocked(_) => {
                    let hint =
                        "another git is at work, or was killed: wait for it, or remove the file, and run the command again";
                    Self::failed(exit::MOVED, &error, Some(hint))
                }
                PromoteError::Lock(_) => Self::failed(exit::MOVED, &error, Some("run the command again")),
                _ => Self::failed(exit::UNREADABLE, &error, None),
            },
            PipelineError::Scan(ref inner) | PipelineError::Materialise(MaterialiseError::Compare(ref inner)) => {
                Self::failed(exit::UNREADABLE, &error, unconverted(inner).as_deref())
            }
            error => Self::failed(exit::UNREADABLE, &error, None),
        }
    }
}

/// The next step for a file that git converts and git cbia does not know how to: an encoding, or a filter.
fn unconverted(error: &ScanError) -> Option<String> {
    let ScanError::Filter { path, .. } = error else { return None };
    let path = path.as_str().replace('\'', r"'\''");
    Some(format!(
        "git check-attr -a '{path}' says what converts it; git cbia run --commit HEAD reads the commit, where nothing is converted"
    ))
}

impl From<crate::verify::VerifyError> for CommandError {
    fn from(error: crate::verify::VerifyError) -> Self {
        match error {
            crate::verify::VerifyError::Store(error) => error.into(),
            crate::verify::VerifyError::Pipeline(error) => error.into(),
        }
    }
}

crate::store::through_store!(CommandError: crate::store::refs::RefError, crate::store::object::ObjectError, crate::store::tree::TreeError);

impl From<ScanError> for CommandError {
    fn from(error: ScanError) -> Self {
        PipelineError::from(error).into()
    }
}
