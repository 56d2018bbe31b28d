//! Variables as numbers, addresses and ports, and everything that is wrong with them.

use super::Master;
use crate::diagnostic::{Diagnostic, Diagnostics, Severity};
use crate::env;

/// Longest host name there is.
const MAX_HOST: usize = 253;

/// Reads variables and collects what is wrong with them.
pub(super) struct Reader<'g> {
    get: &'g dyn Fn(&str) -> Option<String>,
    errors: Vec<Diagnostic>,
    notes: Vec<Diagnostic>,
}

/// What stands in for an address or a port that isn't set.
#[derive(Debug, Default)]
pub(super) struct Fallback {
    pub host: Option<String>,
    pub port: Option<u16>,
}

impl<'g> Reader<'g> {
    pub(super) fn new(get: &'g dyn Fn(&str) -> Option<String>) -> Self {
        Self { get, errors: Vec::new(), notes: Vec::new() }
    }

    pub(super) fn finish(self) -> Result<Vec<Diagnostic>, Diagnostics> {
        if self.errors.is_empty() { Ok(self.notes) } else { Err(Diagnostics(self.errors)) }
    }

    /// A variable that is set to more than blanks.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        (self.get)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        self.text(name).is_some()
    }

    /// The first of two names that is set.
    pub(super) fn either(&self, name: &str, other: &str) -> Option<String> {
        self.text(name).or_else(|| self.text(other))
    }

    /// A whole number; anything else is an error and reads as if it weren't set.
    pub(super) fn number(&mut self, name: &'static str) -> Option<usize> {
        let text = self.text(name)?;
        let number = text.parse().ok();
        if number.is_none() {
            self.error(name, &format!("is '{}', not a whole number", shown(&text)), "write a number, or unset it");
        }
        number
    }

    /// A number from 1 to `most`.
    pub(super) fn count(&mut self, name: &'static str, most: usize) -> Option<usize> {
        let number = self.number(name)?;
        if number == 0 {
            self.error(name, "is 0", "write how many there are, or unset it");
        } else if number > most {
            self.error(name, &format!("is {number}; {most} is the most"), "write how many there are");
        }
        Some(number).filter(|n| (1..=most).contains(n))
    }

    /// One number under a name and torchrun's `PET_` name; two that differ are an error.
    pub(super) fn agreed<T: PartialEq + std::fmt::Display>(
        &mut self,
        names: (&'static str, &'static str),
        read: impl Fn(&mut Self, &'static str) -> Option<T>,
    ) -> Option<T> {
        let (first, second) = (read(self, names.0), read(self, names.1));
        if let (Some(a), Some(b)) = (&first, &second)
            && a != b
        {
            self.error(names.0, &format!("is {a}, but {} is {b}", names.1), "unset one of the two");
        }
        first.or(second)
    }

    /// Where the processes meet. `several` says why an address and a port are needed, if they are.
    pub(super) fn master(&mut self, several: Option<&str>, fallback: Fallback) -> Option<Master> {
        let host = self.either(env::MASTER_ADDR, env::PET_MASTER_ADDR);
        let host = host.map(|text| self.host(env::MASTER_ADDR, &text)).or(fallback.host);
        let written = self.is_set(env::MASTER_PORT) || self.is_set(env::PET_MASTER_PORT);
        let port = self.port(env::MASTER_PORT).or_else(|| self.port(env::PET_MASTER_PORT)).or(fallback.port);
        if let Some(why) = several {
            if host.is_none() {
                let message = format!("is not set, and {why}");
                self.error(
                    env::MASTER_ADDR,
                    &message,
                    "set it on every machine to the address of machine 0 that the others reach, such as MASTER_ADDR=10.0.0.1",
                );
            }
            if port.is_none() && !written {
                let message = format!("is not set, and {why}: each would choose another");
                self.error(
                    env::MASTER_PORT,
                    &message,
                    "set it on every machine to the same free port of machine 0, such as MASTER_PORT=20000",
                );
            }
        }
        let host = host.or_else(|| several.is_none().then(|| "127.0.0.1".to_owned()))?;
        Some(Master { host, port: port? })
    }

    fn port(&mut self, name: &'static str) -> Option<u16> {
        let text = self.text(name)?;
        let port = text.parse().ok().filter(|port| *port > 0);
        if port.is_none() {
            self.error(name, &format!("is '{}', which is no port", shown(&text)), "write a number from 1 to 65535");
        }
        port
    }

    /// A host name or address, without the brackets of IPv6. What is wrong is an error; the text comes back as it is.
    pub(super) fn host(&mut self, name: &'static str, text: &str) -> String {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if let Some((host, port)) = bare.split_once(':')
            && port.bytes().all(|b| b.is_ascii_digit())
        {
            let message = format!("is '{}', an address with a port", shown(text));
            self.error(name, &message, &format!("write {name}={} and the port in MASTER_PORT", shown(host)));
        } else if bare.len() > MAX_HOST
            || bare.contains(':') && bare.matches(':').count() < 2
            || !bare.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%'))
        {
            let message = format!("is '{}', which is no name and no address of a machine", shown(text));
            self.error(name, &message, "write an address, such as 10.0.0.1, or a name that every machine can look up");
        }
        bare.to_owned()
    }

    /// `host:port`, `[address]:port`, or a host with the port `default`.
    pub(super) fn endpoint(&mut self, name: &'static str, default: u16) -> Option<Master> {
        let text = self.text(name)?;
        let bracketed = text.strip_prefix('[').and_then(|t| t.split_once(']'));
        let (host, port) = match bracketed {
            Some((host, rest)) => (host, rest.strip_prefix(':').or((!rest.is_empty()).then_some(rest))),
            None => match text.rsplit_once(':') {
                // More than one colon without brackets is an IPv6 address alone.
                Some((host, port)) if !host.contains(':') => (host, Some(port)),
                _ => (text.as_str(), None),
            },
        };
        let host = self.host(name, host);
        let port = match port.map(|port| port.parse::<u16>().ok().filter(|port| *port > 0)) {
            None => default,
            Some(Some(port)) => port,
            Some(None) => {
                let message = format!("is '{}', whose port is none", shown(&text));
                self.error(name, &message, "write host:port with a port from 1 to 65535");
                default
            }
        };
        Some(Master { host, port })
    }

    /// An error about a variable; the same twice is one.
    pub(super) fn error(&mut self, name: &str, message: &str, help: &str) {
        let error = about(Severity::Error, name, message, help);
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    /// A note about a variable; the same twice is one.
    pub(super) fn note(&mut self, name: &str, message: &str, help: &str) {
        let note = about(Severity::Note, name, message, help);
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// A value as it may stand in a message.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(40).collect()
}

fn about(severity: Severity, name: &str, message: &str, help: &str) -> Diagnostic {
    Diagnostic {
        severity,
        file: format!("environment variable {name}"),
        span: None,
        message: format!("{name} {message}"),
        help: (!help.is_empty()).then(|| help.to_owned()),
    }
}
