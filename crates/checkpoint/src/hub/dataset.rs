//! Data sets of the hubs: which files of a repository are meant, and where they lie on this machine.
//!
//! The choice is that of `datasets`, on both hubs: what the `configs` of the repository's README say, else files whose name says the
//! split, else all files of the kind that there is most of. Loading scripts are not run.

use std::path::{Path, PathBuf};

use super::error::HubError;
use super::listing::{Listing, Pick};
use super::settings::HubSettings;
use super::{Progress, Want, hugging_face, modelscope};

/// Endings of data files, the packed ones among them.
const ENDINGS: [&str; 7] = ["parquet", "jsonl", "json", "csv", "arrow", "txt", "ndjson"];
const DEFAULT_SPLIT: &str = "train";
const README: &str = "README.md";

/// Which part of a data set is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatasetPart<'a> {
    /// The configuration (`subset`).
    pub subset: Option<&'a str>,
    /// `train` if not given.
    pub split: Option<&'a str>,
    /// Only files below this folder.
    pub folder: Option<&'a str>,
    /// One file, by its path in the repository; then the rest doesn't matter.
    pub file: Option<&'a str>,
}

/// The files of a part of the data set `id`, downloaded where no cache holds them: of Hugging Face's, or of ModelScope's if the
/// settings say so.
///
/// # Errors
/// As [`super::resolve`]; or a repository without files of that part, with what there is instead.
pub fn resolve_dataset(
    id: &str,
    part: DatasetPart<'_>,
    settings: &HubSettings,
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>, HubError> {
    // Models have a revision in the recipe, data sets have none.
    let settings = HubSettings { revision: None, ..settings.clone() };
    let pick = Pick { want: Want::Everything, file: None };
    let choose: Choose<'_> = &|names, readme| choose(id, part, names, readme);
    if settings.use_modelscope {
        return modelscope::Repository::dataset(&settings, id, pick)?.files(progress, choose);
    }
    hugging_face::Repository::dataset(&settings, id, pick)?.files(progress, choose)
}

/// Takes files out of all names, given the README's text.
pub(super) type Choose<'a> = &'a dyn Fn(&[&str], Option<&str>) -> Result<Vec<String>, HubError>;

/// What a cache holds of a data set.
pub(super) struct Held {
    /// Where its files lie.
    pub(super) folder: PathBuf,
    /// What the hub said it has; Python's libraries leave none.
    pub(super) listing: Option<Listing>,
}

impl Held {
    /// The files that `choose` takes of `names`, which may not be there.
    pub(super) fn chosen(&self, names: &[&str], choose: Choose<'_>) -> Result<Vec<PathBuf>, HubError> {
        let readme = first(names).and_then(|name| std::fs::read_to_string(self.folder.join(name)).ok());
        Ok(choose(names, readme.as_deref())?.iter().map(|name| self.folder.join(name)).collect())
    }

    /// The files, if they are known to be all.
    fn known(&self, choose: Choose<'_>) -> Option<Vec<PathBuf>> {
        let names: Vec<&str> = self.listing.as_ref()?.names().collect();
        let readme_here = first(&names).is_none_or(|name| self.folder.join(name).is_file());
        let found = self.chosen(&names, choose).ok()?;
        (readme_here && found.iter().all(|file| file.is_file())).then_some(found)
    }

    /// The files among what lies there: for when the hub can't be asked.
    fn seeming(&self, choose: Choose<'_>) -> Option<Vec<PathBuf>> {
        let names = walk(&self.folder);
        self.chosen(&names.iter().map(String::as_str).collect::<Vec<_>>(), choose).ok()
    }

    /// The files from the cache if it is known to hold them, else by `fetch`, which `offline` forbids, else from the cache if
    /// it seems to hold them.
    pub(super) fn or_else(
        self,
        choose: Choose<'_>,
        offline: Option<HubError>,
        fetch: impl FnOnce() -> Result<Vec<PathBuf>, HubError>,
    ) -> Result<Vec<PathBuf>, HubError> {
        if let Some(found) = self.known(choose) {
            return Ok(found);
        }
        if let Some(error) = offline {
            return self.seeming(choose).ok_or(error);
        }
        let error = match fetch() {
            Err(error) if error.is_silence() || error.is_refusal() => error,
            fetched => return fetched,
        };
        let found = self.seeming(choose).ok_or(error)?;
        tracing::warn!(folder = %self.folder.display(), "the hub gives nothing; taking what the cache holds");
        Ok(found)
    }
}

/// Files wanted before the choice can be made: the README, which may say what belongs to what.
pub(super) fn first<'a>(names: &[&'a str]) -> Option<&'a str> {
    names.iter().find(|name| **name == README).copied()
}

