//! The file of one rank's part of a training state, and the index of all of them.
//!
//! `ferrotune_state-00002-of-00004.safetensors` holds stretches of tensors in f32: `m.NAME@1024` is the one of `m.NAME`
//! that begins at its element 1024. The header names the save (so that files of two saves are never mixed), rank, number
//! of ranks, and the shapes of the whole tensors. Nothing in it depends on who reads: any number of ranks finds what it
//! wants in the index, which is made of the headers alone and vouches for every element being there exactly once.

use crate::engine::Piece;
use ferrotune_checkpoint::{Dtype, Error, Result, SafetensorsFile, TensorSource};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Key of the header's metadata.
const ABOUT: &str = "ferrotune";
/// Most ranks that a snapshot may be of.
pub(super) const MAX_RANKS: usize = 1 << 16;

/// The file of a rank's part, ranks counted from 1 as shards of models are.
pub(super) fn file_name(rank: usize, world: usize) -> String {
    format!("ferrotune_state-{:05}-of-{world:05}.safetensors", rank + 1)
}

/// What a file says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct About {
    /// The save it belongs to.
    pub(super) save: String,
    /// Whose part it is.
    pub(super) rank: usize,
    /// Of how many.
    pub(super) world: usize,
    /// Shapes of the whole tensors of which it holds stretches.
    pub(super) shapes: BTreeMap<String, Vec<usize>>,
}

/// A stretch of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stretch {
    /// The tensor.
    pub(super) name: String,
    /// Its whole shape.
    pub(super) shape: Vec<usize>,
    /// Its elements, row-major.
    pub(super) range: Range<usize>,
}

impl Stretch {
    /// What it is called in a file.
    pub(super) fn key(&self) -> String {
        format!("{}@{}", self.name, self.range.start)
    }
}

/// What is to be written of `pieces`: the header's metadata, and the pieces by their keys, in the file's order.
pub(super) fn layout(mut about: About, pieces: Vec<Piece>) -> (About, Vec<(String, Piece)>) {
    let stretch =
        |piece: &Piece| Stretch { name: piece.name.clone(), shape: piece.shape.clone(), range: piece.range.clone() };
    about.shapes = pieces.iter().map(|piece| (piece.name.clone(), piece.shape.clone())).collect();
    let mut keyed: Vec<_> = pieces.into_iter().map(|piece| (stretch(&piece).key(), piece)).collect();
    keyed.sort_by(|a, b| a.0.cmp(&b.0));
    (about, keyed)
}

impl About {
    /// As a file's metadata: key and value.
    pub(super) fn metadata(&self) -> (&'static str, String) {
        (ABOUT, serde_json::to_string(self).expect("strings, numbers and lists are JSON"))
    }
}

/// An open part.
pub(super) struct Part {
    file: SafetensorsFile,
    stretches: Vec<Stretch>,
}

impl Part {
    /// Opens the part of `rank` of `world` in a snapshot's folder and checks that it is of this save.
    ///
    /// # Errors
    /// If it can't be read or isn't what it should be.
    pub(super) fn open(folder: &Path, save: &str, rank: usize, world: usize) -> Result<Self> {
        let path = folder.join(file_name(rank, world));
        let file = SafetensorsFile::open(&path)?;
        let bad = |reason: String| Error::Safetensors { path: path.clone(), reason };
        let about = file.metadata(ABOUT).ok_or_else(|| bad(format!("its header has no `{ABOUT}`")))?;
        let about: About =
            serde_json::from_str(about).map_err(|error| bad(format!("`{ABOUT}` in its header: {error}")))?;
        if (about.save.as_str(), about.rank, about.world) != (save, rank, world) {
            return Err(bad(format!(
                "it is rank {} of {} of save {}, expected rank {rank} of {world} of save {save}",
                about.rank, about.world, about.save
            )));
        }
        let stretches =
            file.names().iter().map(|key| stretch(&file, &about, key).map_err(bad)).collect::<Result<_>>()?;
        Ok(Self { file, stretches })
    }

