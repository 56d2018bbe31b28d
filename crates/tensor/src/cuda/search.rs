//! Where CUDA's libraries lie on users' machines, in the order in which they are tried, and what was wrong in each place.
//!
//! A driver is where the system's loader looks. cublasLt and NCCL may be anywhere: in a wheel beside torch, in conda, in a
//! toolkit. Nothing here reads the environment: the program does, and says what it found ([`Surroundings`]).

use super::library::Library;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What the environment says.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// A folder that the user names; before all others.
    pub chosen: Option<PathBuf>,
    /// `$CONDA_PREFIX`.
    pub conda: Option<PathBuf>,
    /// `$VIRTUAL_ENV`.
    pub virtual_env: Option<PathBuf>,
    /// The program's own file: pip puts it into `bin` of an environment that may have the libraries, too.
    pub program: Option<PathBuf>,
    /// `$HOME`, where `pip install --user` puts things.
    pub home: Option<PathBuf>,
}

/// A folder, or what the system's loader makes of a bare name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Folder(PathBuf),
    Loader,
}

/// All places, in order.
#[derive(Debug, Clone)]
pub struct Search {
    places: Vec<Place>,
}

/// A library that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// As people call it.
    pub name: &'a str,
    /// Names of its file, the best first.
    pub files: &'a [&'a str],
    /// What to do if there is none.
    pub cure: &'a str,
}

/// A library that was looked for in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotLoaded {
    /// As people call it.
    pub library: String,
    /// Names of its file.
    pub files: Vec<String>,
    /// Each place with a file of that name, and what was wrong with it.
    pub unusable: Vec<(PathBuf, String)>,
    /// Each place without.
    pub empty: Vec<String>,
    /// What to do.
    pub cure: String,
}

impl NotLoaded {
    /// Whether there is a file, though none that can be used.
    pub fn found_something(&self) -> bool {
        !self.unusable.is_empty()
    }
}

impl std::fmt::Display for NotLoaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = match self.unusable.is_empty() {
            true => format!("{} ({}) is nowhere:", self.library, self.files.join(", ")),
            false => format!("{} can't be used:", self.library),
        };
        for (path, what) in &self.unusable {
            let _ = write!(text, "\n  {}: {what}", path.display());
        }
        for place in &self.empty {
            let _ = write!(text, "\n  {place}: nothing there");
        }
        if !self.cure.is_empty() {
            let _ = write!(text, "\n{}", self.cure);
        }
        f.write_str(&text)
    }
}

impl std::error::Error for NotLoaded {}

impl Search {
    /// The places on this machine.
    pub fn new(around: &Surroundings) -> Self {
        Self::under(Path::new("/"), around)
    }

    /// The same with another root of the file system.
    fn under(root: &Path, around: &Surroundings) -> Self {
        let mut folders: Vec<PathBuf> = around.chosen.clone().into_iter().collect();
        folders.extend(around.conda.iter().map(|prefix| prefix.join("lib")));
        let program = around.program.as_deref().and_then(Path::parent).and_then(Path::parent);
        for prefix in [around.virtual_env.as_deref(), around.conda.as_deref(), program].into_iter().flatten() {
            folders.extend(wheels(prefix));
        }
        folders.extend(around.home.iter().flat_map(|home| wheels(&home.join(".local"))));
        folders.extend(["usr/local", "usr"].iter().flat_map(|prefix| wheels(&root.join(prefix))));
        folders.extend(toolkits(root));
        let mut places: Vec<Place> = folders.into_iter().map(Place::Folder).collect();
        places.push(Place::Loader);
        places.push(Place::Folder(root.join("usr/lib/wsl/lib")));
        let mut seen = Vec::new();
        places.retain(|place| !seen.contains(place) && (seen.push(place.clone()), true).1);
        Self { places }
    }

    /// Opens a library in the first place where `take` can use it: the wrong architecture, a function that isn't there, a
    /// version that doesn't fit the driver are reasons to look further.
    ///
    /// # Errors
    /// With every place, and what was wrong there.
    pub fn open<T>(
        &self,
        wanted: &Wanted<'_>,
        mut take: impl FnMut(Library) -> Result<T, String>,
    ) -> Result<T, NotLoaded> {
        let files = wanted.files.iter().map(|&file| file.to_owned()).collect();
        let (library, cure) = (wanted.name.to_owned(), wanted.cure.to_owned());
        let mut failed = NotLoaded { library, files, unusable: Vec::new(), empty: Vec::new(), cure };
        for place in &self.places {
            let before = failed.unusable.len();
            for &file in wanted.files {
                let path = match place {
                    Place::Folder(folder) => folder.join(file),
                    Place::Loader => PathBuf::from(file),
                };
                // A file that a folder lacks is no complaint; a bare name is asked of the loader.
                if *place != Place::Loader && path.symlink_metadata().is_err() {
                    continue;
                }
                match Library::open(&path).and_then(&mut take) {
                    Ok(taken) => return Ok(taken),
                    Err(what) if *place == Place::Loader && absent(&what) => {}
                    Err(what) => failed.unusable.push((path, what)),
                }
            }
            if failed.unusable.len() == before {
                failed.empty.push(place.to_string());
            }
        }
        Err(failed)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "{}", folder.display()),
            Self::Loader => f.write_str("the system's loader (LD_LIBRARY_PATH, /etc/ld.so.conf)"),
        }
    }
}

