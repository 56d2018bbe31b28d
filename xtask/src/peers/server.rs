//! Servers of other programs, for as long as something is asked of them.

use std::fs::File;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Longest start of a server.
const PATIENCE: Duration = Duration::from_secs(600);

/// vLLM on a processor, in f32.
pub(super) fn vllm(python: &Path, port: u16, model: &Path, template: &Path) -> Command {
    let mut command = Command::new(python);
    command.args(["-m", "vllm.entrypoints.openai.api_server", "--dtype", "float32", "--enforce-eager"]);
    command.args(["--max-model-len", "1024", "--port", &port.to_string(), "--model"]).arg(model);
    command.arg("--chat-template").arg(template);
    command.env("VLLM_CPU_KVCACHE_SPACE", "1").env("VLLM_CPU_OMP_THREADS_BIND", "nobind").env("HF_HUB_OFFLINE", "1");
    command
}

/// A server that ends with this value.
pub(super) struct Server(Child);

impl Server {
    /// Starts it, and waits until its port is open.
    pub(super) fn start(mut command: Command, port: u16, log: &Path) -> Result<Self> {
        let file = File::create(log)?;
        let child = command.stdout(file.try_clone()?).stderr(file).spawn();
        let mut server = Self(child.with_context(|| format!("cannot start {command:?}"))?);
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if server.0.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                bail!("the server didn't start; {} says why", log.display());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Asked first, as vLLM's engine is a process of its own that only its parent ends.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let asked = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && asked.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(100));
        }
        // It may have ended by itself; either way it is gone after this.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