    /// What it holds.
    pub(super) fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// Reads elements `range` of the whole tensor, all of them in `stretch`, which is one of its own.
    ///
    /// # Errors
    /// If the file can't be read.
    pub(super) fn read(&self, stretch: &Stretch, range: Range<usize>, dst: &mut [u8]) -> Result<()> {
        let start = stretch.range.start;
        self.file.read_range(&stretch.key(), range.start - start..range.end - start, Dtype::F32, dst)
    }
}

/// The stretch that is stored under `key`.
fn stretch(file: &SafetensorsFile, about: &About, key: &str) -> Result<Stretch, String> {
    let named = key.rsplit_once('@').and_then(|(name, start)| Some((name, start.parse::<usize>().ok()?)));
    let (name, start) = named.ok_or_else(|| format!("'{key}' doesn't end in @ and a first element"))?;
    let shape = about.shapes.get(name).ok_or_else(|| format!("its header has no shape of '{name}'"))?;
    let info = file.info(key).ok_or_else(|| format!("it has no tensor '{key}'"))?;
    if info.dtype != Dtype::F32 || info.shape.len() != 1 {
        return Err(format!("'{key}' is {} of shape {:?}, expected F32 in one row", info.dtype.name(), info.shape));
    }
    let end = start.checked_add(info.shape[0]).ok_or_else(|| format!("'{key}' ends beyond all numbers"))?;
    Ok(Stretch { name: name.to_owned(), shape: shape.clone(), range: start..end })
}

/// A tensor of the state and where its stretches lie.
#[derive(Debug, PartialEq)]
pub(super) struct Whole {
    /// Its shape.
    pub(super) shape: Vec<usize>,
    /// Elements, part and number in the part; ascending, without gap or overlap.
    pub(super) stretches: Vec<(Range<usize>, usize, usize)>,
}

/// All tensors of a state, by name.
pub(super) type Index = BTreeMap<String, Whole>;

/// The index of all parts' stretches.
///
/// # Errors
/// What is missing, there twice or contradictory, in words.
pub(super) fn index<'a>(parts: impl Iterator<Item = &'a [Stretch]>) -> Result<Index, String> {
    let mut index = Index::new();
    for (part, stretches) in parts.enumerate() {
        for (number, Stretch { name, shape, range }) in stretches.iter().enumerate() {
            let whole =
                index.entry(name.clone()).or_insert_with(|| Whole { shape: shape.clone(), stretches: Vec::new() });
            if whole.shape != *shape {
                return Err(format!("{name} has shape {:?} in one part and {shape:?} in another", whole.shape));
            }
            whole.stretches.push((range.clone(), part, number));
        }
    }
    for (name, whole) in &mut index {
        whole.stretches.sort_by_key(|(range, ..)| (range.start, range.end));
        let elements = whole.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let elements = elements.ok_or_else(|| format!("{name} has shape {:?}, which no memory holds", whole.shape))?;
        let mut covered = 0;
        for (range, ..) in &whole.stretches {
            if range.start != covered || range.end <= range.start {
                let (what, from, to) = match range.start > covered {
                    true => ("are missing", covered, range.start),
                    false => ("come twice", range.start, covered.min(range.end).max(range.start + 1)),
                };
                return Err(format!("elements {from} to {} of {name} {what}", to - 1));
            }
            covered = range.end;
        }
        if covered != elements {
            return Err(format!("{name} has {covered} elements in the parts, {elements} by its shape"));
        }
    }
    Ok(index)
}

