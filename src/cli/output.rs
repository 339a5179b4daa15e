//! What goes to standard output: text, or one JSON object. A closed pipe is no error.

use crate::error::{Error, Result};
use crate::train::signals::write_standard_output;
use serde::Serialize;

pub fn print(text: &str) -> Result<()> {
    write_standard_output(|out| out.write_all(text.as_bytes()))
}

pub fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::program(format!("the result cannot be written as JSON: {error}")))?;
    print(&(text + "\n"))
}
