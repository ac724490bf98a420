//! Callers as runners know them: a number for each key.
//!
//! Runners keep what they computed for a caller and give it to nobody else, so two keys must never share a number. It is
//! the keyed hash of the key's text: a key that was revoked and made again under its old name is another caller, two keys
//! of one name never meet, and neither a runner nor who reads its memory can make a key or a name of it. The hash's own
//! key is drawn at every start, so that a number means nothing to a runner that outlives the server.

use sandbox_wire::runner::Tenant;

/// The numbers of callers, for the life of this process.
pub(super) struct Tenants {
    secret: [u8; 32],
}

impl Tenants {
    /// Numbers that were never used before.
    pub(super) fn new() -> Self {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).expect("the kernel has random bytes once it has booted");
        Self { secret }
    }

    /// The number of who presented this key. Only for keys that were found good.
    pub(super) fn of(&self, key: &str) -> Tenant {
        let hash = blake3::keyed_hash(&self.secret, key.as_bytes());
        Tenant(u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_number_until_the_server_ends() {
        let tenants = Tenants::new();
        assert_eq!(tenants.of("ember-a"), tenants.of("ember-a"));
        assert_ne!(tenants.of("ember-a"), tenants.of("ember-b"));
        assert_ne!(tenants.of("ember-a"), Tenants::new().of("ember-a"));
    }
}
