//! When a write counts as done, and the few calls that make it so.

/// Whether a write waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The write survives the end of the process; a power cut may take it away.
    Relaxed,
    /// The write survives a power cut: files and the directories that name them are synchronized before it is reported.
    Full,
}
