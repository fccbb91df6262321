//! The text of a request on its way out: what may be shown, and where it ends.

mod text;

pub(crate) use text::OutputText;
