//! What people should read about a change: becomes an event.

/// A change that people should read about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Whether something is wrong.
    pub warning: bool,
    /// `CamelCase` word.
    pub reason: String,
    /// Sentence.
    pub message: String,
}
