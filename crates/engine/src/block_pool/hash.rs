//! Names of full KV blocks: what a block holds depends on all tokens up to its end, and so does its name.

use std::fmt;

use sha2::{Digest, Sha256};

/// The name of a full block: SHA-256 over the name of the block before it, the tokens of this one, and, in the first
/// block of a sequence, the salt. Requests of different salts share nothing.
///
/// A cryptographic hash, because whoever can make two blocks of one name can read the other's answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BlockHash([u8; 32]);

impl BlockHash {
    /// What stands before the first block of sequences with a salt.
    pub(crate) fn root(salt: Option<&str>) -> Self {
        let mut hash = Sha256::new();
        // Tagged, so that no salt is taken for the lack of one.
        match salt {
            None => hash.update([0]),
            Some(salt) => {
                hash.update([1]);
                hash.update((salt.len() as u64).to_le_bytes());
                hash.update(salt.as_bytes());
            }
        }
        BlockHash(hash.finalize().into())
    }

    /// The name of the block after this one that holds `tokens`.
    pub(crate) fn then(self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        hash.update([2]);
        hash.update(self.0);
        tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        BlockHash(hash.finalize().into())
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_depends_on_everything_before_it_and_on_the_salt() {
        let root = BlockHash::root(None);
        assert_eq!(root.then(&[1, 2]), BlockHash::root(None).then(&[1, 2]));
        let names = [
            root,
            root.then(&[1, 2]),
            root.then(&[2, 1]),
            root.then(&[1, 2]).then(&[1, 2]),
            root.then(&[9, 9]).then(&[1, 2]),
            BlockHash::root(Some("")).then(&[1, 2]),
            BlockHash::root(Some("a")).then(&[1, 2]),
            BlockHash::root(Some("b")).then(&[1, 2]),
        ];
        for (place, name) in names.iter().enumerate() {
            assert!(!names[..place].contains(name), "{place}");
        }
    }
}
