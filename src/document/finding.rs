//! Findings: what a gate or a phase has to say about its documents.
//!
//! A rule returns findings; it never prints, exits, or stops at the first. Codes are stable: scripts match them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::path::printable;

macro_rules! codes {
    ($($(#[$class:ident])? $variant:ident = $text:literal: $meaning:literal,)+) => {
        /// The stable code of a finding.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)+
        }

        impl Code {
            /// Every code, in the order of the reference page.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)+];

            /// The code as it is printed: kebab-case.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)+ }
            }

            /// The code that is printed as `text`.
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| code.as_str() == text)
            }

            /// What it means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$variant => $meaning,)+ }
            }

            /// Whether it says that a document cannot be read, which is exit code 3, rather than that
            /// generation is denied, which is exit code 1.
            pub fn is_unreadable(self) -> bool {
                match self { $(Code::$variant => codes!(@class $($class)?),)+ }
            }
        }
    };
    (@class unreadable) => { true };
    (@class) => { false };
}

codes! {
    Usage = "usage": "The command line is wrong.",
    CommandFailed = "command-failed": "A command could not be carried out.",
    #[unreadable] DocumentMissing = "document-missing": "A document that the pipeline cannot do without is not there.",
    #[unreadable] DocumentMalformed = "document-malformed": "A document is not strict JSON: syntax, encoding, a duplicate key, or a number that does not survive a double.",
    #[unreadable] DocumentSchema = "document-schema": "A document does not satisfy its JSON Schema.",
    #[unreadable] SchemaInvalid = "schema-invalid": "A JSON Schema of the repository cannot be used.",
    #[unreadable] PathInvalid = "path-invalid": "A path is one that git would not check out everywhere.",
    #[unreadable] PatternInvalid = "pattern-invalid": "A path pattern cannot be used.",
    #[unreadable] InputNotRegular = "input-not-regular": "An input is a symbolic link, a submodule, or another thing that is not a regular file.",
    #[unreadable] InputTooLarge = "input-too-large": "The inputs are more or larger than the limits.",
    #[unreadable] InputConflicted = "input-conflicted": "An input has an unresolved merge conflict.",
    PathCollision = "path-collision": "Two paths of one set are the same on a case-insensitive file system, or one is a folder of the other.",
    AuthorityNotFrozen = "authority-not-frozen": "The authority ledger is not frozen.",
    AuthorityFrozen = "authority-frozen": "The authority ledger is frozen, and cannot be changed.",
    AuthorityLocatorMissing = "authority-locator-missing": "An authority has no source.locator.",
    AuthorityHashMissing = "authority-hash-missing": "An authority has no hash.",
    AuthorityHashInvalid = "authority-hash-invalid": "An authority's hash is not a SHA-256 digest.",
    AuthorityIdDuplicate = "authority-id-duplicate": "Two authorities have the same id.",
    AuthorityMissing = "authority-missing": "The file of an authority is not there.",
    AuthorityHashMismatch = "authority-hash-mismatch": "The bytes of an authority are not the ones that were pinned.",
    AuthoritySetEmpty = "authority-set-empty": "The authority ledger has no authorities.",
    EvidenceHashMismatch = "evidence-hash-mismatch": "An objective's evidence names a hash that is not its authority's.",
    EvidenceQuoteMissing = "evidence-quote-missing": "A quote that an objective gives as evidence does not stand in its authority.",
    EvidenceQuoteHashMismatch = "evidence-quote-hash-mismatch": "The hash of a quote is missing or wrong.",
    ObjectiveIdDuplicate = "objective-id-duplicate": "Two objectives have the same id.",
    ObjectiveAuthorityUnknown = "objective-authority-unknown": "An objective draws from an authority that the ledger does not have.",
    ArtifactObjectiveUnknown = "artifact-objective-unknown": "An artifact names an objective that does not exist.",
    ArtifactObjectivesEmpty = "artifact-objectives-empty": "An artifact names no objective.",
    ArtifactDuplicate = "artifact-duplicate": "Two artifacts have the same path.",
    ArtifactNotGenerated = "artifact-not-generated": "An artifact lies outside the patterns of gen.generated.",
    ArtifactIsInput = "artifact-is-input": "An artifact is also an input of the run.",
    ArtifactIsAuthority = "artifact-is-authority": "An artifact is also an authority.",
    ArtifactPathReserved = "artifact-path-reserved": "An artifact lies at a path that git cbia keeps for itself.",
    InputIsGenerated = "input-is-generated": "An input lies where gen.generated says that files are generated.",
    TemplateMissing = "template-missing": "An artifact's template is not there, or not declared.",
    DependencyGraphUnknownNode = "dependency-graph-unknown-node": "An edge of the dependency graph names a node that does not exist.",
    DependencyGraphDuplicateNode = "dependency-graph-duplicate-node": "The dependency graph names a node twice.",
    DependencyGraphCycle = "dependency-graph-cycle": "The dependency graph has a cycle.",
    ExecutionDagUnknownPhase = "execution-dag-unknown-phase": "The execution DAG names a phase that does not exist.",
    ExecutionDagDuplicatePhase = "execution-dag-duplicate-phase": "The execution DAG names a phase twice.",
    ExecutionDagPhaseMissing = "execution-dag-phase-missing": "The execution DAG leaves out a phase that cannot be left out.",
    ExecutionDagCycle = "execution-dag-cycle": "The execution DAG has a cycle.",
    ExecutionDagOrder = "execution-dag-order": "The execution DAG breaks the canonical order of the phases.",
    KernelDenied = "kernel-denied": "The control kernel's policy does not allow the control state.",
    AssuranceDenied = "assurance-denied": "The assurance policy does not allow the run.",
    PolicyDenied = "policy-denied": "A policy does not allow what was asked of it.",
    PolicyMissing = "policy-missing": "A policy package that must decide is not in the bundle.",
    PolicyUndefined = "policy-undefined": "The deciding rule of a policy is undefined.",
    PolicyNotBoolean = "policy-not-boolean": "The deciding rule of a policy is not exactly true or false.",
    PolicyInvalid = "policy-invalid": "A policy file cannot be parsed.",
    PolicyForbidden = "policy-forbidden": "A policy uses something that would make its decision wrong or irreproducible.",
    PolicyError = "policy-error": "The evaluation of a policy ended without a clean answer.",
    PolicyTestFailed = "policy-test-failed": "A policy test does not hold.",
    CapsuleInvalid = "capsule-invalid": "The capsule does not satisfy its schema.",
    ExecutorUnavailable = "executor-unavailable": "The configured executor cannot be used.",
    ExecutorNotFound = "executor-not-found": "The executor's program or script cannot be found or started, or is not the one that was admitted.",
    ExecutorVariableMissing = "executor-variable-missing": "A variable that the executor is to be given is not set, or is not text.",
    ExecutorFailed = "executor-failed": "The executor ended with an error.",
    ExecutorKilled = "executor-killed": "The executor was killed by a signal, or because it went beyond a limit.",
    ExecutorTimeout = "executor-timeout": "The executor took longer than it may, and was killed.",
    ExecutorInputChanged = "executor-input-changed": "The executor changed or deleted one of its inputs.",
    ExecutorLogCut = "executor-log-cut": "The executor printed more than is kept with the record.",
    SandboxUnavailable = "sandbox-unavailable": "The system cannot confine the executor as its configuration requires.",
    ConfinementDenied = "confinement-denied": "The repository's policy does not allow the executor to run at the level of confinement that was reached.",
    ScratchFailed = "scratch-failed": "The executor's scratch directory cannot be made or read.",
    RequestInvalid = "request-invalid": "The request to the executor does not satisfy its schema.",
    ReportMissing = "report-missing": "The executor left no report.",
    ReportInvalid = "report-invalid": "The executor's report is too large, is not strict JSON, or does not satisfy its schema.",
    OutputMissing = "output-missing": "An artifact was not produced, or not reported.",
    OutputUndeclared = "output-undeclared": "The executor left or reported a file that was not declared.",
    OutputNotRegular = "output-not-regular": "The executor left something that is not a regular file.",
    OutputHardLink = "output-hard-link": "The executor left a file that has another name too.",
    OutputHoldsSecret = "output-holds-secret": "An artifact or the report holds the value of a variable that is passed on and must not be kept.",
    TemplateFailed = "template-failed": "A template could not be rendered.",
    OutputTooLarge = "output-too-large": "The outputs of GEN are more or larger than the limits.",
    OutputMismatch = "output-mismatch": "What an executor reports is not what it produced.",
    ArtifactUnreadable = "artifact-unreadable": "The bytes of an artifact cannot be had.",
    ArtifactMissing = "artifact-missing": "A declared artifact is not there.",
    ArtifactUndeclared = "artifact-undeclared": "An artifact is there that the pipeline does not declare.",
    ArtifactEncoding = "artifact-encoding": "An artifact that is declared as text is not UTF-8, or holds a NUL.",
    ArtifactMalformed = "artifact-malformed": "An artifact that is to be JSON is not strict JSON.",
    ArtifactNotNormal = "artifact-not-normal": "An artifact is not in the normal form of its declared format.",
    ArtifactSchema = "artifact-schema": "An artifact does not satisfy its JSON Schema.",
    ArtifactFieldMissing = "artifact-field-missing": "An artifact lacks a member that its JSON Schema requires.",
    #[unreadable] SchemaMissing = "schema-missing": "A JSON Schema that a rule names is not there.",
    SchemaUnused = "schema-unused": "A schema rule matches no artifact.",
    HashLinkMissing = "hash-link-missing": "An artifact is not accounted for in one of the documents that must name it.",
    HashLinkMismatch = "hash-link-mismatch": "Two documents, or a document and the bytes, disagree on an artifact.",
    HashLinkDangling = "hash-link-dangling": "A document names an artifact that is not there.",
    ClosureMismatch = "closure-mismatch": "What the outputs manifest says that an artifact stands for is not what was declared.",
    FindingsCut = "findings-cut": "There are more findings than are told.",
    RepairPath = "repair-path": "A repair touches a file outside its allow-list.",
    RepairRemoved = "repair-removed": "A repair removes a file.",
    RepairHunk = "repair-hunk": "A repair changes lines outside the ranges that it may change.",
    RepairLines = "repair-lines": "A repair changes more lines than it may.",
    RepairMode = "repair-mode": "A repair changes the mode of a file.",
    RepairAttempts = "repair-attempts": "A repair was tried more often than it may be.",
    ProvenanceMissing = "provenance-missing": "Nothing says what an artifact stands for.",
    VerdictMalformed = "verdict-malformed": "A selection's verdict is not {keep, reason} with a reason that says something.",
    VerdictMissing = "verdict-missing": "A selection says nothing about an artifact.",
    VerdictUnknown = "verdict-unknown": "A selection judges an artifact that is not there.",
    LayoutUnplaced = "layout-unplaced": "No layout rule places an accepted artifact.",
    LayoutDestination = "layout-destination": "A layout rule leads to a place where no package may lie.",
    LayoutCollision = "layout-collision": "Two files of a package, or a file of it and an artifact, would be one.",
    CacheEntryInvalid = "cache-entry-invalid": "A stored cache entry is not what its key says.",
    RunInvalid = "run-invalid": "A stored run is not what its state says.",
    ReuseDropped = "reuse-dropped": "Artifacts of earlier results were made with other tools than now, and were not used.",
    NonDeterministic = "non-deterministic": "The same state and executor gave two different results.",
    ArtifactEdited = "artifact-edited": "A generated file was edited by somebody, and would be overwritten.",
    ArtifactBlocked = "artifact-blocked": "Something stands in the way of a file that is to be written.",
    LockStale = "lock-stale": "A lock that a killed process left was put aside.",
    RefDamaged = "ref-damaged": "A ref of git cbia cannot be read.",
    RefDangling = "ref-dangling": "A ref of git cbia points at an object that is lost.",
    LedgerBroken = "ledger-broken": "A record of a ledger, or the run that it names, is lost or damaged, or the record says what its run does not.",
    BundleInvalid = "bundle-invalid": "A bundle is damaged, or is not one of git cbia.",
    LedgerTorn = "ledger-torn": "The newest ledger record was torn and was left out.",
    LedgerRewound = "ledger-rewound": "A ledger has lost records that it had before.",
    LedgerDeleted = "ledger-deleted": "A ledger that was on a remote is there no more.",
    RemoteUnreachable = "remote-unreachable": "A remote could not be asked, or did not take what was pushed.",
    SharedRefused = "shared-refused": "What a remote offers is not what its name says, and was not used.",
    SharedConflict = "shared-conflict": "A remote holds another result under a key that is known here.",
    SharedUntrusted = "shared-untrusted": "What a remote offers is not attested by an allowed signer, and was not used.",
    RunMissing = "run-missing": "There is no stored run of what was asked for.",
    RunIncomplete = "run-incomplete": "A run does not reach EVAL through every phase, or lacks evidence.",
    CheckNotPassed = "check-not-passed": "A run's CHECK did not pass, or its report is about other artifacts.",
    RunOfOtherState = "run-of-other-state": "A run that is promoted is of another state than the work tree.",
    PromotionUndeclared = "promotion-undeclared": "The pipeline does not declare where artifacts may be promoted to.",
    PromotionDenied = "promotion-denied": "The promotion policy does not allow the promotion.",
    PromotionApart = "promotion-apart": "The branch has what a run made, and another state than the run was made from.",
    DestinationNotAllowed = "destination-not-allowed": "A file would be promoted to a place where it may not go.",
    DestinationDirty = "destination-dirty": "A destination has changes that are in no commit and are not what would be promoted.",
    DestinationBlocked = "destination-blocked": "Something stands in the way of a file that would be promoted.",
    OperationInProgress = "operation-in-progress": "A merge, rebase, cherry-pick or revert is in progress.",
    PhaseNotRun = "phase-not-run": "A phase is configured that the execution DAG leaves out.",
    AuditIncomplete = "audit-incomplete": "A document that the audit bundle's manifest names is not part of the run.",
    GenUnadmitted = "gen-unadmitted": "A file lies where files are generated, and no admitted run produced it.",
    GenEdited = "gen-edited": "A generated file is not what the run of its state produced.",
    GenStaleAuthority = "gen-stale-authority": "A generated file was produced from an authority that has other bytes now.",
    GenStalePolicy = "gen-stale-policy": "A generated file was admitted by other policies than those of its commit.",
    GenStaleExecutor = "gen-stale-executor": "A generated file was produced by another executor than its commit configures.",
    GenStaleInput = "gen-stale-input": "A generated file was produced from inputs, templates or objectives that are others now.",
    GenMissing = "gen-missing": "A declared artifact was deleted, or was never committed.",
    GenUndeclared = "gen-undeclared": "A file lies where files are generated, and no artifact is declared there.",
    GenWithdrawn = "gen-withdrawn": "A file lies where files were generated, and the same change takes back the declaration.",
    GenNotRegular = "gen-not-regular": "A symbolic link, a submodule, an executable or another odd thing lies where a file is generated.",
    EvidenceMissing = "evidence-missing": "No run of this state is known.",
    StateDenied = "state-denied": "The gates do not admit the state of a commit.",
    RunRenamed = "run-renamed": "A stored run is that of another state or executor than its name says.",
    CapsuleForged = "capsule-forged": "The capsule of a stored run is not the one that its state gives.",
    DecisionForged = "decision-forged": "The decision of a stored run is not the one that the policies give.",
    PhaseForged = "phase-forged": "A phase commit of a stored run is not the one that its state gives.",
    CheckWeakened = "check-weakened": "A changed artifact satisfies the schemas of its own commit, and not those before it.",
    PolicyWeakened = "policy-weakened": "A change passes by its own policies, and not by those before it.",
    PushDenied = "push-denied": "The push policy does not allow an update.",
    RefRewound = "ref-rewound": "A ref that only grows would lose something.",
    RefDeleted = "ref-deleted": "A ref that holds evidence would be deleted.",
    RefMalformed = "ref-malformed": "A ref of git cbia has a name or a target that it cannot have.",
    LedgerMalformed = "ledger-malformed": "A ledger would go on with something that is no record.",
    RefPrivate = "ref-private": "A ref that belongs to one clone alone is pushed.",
    ReplaceRef = "replace-ref": "A replacement of objects is pushed.",
    HistoryShallow = "history-shallow": "The history of what is pushed is cut off.",
    PushTooLarge = "push-too-large": "A push is more work to verify than is done for one.",
    TreeUnreadable = "tree-unreadable": "A commit, tree or file of what is verified cannot be read.",
    EvidenceNotUploaded = "evidence-not-uploaded": "The evidence could not be pushed before what rests on it.",
    MemoInvalid = "memo-invalid": "A memoized decision is not what its key says, and was not used.",
    #[unreadable] SettingInvalid = "setting-invalid": "A setting of git cbia has a value that means nothing.",
    #[unreadable] SignersInvalid = "signers-invalid": "A file of allowed signers has a line that git cannot use, or names nobody.",
    SigningUnavailable = "signing-unavailable": "git has no key that it could sign with, or could not use it.",
    AttestationInvalid = "attestation-invalid": "An attestation does not count: it is not a signature of this run by an allowed signer.",
    AttestationMissing = "attestation-missing": "A run is attested by fewer allowed signers than it needs.",
    HookBlocked = "hook-blocked": "A hook cannot be installed or removed without losing something.",
    HookManaged = "hook-managed": "A hook manager writes the hooks here; its own configuration has to call git cbia.",
    HookInactive = "hook-inactive": "git does not run the hook of git cbia here.",
    Unprotected = "unprotected": "Something that should protect this repository does not, or cannot be seen from here.",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("unknown finding code '{}'", printable(&text))))
    }
}