/// What glibc and musl say of a bare name that is in none of the loader's folders.
fn absent(complaint: &str) -> bool {
    complaint.contains("cannot open shared object file: No such file")
        || complaint.contains("Error loading shared library")
}

/// `lib` of each of NVIDIA's wheels in an environment: `lib/python3.*/site-packages/nvidia/*/lib`.
fn wheels(prefix: &Path) -> Vec<PathBuf> {
    let pythons = folders(&prefix.join("lib")).into_iter().filter(|name| name_of(name).starts_with("python3"));
    let sites = pythons.flat_map(|python| [python.join("site-packages"), python.join("dist-packages")]);
    sites
        .flat_map(|site| folders(&site.join("nvidia")))
        .map(|wheel| wheel.join("lib"))
        .filter(|lib| lib.is_dir())
        .collect()
}

/// `/usr/local/cuda*/targets/*/lib`, the plain name first, then the newest.
fn toolkits(root: &Path) -> Vec<PathBuf> {
    let mut found = folders(&root.join("usr/local"));
    found.retain(|folder| name_of(folder).starts_with("cuda"));
    found.sort_by_key(|folder| {
        let version = name_of(folder).strip_prefix("cuda-").unwrap_or_default().to_owned();
        let numbers: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
        (!version.is_empty(), std::cmp::Reverse(numbers))
    });
    let mut seen = BTreeSet::new();
    let targets = found.iter().flat_map(|toolkit| folders(&toolkit.join("targets"))).map(|target| target.join("lib"));
    // `cuda` is a link to one of the others.
    targets.filter(|lib| lib.canonicalize().is_ok_and(|real| seen.insert(real))).collect()
}

/// Folders in a folder, in order of their names; none where it can't be read.
fn folders(of: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(of) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(root: &Path, folders: &[&str]) {
        folders.iter().for_each(|folder| std::fs::create_dir_all(root.join(folder)).unwrap());
    }

    #[test]
    fn places_come_in_the_order_of_their_closeness() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        made(root, &["usr/local/cuda-12.4/targets/x86_64-linux/lib", "usr/local/cuda-13.0/targets/x86_64-linux/lib"]);
        made(
            root,
            &[
                "venv/lib/python3.11/site-packages/nvidia/nccl/lib",
                "conda/lib/python3.12/site-packages/nvidia/cu13/lib",
            ],
        );
        made(
            root,
            &["venv/lib/python3.11/site-packages/nvidia/cublas/lib", "venv/lib/python3.11/site-packages/nvidia/empty"],
        );
        std::os::unix::fs::symlink("cuda-12.4", root.join("usr/local/cuda")).unwrap();
        let around = Surroundings {
            chosen: Some(root.join("mine")),
            conda: Some(root.join("conda")),
            virtual_env: Some(root.join("venv")),
            program: Some(root.join("venv/bin/ferrotune")),
            home: None,
        };
        let found = Search::under(root, &around);
        let found: Vec<String> =
            found.places.iter().map(|p| p.to_string().replace(&format!("{}/", root.display()), "")).collect();
        assert_eq!(
            found[..],
            [
                "mine",
                "conda/lib",
                "venv/lib/python3.11/site-packages/nvidia/cublas/lib",
                "venv/lib/python3.11/site-packages/nvidia/nccl/lib",
                "conda/lib/python3.12/site-packages/nvidia/cu13/lib",
                "usr/local/cuda/targets/x86_64-linux/lib",
                "usr/local/cuda-13.0/targets/x86_64-linux/lib",
                "the system's loader (LD_LIBRARY_PATH, /etc/ld.so.conf)",
                "usr/lib/wsl/lib",
            ]
        );
    }

    #[test]
    fn what_was_wrong_in_each_place_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        made(root, &["first", "conda/lib"]);
        std::fs::write(root.join("conda/lib/libwished.so.2"), "text").unwrap();
        let around = Surroundings {
            chosen: Some(root.join("first")),
            conda: Some(root.join("conda")),
            ..Surroundings::default()
        };
        let wanted = Wanted { name: "wished", files: &["libwished.so.3", "libwished.so.2"], cure: "Install it." };
        let search = Search::under(root, &around);
        let error = search.open(&wanted, |_| Ok(())).unwrap_err();
        assert!(error.found_something() && error.unusable[0].0 == root.join("conda/lib/libwished.so.2"));
        let text = error.to_string();
        for part in [
            "wished can't be used:",
            "first: nothing there",
            "the system's loader",
            "usr/lib/wsl/lib: nothing",
            "Install it.",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        std::fs::remove_file(root.join("conda/lib/libwished.so.2")).unwrap();
        let error = search.open(&wanted, |_| Ok(())).unwrap_err();
        assert!(
            !error.found_something()
                && error.to_string().starts_with("wished (libwished.so.3, libwished.so.2) is nowhere:")
        );
    }

    #[test]
    fn a_library_that_cant_be_taken_is_passed_by() {
        let wanted = Wanted { name: "mathematics", files: &["libc.so.6", "libm.so.6"], cure: "" };
        let search = Search::new(&Surroundings::default());
        let taken = search.open(&wanted, |library| library.symbol(c"cos").map(|_| library.path().to_owned()));
        // Where glibc is.
        if let Ok(path) = taken {
            assert_eq!(path, Path::new("libm.so.6"));
        }
    }
}
