//! All objects that matter, and which Services were touched since they were last looked at.

/// Keeps the objects.
pub struct Store;
/// What changed.
pub struct Dirty;