/// The files of `names` that are meant; `readme` is the README's text.
fn choose(id: &str, part: DatasetPart<'_>, names: &[&str], readme: Option<&str>) -> Result<Vec<String>, HubError> {
    if let Some(file) = part.file {
        let found = names.iter().find(|name| **name == file).map(|name| vec![(*name).to_owned()]);
        return found.ok_or_else(|| nothing(id, &format!("`{file}`"), names));
    }
    let split = part.split.unwrap_or(DEFAULT_SPLIT);
    let inside =
        |name: &&&str| part.folder.is_none_or(|folder| name.starts_with(&format!("{}/", folder.trim_matches('/'))));
    let data: Vec<&str> = names.iter().filter(|name| is_data(name)).filter(inside).copied().collect();
    if let Some(patterns) = readme.and_then(|text| configured(text, part.subset, split)) {
        let found: Vec<String> = data
            .iter()
            .filter(|name| patterns.iter().any(|pattern| fits(pattern, name)))
            .map(|name| (*name).to_owned())
            .collect();
        return if found.is_empty() {
            Err(nothing(id, &format!("split `{split}`"), names))
        } else {
            Ok(one_kind(&found))
        };
    }
    let data: Vec<&str> = match part.subset {
        None => data,
        // Without a README a configuration is a folder.
        Some(subset) => data.into_iter().filter(|name| name.split('/').any(|folder| folder == subset)).collect(),
    };
    let named: Vec<String> = data.iter().filter(|name| says(name, split)).map(|name| (*name).to_owned()).collect();
    let other_splits = || data.iter().any(|name| SPLITS.iter().any(|split| says(name, split)));
    let found = if named.is_empty() && split == DEFAULT_SPLIT && !other_splits() {
        data.iter().map(|name| (*name).to_owned()).collect()
    } else {
        named
    };
    if found.is_empty() { Err(nothing(id, &format!("split `{split}`"), names)) } else { Ok(one_kind(&found)) }
}

const SPLITS: [&str; 7] = ["train", "training", "test", "testing", "validation", "valid", "dev"];

/// Whether a name has `split` as a word of its own.
fn says(name: &str, split: &str) -> bool {
    let same = |word: &str| {
        word == split
            || (split == "train" && word == "training")
            || (split == "validation" && matches!(word, "valid" | "dev"))
    };
    name.split(|c: char| !c.is_ascii_alphanumeric()).any(same)
}

/// Whether a name is that of a data file.
pub(super) fn is_data(name: &str) -> bool {
    ending(name).is_some()
        && !["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"]
            .contains(&name.rsplit('/').next().unwrap_or(name))
}

fn ending(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
    let (_, ending) = name.rsplit_once('.')?;
    ENDINGS.into_iter().find(|known| *known == ending)
}

/// Files of the ending that most of them have; of equals the one that stands first in the list of endings.
fn one_kind(names: &[String]) -> Vec<String> {
    let count = |wanted: &str| names.iter().filter(|name| ending(name) == Some(wanted)).count();
    let most = ENDINGS.into_iter().rev().max_by_key(|wanted| count(wanted));
    names.iter().filter(|name| ending(name) == most).cloned().collect()
}

/// A split's name and the patterns of its files.
type SplitFiles = (String, Vec<String>);

/// The patterns that the README's `configs` give for a split. The header is YAML of a fixed form, and is read line by
/// line: this crate has no YAML, and what isn't of that form is as good as absent.
fn configured(readme: &str, subset: Option<&str>, split: &str) -> Option<Vec<String>> {
    let header = readme.strip_prefix("---\n")?.split("\n---").next()?;
    let configs = header.split_once("configs:\n")?.1;
    let value = |line: &str, key: &str| -> Option<String> {
        let rest = line.trim_start_matches(['-', ' ']).strip_prefix(key)?.strip_prefix(':')?;
        Some(rest.trim().trim_matches(['"', '\'']).to_owned())
    };
    let mut found: Vec<(String, bool, Vec<SplitFiles>)> = Vec::new();
    for line in configs.lines() {
        if !line.starts_with([' ', '-']) {
            break;
        }
        if let Some(name) = value(line, "config_name") {
            found.push((name, false, Vec::new()));
        }
        let Some((_, default, splits)) = found.last_mut() else { continue };
        if value(line, "default").is_some_and(|value| value == "true") {
            *default = true;
        } else if let Some(split) = value(line, "split") {
            splits.push((split, Vec::new()));
        } else if let Some(path) =
            value(line, "path").or_else(|| value(line, "data_files")).filter(|path| !path.is_empty())
        {
            match splits.last_mut() {
                Some((_, paths)) => paths.push(path),
                None => splits.push((DEFAULT_SPLIT.to_owned(), vec![path])),
            }
        } else if let (Some(path), Some((_, paths))) = (line.trim().strip_prefix("- "), splits.last_mut())
            && !path.contains(':')
        {
            paths.push(path.trim_matches(['"', '\'']).to_owned());
        }
    }
    let chosen = match subset {
        Some(subset) => found.iter().find(|(name, ..)| name == subset),
        None => found
            .iter()
            .find(|(name, default, _)| *default || name == "default")
            .or_else(|| found.first().filter(|_| found.len() == 1)),
    };
    let (_, _, splits) = chosen?;
    splits.iter().find(|(name, _)| name == split).map(|(_, paths)| paths.clone()).filter(|paths| !paths.is_empty())
}

