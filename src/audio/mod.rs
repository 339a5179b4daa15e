//! To be opened.

pub mod synthesis;
