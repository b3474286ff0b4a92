//! Where what a model names may lead: addresses and ports that agents reach on the web.
//!
//! A part of the document: read by [`crate::config`], asked by whoever opens connections, for every address and again after every
//! redirect. Always true: nothing but the public internet is admitted, unless an operator wrote its network down; an address inside
//! another one (mapped, 6to4, NAT64, Teredo) is never a way around that. It resolves and opens nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::config::SecretRef;

/// What agents may do on the web.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Web {
    /// Networks beside the public internet that may be reached. Default: none.
    pub allow_private: Vec<Block>,
    /// Ports beside 80 and 443. Default: none.
    pub ports: Vec<u16>,
    /// Who is asked by searches. Default: nobody.
    pub search: Option<Search>,
}

/// Who searches the web.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Search {
    /// Whose interface it has.
    pub provider: SearchProvider,
    /// Where it is; absent: the provider's own place.
    pub base_url: Option<String>,
    /// Its key (`key_env` or `key_file` in the document).
    pub key: Option<SecretRef>,
}

/// An interface of searches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SearchProvider {
    /// Brave Search.
    Brave,
    /// Tavily.
    Tavily,
    /// A SearXNG of one's own.
    Searxng,
}

impl SearchProvider {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Brave, Self::Tavily, Self::Searxng];

    /// The name written in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Brave => "brave",
            Self::Tavily => "tavily",
            Self::Searxng => "searxng",
        }
    }

    /// Where it is by itself; a SearXNG is nowhere.
    pub const fn base_url(self) -> Option<&'static str> {
        match self {
            Self::Brave => Some("https://api.search.brave.com"),
            Self::Tavily => Some("https://api.tavily.com"),
            Self::Searxng => None,
        }
    }
}

impl Web {
    /// Whether a connection to this address may be opened.
    ///
    /// # Errors
    /// What kind of address it is, for people.
    pub fn admits(&self, address: IpAddr) -> Result<(), &'static str> {
        let address = address.to_canonical();
        match inward(address) {
            Some(_) if self.allow_private.iter().any(|block| block.contains(address)) => Ok(()),
            Some(kind) => Err(kind),
            None => Ok(()),
        }
    }

    /// Whether a connection to this address may be opened for a name that an operator wrote down: a private one, too, but none that a
    /// machine has for itself alone or asks for its own credentials at, which only a name that was turned around leads to.
    ///
    /// # Errors
    /// What kind of address it is, for people.
    pub fn admits_named(&self, address: IpAddr) -> Result<(), &'static str> {
        let canonical = address.to_canonical();
        let own = match canonical {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast(),
            // fd00:ec2::254 is where one cloud answers for its machines.
            IpAddr::V6(v6) => {
                let cloud = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
                v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast() || v6 == cloud
            }
        };
        if own { self.admits(canonical) } else { Ok(()) }
    }

    /// Whether a connection to this port may be opened.
    pub fn admits_port(&self, port: u16) -> bool {
        matches!(port, 80 | 443) || self.ports.contains(&port)
    }
}

/// Addresses that are not the public internet's; the first that fits names it.
const INWARD_V4: [(Ipv4Addr, u8, &str); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "an unspecified"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "a private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "a carrier's inner"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "a loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "a link-local or metadata"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "a private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "a reserved"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "a reserved"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "a reserved"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "a private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "a reserved"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "a reserved"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "a reserved"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "a multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "a reserved"),
];

/// The same within 2000::/3; nothing outside is public.
const INWARD_V6: [(Ipv6Addr, u8, &str); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "a reserved or Teredo"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "a reserved"),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "a 6to4"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "a reserved"),
];
const PUBLIC_V6: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0);

/// What kind of address it is, where it is not the public internet's.
fn inward(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => {
            INWARD_V4.iter().find(|(net, prefix, _)| same_v4(v4, *net, *prefix)).map(|(_, _, kind)| *kind)
        }
        IpAddr::V6(v6) if !same_v6(v6, PUBLIC_V6, 3) => Some("a local, translated or reserved"),
        IpAddr::V6(v6) => {
            INWARD_V6.iter().find(|(net, prefix, _)| same_v6(v6, *net, *prefix)).map(|(_, _, kind)| *kind)
        }
    }
}