/// Where two ranges meet.
pub(super) fn meet(a: &Range<usize>, b: &Range<usize>) -> Option<Range<usize>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (!both.is_empty()).then_some(both)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_checkpoint::{FolderWriter, OutTensor};

    fn stretch(name: &str, range: Range<usize>) -> Stretch {
        Stretch { name: name.into(), shape: vec![3, 4], range }
    }

    #[test]
    #[expect(clippy::cloned_ref_to_slice_refs, reason = "lists of one beside lists of two")]
    fn an_index_vouches_for_every_element_once() {
        let built = |parts: &[&[Stretch]]| index(parts.iter().copied());
        let (a, b) = (stretch("m.a", 0..5), stretch("m.a", 5..12));
        let whole = built(&[&[b.clone()], &[a.clone()]]).unwrap();
        assert_eq!(whole["m.a"].stretches, [(0..5, 1, 0), (5..12, 0, 0)]);
        let told = |parts: &[&[Stretch]]| built(parts).unwrap_err();
        assert_eq!(told(&[&[a.clone()]]), "m.a has 5 elements in the parts, 12 by its shape");
        assert_eq!(told(&[&[a.clone()], &[stretch("m.a", 7..12)]]), "elements 5 to 6 of m.a are missing");
        assert_eq!(told(&[&[a.clone(), b.clone()], &[stretch("m.a", 4..5)]]), "elements 4 to 4 of m.a come twice");
        assert_eq!(told(&[&[a.clone(), b.clone()], &[b.clone()]]), "elements 5 to 11 of m.a come twice");
        assert_eq!(
            told(&[&[a.clone(), b, stretch("m.a", 12..14)]]),
            "m.a has 14 elements in the parts, 12 by its shape"
        );
        let odd = Stretch { shape: vec![12], ..stretch("m.a", 5..12) };
        assert_eq!(told(&[&[a], &[odd]]), "m.a has shape [3, 4] in one part and [12] in another");
        let huge = Stretch { shape: vec![usize::MAX, 2], ..stretch("v", 0..1) };
        assert!(told(&[&[huge]]).ends_with("which no memory holds"));
    }

    #[test]
    fn a_part_must_be_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let folder = FolderWriter::new(dir.path()).unwrap();
        let about = About {
            save: "5".into(),
            rank: 1,
            world: 2,
            shapes: [("m.a".to_owned(), vec![3, 4])].into_iter().collect(),
        };
        let write = |metadata: (&str, &str), key: &str, shape: &[usize], dtype| {
            let bytes = vec![0; 8];
            let tensors = vec![OutTensor::bytes(key, shape, dtype, &bytes)];
            folder.tensors_with(&file_name(1, 2), metadata, tensors).unwrap();
            Part::open(dir.path(), "5", 1, 2).map(|part| part.stretches).map_err(|error| error.to_string())
        };
        let (key, value) = about.metadata();
        let found = write((key, &value), "m.a@4", &[2], Dtype::F32).unwrap();
        assert_eq!(found, [stretch("m.a", 4..6)]);
        let told = |name: &str, shape: &[usize], dtype| write((key, &value), name, shape, dtype).unwrap_err();
        assert!(told("m.a", &[2], Dtype::F32).contains("'m.a' doesn't end in @ and a first element"));
        assert!(told("m.b@0", &[2], Dtype::F32).contains("its header has no shape of 'm.b'"));
        assert!(told("m.a@0", &[2, 1], Dtype::F32).contains("expected F32 in one row"));
        assert!(told("m.a@0", &[1], Dtype::I64).contains("expected F32 in one row"));
        assert!(told(&format!("m.a@{}", usize::MAX), &[2], Dtype::F32).contains("ends beyond all numbers"));
        assert!(
            write(("format", "pt"), "m.a@0", &[2], Dtype::F32).unwrap_err().contains("its header has no `ferrotune`")
        );
        assert!(write((key, "{"), "m.a@0", &[2], Dtype::F32).unwrap_err().contains("`ferrotune` in its header"));
        let other = About { save: "6".into(), ..about }.metadata().1;
        let error = write((key, &other), "m.a@0", &[2], Dtype::F32).unwrap_err();
        assert!(error.contains("it is rank 1 of 2 of save 6, expected rank 1 of 2 of save 5"), "{error}");
    }
}
