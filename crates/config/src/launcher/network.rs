//! Which network interfaces a run may use, and what its connections prove to know.

use super::reader::{Reader, shown};
use crate::env;
use std::fmt;

/// Network interfaces, as `NCCL_SOCKET_IFNAME` or `GLOO_SOCKET_IFNAME` names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interfaces {
    /// The variable that names them, for messages.
    pub variable: &'static str,
    /// Names, or beginnings of names.
    pub names: Vec<String>,
    /// Names are whole (`=eth0`), and not beginnings.
    pub whole: bool,
    /// All interfaces but these (`^docker`).
    pub except: bool,
}

impl Interfaces {
    /// Whether an interface may be used.
    #[must_use]
    pub fn allows(&self, interface: &str) -> bool {
        let is_named =
            self.names.iter().any(|name| if self.whole { interface == name } else { interface.starts_with(name) });
        is_named != self.except
    }
}

/// What every connection of a run proves to know. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct JobToken(String);

impl JobToken {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for JobToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobToken(..)")
    }
}

/// NCCL's list wins, as users of several machines set it; Gloo's names are always whole.
pub(super) fn interfaces(r: &mut Reader<'_>) -> Option<Interfaces> {
    if r.text(env::NCCL_IB_DISABLE).is_some_and(|value| value == "0") {
        r.note(env::NCCL_IB_DISABLE, "is 0, but only GPUs use InfiniBand, through NCCL: all else goes over TCP", "");
    }
    let (nccl, gloo) = (r.text(env::NCCL_SOCKET_IFNAME), r.text(env::GLOO_SOCKET_IFNAME));
    if let (Some(nccl), Some(gloo)) = (&nccl, &gloo)
        && nccl.trim_start_matches('=') != gloo
    {
        let message = format!("is not used: NCCL_SOCKET_IFNAME names '{}'", shown(nccl));
        r.note(env::GLOO_SOCKET_IFNAME, &message, "one network carries everything: unset one of the two");
    }
    let (variable, text) = match (nccl, gloo) {
        (Some(nccl), _) => (env::NCCL_SOCKET_IFNAME, nccl),
        (None, Some(gloo)) => (env::GLOO_SOCKET_IFNAME, gloo),
        (None, None) => return None,
    };
    let is_nccl = variable == env::NCCL_SOCKET_IFNAME;
    let except = is_nccl && text.starts_with('^');
    let rest = if except { &text[1..] } else { &text };
    let whole = !is_nccl || rest.starts_with('=');
    let rest = if is_nccl { rest.trim_start_matches('=') } else { rest };
    let names: Vec<String> =
        rest.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    // Linux cuts names at 15 bytes.
    let is_name = |name: &String| name.len() <= 64 && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    if names.is_empty() || !names.iter().all(is_name) {
        let message = format!("is '{}', which names no network interface", shown(&text));
        r.error(variable, &message, "write names as `ip link` shows them, such as eth0 or eth0,eth1");
        return None;
    }
    Some(Interfaces { variable, names, whole, except })
}
