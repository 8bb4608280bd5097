//! `control/pipeline.json`: the inputs, the artifacts, and the configuration of each phase.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::path::RepoPath;

/// The declaration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Version of this format.
    pub schema_version: String,
    /// Patterns of further files that GEN may see.
    #[serde(default)]
    pub inputs: Vec<String>,
    /// What GEN produces.
    pub r#gen: Gen,
    /// CHECK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// REPAIR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<Repair>,
    /// STRUCT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#struct: Option<Struct>,
    /// SELECT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Select>,
    /// FLOW.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<Flow>,
    /// PROMOTE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promote: Option<Promote>,
}

/// Which files a declaration is about, and nothing else of it: a fraction of the time that reading the whole takes. For bytes that were checked as a
/// declaration before; a path is text here.
#[derive(Debug, Deserialize)]
pub struct Outline<'a> {
    /// Patterns of further files that GEN may see.
    #[serde(borrow, default)]
    pub inputs: Vec<Text<'a>>,
    /// What GEN produces.
    #[serde(borrow)]
    pub r#gen: OutlineGen<'a>,
    /// CHECK.
    #[serde(borrow, default)]
    pub check: OutlineCheck<'a>,
}

/// The same of CHECK.
#[derive(Debug, Default, Deserialize)]
pub struct OutlineCheck<'a> {
    /// In declared order.
    #[serde(borrow, default)]
    pub schemas: Vec<OutlineRule<'a>>,
}

/// The same of a schema and the artifacts it applies to.
#[derive(Debug, Deserialize)]
pub struct OutlineRule<'a> {
    /// Path of a JSON Schema.
    #[serde(borrow)]
    pub schema: Text<'a>,
}

/// The same of what GEN produces.
#[derive(Debug, Deserialize)]
pub struct OutlineGen<'a> {
    /// Patterns of the paths that are generated.
    #[serde(borrow)]
    pub generated: Vec<Text<'a>>,
    /// The artifacts.
    #[serde(borrow)]
    pub artifacts: Vec<OutlineArtifact<'a>>,
}

/// The same of one artifact.
#[derive(Debug, Deserialize)]
pub struct OutlineArtifact<'a> {
    /// Where it goes.
    #[serde(borrow)]
    pub path: Text<'a>,
    /// Its template.
    #[serde(borrow, default)]
    pub template: Option<Text<'a>>,
}

/// Text that is not copied where the document has it as it is. Inside of other types serde copies a `Cow` always.
#[derive(Debug, Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// What GEN produces.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gen {
    /// Patterns of the paths that are generated, and by nothing else.
    pub generated: Vec<String>,
    /// The artifacts, in declared order.
    pub artifacts: Vec<Artifact>,
    /// What is generated again when something changes. The default is not written down, so that leaving it out and saying it are the same.
    #[serde(default, skip_serializing_if = "Granularity::is_phase")]
    pub granularity: Granularity,
}

/// What is generated again when something that GEN depends on changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// Everything.
    #[default]
    Phase,
    /// The artifacts whose own closure changed. The executor promises that it makes each artifact from its closure alone.
    Objective,
}

impl Granularity {
    fn is_phase(&self) -> bool {
        *self == Self::Phase
    }
}

/// One file that GEN produces.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Where it goes.
    pub path: RepoPath,
    /// The objectives it fulfils, in declared order.
    pub objectives: Vec<String>,
    /// The template the built-in generator renders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<RepoPath>,
}

/// Which schema applies to which artifacts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// In declared order; every one that matches applies.
    #[serde(default)]
    pub schemas: Vec<SchemaRule>,
    /// Patterns of artifact paths that must be their own normal form altogether: for JSON also the order of members and the layout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub canonical: Vec<String>,
}

/// One schema and the artifacts it applies to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchemaRule {
    /// Pattern of artifact paths.
    pub paths: String,
    /// Path of a JSON Schema.
    pub schema: RepoPath,
}

/// The bound of a repair.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repair {
    /// Patterns of artifact paths that may change.
    pub allow: Vec<String>,
    /// How many lines may change, over all artifacts, in one attempt.
    pub max_changed_lines: u64,
    /// How many times a repair may be tried; once where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u64>,
    /// Which lines may change; all lines of an allowed path where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hunks: Option<Hunks>,
    /// Who repairs; the built-in repair where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Repairer>,
}

/// Which lines a repair may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hunks {
    /// Every line of an allowed path.
    All,
    /// The lines that CHECK's findings name; every line of a file of which a finding names no line.
    Findings,
}

/// Who repairs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repairer {
    /// The normal form, applied.
    BuiltIn,
    /// The executor that was admitted for GEN, asked again with the repair capsule.
    Executor,
}

/// The declared formats.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Struct {
    /// In declared order; the first that matches applies.
    pub normalize: Vec<NormalizeRule>,
}

/// The format of some artifacts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormalizeRule {
    /// Pattern of artifact paths.
    pub paths: String,
    /// Their format.
    pub format: Format,
}

/// A format that has a normal form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Sorted keys, two spaces, LF, a final newline.
    Json,
    /// UTF-8, LF, a final newline.
    Text,
}

/// How artifacts are kept or pruned: by a query or by rules, never both.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// The Rego query that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// In declared order; the first that matches applies, and every artifact must be matched by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<SelectRule>>,
}

/// Whether some artifacts are kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectRule {
    /// Pattern of artifact paths.
    pub paths: String,
    /// Whether they are kept.
    pub keep: bool,
    /// Why.
    pub reason: String,
}

/// The layout of the final package.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// In declared order; the first that matches applies.
    pub layout: Vec<LayoutRule>,
}

/// Where some artifacts go.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutRule {
    /// Pattern of artifact paths.
    pub from: String,
    /// The folder they go to, ending in `/`.
    pub to: String,
}

/// Where artifacts may be promoted to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promote {
    /// Patterns of allowed destinations.
    pub destinations: Vec<String>,
}

impl Pipeline {
    /// The names of the sections after `gen` that are declared.
    pub fn later_sections(&self) -> Vec<super::phase::Phase> {
        use super::phase::Phase;
        let Pipeline { schema_version: _, inputs: _, r#gen: _, check, repair, r#struct, select, flow, promote } = self;
        let declared = [
            (Phase::Check, check.is_some()),
            (Phase::Repair, repair.is_some()),
            (Phase::Struct, r#struct.is_some()),
            (Phase::Select, select.is_some()),
            (Phase::Flow, flow.is_some()),
            (Phase::Promote, promote.is_some()),
        ];
        declared.into_iter().filter(|(_, is)| *is).map(|(phase, _)| phase).collect()
    }

    /// The digest of what GEN's behaviour depends on: the values of `gen` and `inputs`, not their spelling.
    pub fn gen_config_hash(&self) -> Digest {
        #[derive(Serialize)]
        struct Config<'a> {
            r#gen: &'a Gen,
            inputs: &'a [String],
        }
        Digest::of_document(&Config { r#gen: &self.r#gen, inputs: &self.inputs })
    }
}
