//! The texts of tokens: how they are made, recognised and hashed.
//!
//! A bearer token is `hermes.v1.<role>.<secret>`, a join token `hermes-join.v1.<secret>.<authority certificate>`; a
//! secret is 256 random bits in base64url. The join token carries the authority's certificate so that a worker knows
//! whom to trust before it has shown anything.
//!
//! Only the SHA-256 of a token is stored and compared. A plain hash is enough because the secret is random and long
//! (nothing to guess, so nothing to slow down), and the comparison need not be constant in time: what a look-up by hash
//! could leak is a prefix of the hash, from which no part of a token follows.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRngCore as _;
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};

const BEARER: &str = "hermes.v1.";
const JOIN: &str = "hermes-join.v1.";
const SECRET_BYTES: usize = 32;
/// A longer text is no token of ours; it is refused before it is hashed.
const MAX_JOIN_CHARS: usize = 8 << 10;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything on the operator listener.
    Operator,
    /// MessageService and the HTTP API.
    Api,
    /// Read-only calls.
    Viewer,
    /// Join for one agent, nothing else.
    Worker,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Operator, Self::Api, Self::Viewer, Self::Worker];

    /// The word in token texts, the store and audit lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Api => "api",
            Self::Viewer => "viewer",
            Self::Worker => "worker",
        }
    }

    /// The role of a word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

/// SHA-256 of a token: what is stored, compared and cached.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// A new token: the text goes to its holder and nowhere else, the hash to the store.
#[derive(Debug)]
pub struct MintedToken {
    /// The whole token.
    pub text: SecretString,
    /// What the store keeps.
    pub hash: TokenHash,
}

/// A recognised join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// What the store knows it by; the certificate in the text has no part in it.
    pub hash: TokenHash,
    /// The authority the token names (DER, not judged here).
    pub authority_der: Vec<u8>,
}

/// Makes a bearer token of `role`, or nothing when `role` is [`Role::Worker`] (workers get [`mint_join`]).
pub fn mint(role: Role) -> Option<MintedToken> {
    if role == Role::Worker {
        return None;
    }
    let text = format!("{BEARER}{}.{}", role.as_str(), secret());
    Some(MintedToken { hash: hash(&text), text: text.into() })
}

/// Makes a join token that also tells the worker which authority to trust.
pub fn mint_join(authority_der: &[u8]) -> MintedToken {
    let head = format!("{JOIN}{}", secret());
    let text = format!("{head}.{}", URL_SAFE_NO_PAD.encode(authority_der));
    MintedToken { hash: hash(&head), text: text.into() }
}

/// Recognises a bearer token: its role and hash. Anything that is not in the one exact form is nothing.
pub fn parse_bearer(text: &str) -> Option<(Role, TokenHash)> {
    let (role, secret) = text.strip_prefix(BEARER)?.split_once('.')?;
    let role = Role::parse(role).filter(|role| *role != Role::Worker)?;
    is_secret(secret).then(|| (role, hash(text)))
}

/// Recognises a join token.
pub fn parse_join(text: &str) -> Option<JoinToken> {
    if text.len() > MAX_JOIN_CHARS {
        return None;
    }
    let (secret, certificate) = text.strip_prefix(JOIN)?.split_once('.')?;
    let authority_der = URL_SAFE_NO_PAD.decode(certificate).ok().filter(|der| !der.is_empty())?;
    is_secret(secret).then(|| JoinToken { hash: hash(&format!("{JOIN}{secret}")), authority_der })
}

fn hash(text: &str) -> TokenHash {
    TokenHash(Sha256::digest(text.as_bytes()).into())
}

fn secret() -> String {
    let mut bytes = [0_u8; SECRET_BYTES];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).expect("the operating system gives random bytes, or nothing is safe");
    URL_SAFE_NO_PAD.encode(bytes)
}

/// 43 characters that decode to 32 bytes and back to themselves.
fn is_secret(text: &str) -> bool {
    text.len() == 43 && URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() == SECRET_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    #[test]
    fn minted_tokens_are_recognised_and_unlike() {
        for role in [Role::Operator, Role::Api, Role::Viewer] {
            let token = mint(role).unwrap();
            assert_eq!(parse_bearer(token.text.expose_secret()), Some((role, token.hash)));
            assert_ne!(mint(role).unwrap().hash, token.hash);
            assert!(!format!("{token:?}").contains(token.text.expose_secret()));
        }
        assert!(mint(Role::Worker).is_none());
        let join = mint_join(b"certificate");
        let parsed = parse_join(join.text.expose_secret()).unwrap();
        assert_eq!(parsed, JoinToken { hash: join.hash, authority_der: b"certificate".to_vec() });
    }

    #[test]
    fn other_texts_are_no_tokens() {
        let good = mint(Role::Api).unwrap();
        let good = good.text.expose_secret();
        let secret = good.rsplit('.').next().unwrap();
        for bad in [
            String::new(),
            format!("{good} "),
            format!(" {good}"),
            format!("{good}="),
            format!("{good}.x"),
            good.to_uppercase(),
            good.replace("v1", "v2"),
            format!("hermes.v1.worker.{secret}"),
            format!("hermes.v1.root.{secret}"),
            format!("hermes.v1.api.{}", &secret[1..]),
            format!("hermes.v1.api.{}", "!".repeat(43)),
            "a".repeat(1_000_000),
        ] {
            assert_eq!(parse_bearer(&bad), None);
            assert_eq!(parse_join(&bad), None);
        }
        assert_eq!(parse_join(good), None);
        let join = mint_join(b"ca");
        let join = join.text.expose_secret();
        assert_eq!(parse_bearer(join), None);
        assert_eq!(parse_join(join.rsplit_once('.').unwrap().0), None, "without its certificate");
        assert_eq!(parse_join(&format!("{}.", join.rsplit_once('.').unwrap().0)), None);
        assert_eq!(parse_join(&format!("{join}{}", "A".repeat(9000))), None);
    }

    #[test]
    fn the_certificate_is_no_part_of_the_secret() {
        let join = mint_join(b"ca");
        let other = format!("{}.b3RoZXI", join.text.expose_secret().rsplit_once('.').unwrap().0);
        assert_eq!(parse_join(&other).unwrap().hash, join.hash);
    }
}
