//! The rewrites that touch operations. Each line of code that replaces something stands under the identity that it uses.

mod common_subexpressions;
mod noops;

pub(super) use common_subexpressions::eliminate_common_subexpressions;
pub(super) use noops::eliminate_noops;