/// How much a finding matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It refuses.
    Error,
    /// It is told, and the command goes on.
    Warning,
}

/// One finding: DESIGN section 11. Members that do not apply are null.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// The stable code.
    pub code: Code,
    /// Whether it refuses.
    pub severity: Severity,
    /// What is wrong, for a person who has never read the code.
    pub message: String,
    /// The document or file it is about, as a repository path or ref name.
    pub path: Option<String>,
    /// RFC 6901 pointer into that document.
    pub pointer: Option<String>,
    /// Line, from 1.
    pub line: Option<u64>,
    /// Column in bytes, from 1.
    pub column: Option<u64>,
    /// What would have been right.
    pub expected: Option<String>,
    /// What was there.
    pub got: Option<String>,
    /// The next step.
    pub hint: Option<String>,
}

impl Finding {
    /// A finding that refuses.
    pub fn error(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: message.into(),
            path: None,
            pointer: None,
            line: None,
            column: None,
            expected: None,
            got: None,
            hint: None,
        }
    }

    /// A finding that is told, and does not refuse.
    pub fn warning(code: Code, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// Names the document it is about.
    pub fn at(mut self, path: impl fmt::Display) -> Self {
        self.path = Some(path.to_string());
        self
    }

    /// Points into the document, and finds the line in its text.
    pub fn pointing(mut self, pointer: impl Into<String>, text: &[u8]) -> Self {
        let pointer = pointer.into();
        let (line, column) = super::json::locate(text, &pointer);
        self.pointer = Some(pointer);
        self.on(line, column)
    }

    /// Gives line and column, from 1.
    pub fn on(mut self, line: u64, column: u64) -> Self {
        self.line = Some(line);
        self.column = Some(column);
        self
    }

    /// What would have been right, and what was there.
    pub fn expected(mut self, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        self.expected = Some(expected.to_string());
        self.got = Some(got.to_string());
        self
    }

    /// The next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The place it names, as `path:line:column`, escaped for a terminal.
    pub fn place(&self) -> Option<String> {
        let path = printable(self.path.as_deref()?);
        Some(match (self.line, self.column) {
            (Some(line), Some(column)) => format!("{path}:{line}:{column}"),
            _ => path,
        })
    }
}

/// Whether any finding refuses.
pub fn refuses(findings: &[Finding]) -> bool {
    findings.iter().any(|f| f.severity == Severity::Error)
}

/// An error with its causes, in one line.
pub fn spelled(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_kebab_case() {
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::ALL {
            let text = code.as_str();
            assert!(seen.insert(text), "{text} is used twice");
            assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{text}");
            assert!(code.meaning().ends_with('.'), "{text}");
        }
    }

    #[test]
    fn the_reference_page_has_every_code() {
        let page = include_str!("../../docs/findings.md");
        for unreadable in [true, false] {
            let rows = Code::ALL.iter().filter(|code| code.is_unreadable() == unreadable);
            let rows: String = rows.map(|code| format!("| `{code}` | {} |\n", code.meaning())).collect();
            let table = format!("| code | meaning |\n|---|---|\n{rows}");
            assert!(page.contains(&table), "docs/findings.md lacks this table:\n{table}");
        }
    }

    #[test]
    fn a_place_is_escaped() {
        let finding = Finding::error(Code::PathInvalid, "x").at("a\u{1b}b").pointing("/a", b"{\"a\":1}");
        assert_eq!(finding.place().unwrap(), "a\\u{1b}b:1:6");
    }
}
