//! The hub seen from outside: real sockets on the loopback device, real files, a fake pip. Nothing else is reached.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod datasets;
mod hugging_face;
mod modelscope;
mod package;
mod server;
mod upload;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use ferrotune_checkpoint::hub::{HubSettings, Progress, Site, Token};

/// Settings whose every folder lies in `home`, for hubs at `address`, with short waits.
fn settings(home: &Path, address: &str) -> HubSettings {
    let mut settings = HubSettings::from_vars(|_| None, home.to_path_buf());
    let site = |cache: PathBuf| Site { endpoint: address.to_owned(), cache, token: Token::Anonymous };
    settings.hugging_face = site(home.join("hf"));
    settings.modelscope = site(home.join("ms"));
    settings.network.backoff = Duration::from_millis(1);
    settings.network.read_timeout = Duration::from_secs(5);
    settings.network.tries = 3;
    settings.pip = Vec::new();
    settings
}

/// An address where nobody listens.
const NOBODY: &str = "http://127.0.0.1:9";

/// Counts what it hears.
#[derive(Default)]
struct Heard(Mutex<(Vec<String>, u64, usize)>);

impl Heard {
    fn stages(&self) -> Vec<String> {
        self.0.lock().unwrap().0.clone()
    }

    fn bytes(&self) -> u64 {
        self.0.lock().unwrap().1
    }

    /// Whether every stage that began has ended.
    fn is_over(&self) -> bool {
        let heard = self.0.lock().unwrap();
        heard.0.len() == heard.2
    }
}

impl Progress for Heard {
    fn begin(&self, what: &str, total: Option<u64>) {
        self.0.lock().unwrap().0.push(format!("{what} {total:?}"));
    }

    fn advance(&self, bytes: u64) {
        self.0.lock().unwrap().1 += bytes;
    }

    fn end(&self) {
        self.0.lock().unwrap().2 += 1;
    }
}