/// Whether `name` fits `pattern`, in which `*` stands for anything but a slash, and `**` for anything.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.find('*') {
        None => pattern == name,
        Some(star) => {
            let Some(rest) = name.strip_prefix(&pattern[..star]) else { return false };
            let (deep, after) = match pattern[star..].strip_prefix("**/").or_else(|| pattern[star..].strip_prefix("**"))
            {
                Some(after) => (true, after),
                None => (false, &pattern[star + 1..]),
            };
            let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            ends.take_while(|&at| deep || !rest[..at].contains('/')).any(|at| fits(after, &rest[at..]))
        }
    }
}

fn nothing(id: &str, wanted: &str, names: &[&str]) -> HubError {
    const SHOWN: usize = 8;
    let data: Vec<&str> = names.iter().filter(|name| is_data(name)).copied().collect();
    let script = names.iter().any(|name| name.ends_with(".py"));
    let more = if data.len() > SHOWN { ", ..." } else { "" };
    let found = match data.is_empty() {
        true => "no data file".to_owned(),
        false => format!("{}{more}", data[..data.len().min(SHOWN)].join(", ")),
    };
    let cure = match script && data.is_empty() {
        true => {
            "it is made by a Python script, which isn't run: run it yourself, save the rows as parquet, and name the file in `file_name`"
        }
        false => "set `split`, `subset` or `folder` in the entry of `dataset_info.json`",
    };
    HubError::NothingToLoad { id: id.to_owned(), wanted: wanted.to_owned(), found, cure: cure.to_owned() }
}

/// Files below `folder`, as their paths in it; for a snapshot whose listing isn't known.
pub(super) fn walk(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![(folder.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.path().is_dir() {
                true => folders.push((entry.path(), format!("{name}/"))),
                false => names.push(name),
            }
        }
    }
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(part: DatasetPart<'_>, names: &[&str], readme: Option<&str>) -> Vec<String> {
        choose("o/d", part, names, readme).unwrap_or_else(|error| vec![error.to_string()])
    }

    #[test]
    fn splits_are_found_by_name() {
        let all = DatasetPart::default();
        let names = [
            "README.md",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/test.parquet",
        ];
        assert_eq!(chosen(all, &names, None), names[1..3]);
        assert_eq!(chosen(DatasetPart { split: Some("test"), ..all }, &names, None), names[3..]);
        assert_eq!(chosen(all, &["a.json", "b.json", "c.csv", "dataset_infos.json"], None), ["a.json", "b.json"]);
        assert_eq!(
            chosen(DatasetPart { subset: Some("en"), ..all }, &["de/train.jsonl", "en/train.jsonl.gz"], None),
            ["en/train.jsonl.gz"]
        );
        assert_eq!(chosen(DatasetPart { folder: Some("x"), ..all }, &["x/a.txt", "y/a.txt"], None), ["x/a.txt"]);
        assert_eq!(chosen(DatasetPart { file: Some("b.txt"), ..all }, &["a.txt", "b.txt"], None), ["b.txt"]);
        let error = chosen(all, &["test.json"], None).remove(0);
        assert!(error.contains("split `train`") && error.contains("test.json"), "{error}");
        let error = chosen(all, &["d.py"], None).remove(0);
        assert!(error.contains("Python script"), "{error}");
    }

    #[test]
    fn the_readme_says_what_belongs_to_what() {
        let readme = "---\nlicense: mit\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: \"en/*.parquet\"\n  - split: test\n    path:\n    - en/t1.json\n    - en/t2.json\n- config_name: de\n  default: true\n  data_files: de/**\nother: x\n---\n# T\n";
        let names = ["en/a.parquet", "en/x/a.parquet", "en/t1.json", "en/t2.json", "de/x/y.csv"];
        let of = |subset, split| chosen(DatasetPart { subset, split, ..DatasetPart::default() }, &names, Some(readme));
        assert_eq!(of(Some("en"), None), ["en/a.parquet"]);
        assert_eq!(of(Some("en"), Some("test")), ["en/t1.json", "en/t2.json"]);
        assert_eq!(of(None, None), ["de/x/y.csv"]);
        for hostile in [
            "---\nconfigs:\n- config_name\n:::",
            "---\nconfigs:\n\u{feff}---",
            "---",
            "---\nconfigs:\n  - split: train\n    path: x\n---",
        ] {
            assert!(!chosen(DatasetPart::default(), &["a.json"], Some(hostile)).is_empty());
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("data/*.parquet", "data/a.parquet", true),
            ("data/*.parquet", "data/x/a.parquet", false),
            ("**/a.json", "x/y/a.json", true),
            ("**/a.json", "a.json", true),
            ("data/**", "data/x/y", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