fn same_v4(one: Ipv4Addr, other: Ipv4Addr, prefix: u8) -> bool {
    let differs = one.to_bits() ^ other.to_bits();
    prefix == 0 || differs >> (32 - u32::from(prefix.min(32))) == 0
}

fn same_v6(one: Ipv6Addr, other: Ipv6Addr, prefix: u8) -> bool {
    let differs = one.to_bits() ^ other.to_bits();
    prefix == 0 || differs >> (128 - u32::from(prefix.min(128))) == 0
}

/// A network: an address, or a prefix of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Block {
    address: IpAddr,
    prefix: u8,
}

impl Block {
    /// `10.1.0.0/16`, `fd00::/8` or one address.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{} is no network; write for example 10.1.0.0/16 or 10.1.2.3", crate::config::shown(text));
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse::<u8>().map_err(|_| wrong())?,
            Some(_) => return Err(wrong()),
        };
        if prefix > most { Err(wrong()) } else { Ok(Self { address, prefix }) }
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => same_v4(own, other, self.prefix),
            (IpAddr::V6(own), IpAddr::V6(other)) => same_v6(own, other, self.prefix),
            _ => false,
        }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = if self.address.is_ipv4() { 32 } else { 128 };
        if self.prefix == most { self.address.fmt(f) } else { write!(f, "{}/{}", self.address, self.prefix) }
    }
}

impl TryFrom<String> for Block {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Block> for String {
    fn from(block: Block) -> Self {
        block.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_public_internet_is_admitted() {
        let web = Web::default();
        for inside in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
            "3fff::1",
        ] {
            assert!(web.admits(inside.parse().unwrap()).is_err(), "{inside}");
        }
        for outside in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.1",
            "172.32.0.1",
            "8.8.8.8",
            "::ffff:8.8.8.8",
            "2606:4700::1",
            "2a00:1450::1",
        ] {
            assert_eq!(web.admits(outside.parse().unwrap()), Ok(()), "{outside}");
        }
        assert!(
            [80, 443].into_iter().all(|port| web.admits_port(port))
                && ![22, 5432, 8080].into_iter().any(|port| web.admits_port(port))
        );
    }

    #[test]
    fn a_name_that_an_operator_wrote_leads_inward_but_never_to_what_only_a_machine_asks() {
        let web = Web::default();
        for (address, admitted) in [
            ("10.1.2.3", true),
            ("127.0.0.1", true),
            ("8.8.8.8", true),
            ("fd00::1", true),
            ("169.254.169.254", false),
            ("::ffff:169.254.169.254", false),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
            ("0.0.0.0", false),
            ("::", false),
        ] {
            assert_eq!(web.admits_named(address.parse().unwrap()).is_ok(), admitted, "{address}");
        }
        let written = Web { allow_private: vec![Block::parse("169.254.0.0/16").unwrap()], ..Web::default() };
        assert!(written.admits_named("169.254.169.254".parse().unwrap()).is_ok());
    }

    #[test]
    fn a_network_that_is_written_down_is_admitted_in_whatever_clothes_it_comes() {
        let web = Web {
            allow_private: vec![Block::parse("10.1.0.0/16").unwrap(), Block::parse("::1").unwrap()],
            ..Web::default()
        };
        for (address, admitted) in
            [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("::1", true), ("10.2.0.1", false), ("::2", false)]
        {
            assert_eq!(web.admits(address.parse().unwrap()).is_ok(), admitted, "{address}");
        }
        for wrong in ["10.0.0.0/33", "::/129", "10.0.0/8", "a", "10.0.0.0/+8", "10.0.0.0/", "0x7f.1"] {
            assert!(Block::parse(wrong).is_err(), "{wrong}");
        }
        for text in ["10.1.0.0/16", "10.1.2.3", "fd00::/8", "0.0.0.0/0"] {
            assert_eq!(Block::parse(text).unwrap().to_string(), text);
        }
    }
}
