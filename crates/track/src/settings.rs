//! Which trackers, and how: the recipe's keys, then the variables that transformers and the trackers' own programs read.

use std::path::{Path, PathBuf};

use ferrotune_config::env;
use ferrotune_config::plan::{SwanlabMode, TrackersPlan};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The trackers of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// TensorBoard's event files.
    pub tensorboard: Option<TensorBoard>,
    /// MLflow.
    pub mlflow: Option<Mlflow>,
    /// Weights & Biases.
    pub wandb: Option<Wandb>,
    /// SwanLab.
    pub swanlab: Option<Swanlab>,
}

/// Where event files go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TensorBoard {
    /// Their folder; a new one below `runs` in the output folder if not set.
    pub folder: Option<PathBuf>,
}

/// MLflow's run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mlflow {
    /// Folder of the file store.
    pub store: PathBuf,
    /// The experiment's name, `Default` if not set.
    pub experiment: Option<String>,
    /// The run's name.
    pub name: Option<String>,
    /// A run to go on with.
    pub run_id: Option<String>,
    /// Tags beside MLflow's own.
    pub tags: Map<String, Value>,
    /// Parameters that are mappings become one for each of their values.
    pub flatten: bool,
    /// Most parameters.
    pub max_params: Option<usize>,
}

/// Weights & Biases' run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wandb {
    /// Folder in which `wandb` is.
    pub folder: PathBuf,
    /// The project.
    pub project: String,
    /// The team or user.
    pub entity: String,
    /// The run's name.
    pub name: String,
    /// A name for the run that no other has; a new one if not set.
    pub id: Option<String>,
    /// Group of runs.
    pub group: String,
    /// Kind of the run.
    pub job_type: String,
    /// A longer description.
    pub notes: String,
    /// Tags.
    pub tags: Vec<String>,
}

/// SwanLab's run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swanlab {
    /// Folder of all runs.
    pub folder: PathBuf,
    /// The project.
    pub project: String,
    /// The workspace.
    pub workspace: String,
    /// The run's name.
    pub name: String,
    /// A name for the run that no other has; a new one if not set.
    pub id: Option<String>,
    /// A longer description.
    pub description: String,
    /// Tags.
    pub tags: Vec<String>,
}

/// Variables, an empty one being as good as none.
struct Vars<'a> {
    read: &'a dyn Fn(&str) -> Option<String>,
}

impl Vars<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.read)(name).filter(|value| !value.trim().is_empty())
    }

    fn text(&self, name: &str) -> String {
        self.get(name).unwrap_or_default()
    }

    fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| env::is_on(&value))
    }

    fn list(&self, name: &str) -> Vec<String> {
        let text = self.text(name);
        text.split(',').map(|tag| tag.trim().to_owned()).filter(|tag| !tag.is_empty()).collect()
    }
}

impl Settings {
    /// Those of a plan, with the variables that `read` looks up; folders are relative to `here`. What keeps a tracker from
    /// being set up comes beside, a line each.
    pub fn new(plan: &TrackersPlan, read: &dyn Fn(&str) -> Option<String>, here: &Path) -> (Self, Vec<String>) {
        let vars = Vars { read };
        let mut troubles = Vec::new();
        let mlflow = match plan.mlflow && !vars.is_on(env::DISABLE_MLFLOW_INTEGRATION) {
            true => mlflow(plan, &vars, here).map_err(|error| troubles.push(format!("MLflow: {error}"))).ok(),
            false => None,
        };
        let settings = Self {
            tensorboard: plan.tensorboard.as_ref().map(|folder| TensorBoard {
                folder: folder.clone().or_else(|| vars.get(env::TENSORBOARD_LOGGING_DIR).map(|dir| home(&vars, &dir))),
            }),
            mlflow,
            wandb: (plan.wandb && !is_off(&vars)).then(|| wandb(plan, &vars, here)),
            swanlab: swanlab(plan, &vars, here),
        };
        (settings, troubles)
    }

    /// Whether there is nobody to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A path with the home folder in place of a leading `~/`.
fn home(vars: &Vars<'_>, path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), vars.get(env::HOME)) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path.into(),
    }
}

fn mlflow(plan: &TrackersPlan, vars: &Vars<'_>, here: &Path) -> Result<Mlflow> {
    let wrong = |variable, problem| move |value: String| Error::Variable { variable, value, problem };
    let store = match vars.get(env::MLFLOW_TRACKING_URI) {
        None => here.join("mlruns"),
        Some(uri) => match uri.strip_prefix("file:") {
            Some(path) => PathBuf::from(path.strip_prefix("//").unwrap_or(path)),
            None if uri.contains("://") || uri.starts_with("databricks") => {
                return Err(wrong(
                    env::MLFLOW_TRACKING_URI,
                    "only the file store is written; name a folder, from which `mlflow migrate-filestore` takes it elsewhere",
                )(uri));
            }
            None => here.join(home(vars, &uri)),
        },
    };
    let tags = match vars.get(env::MLFLOW_TAGS) {
        None => Map::new(),
        Some(text) => serde_json::from_str(&text)
            .map_err(|_| wrong(env::MLFLOW_TAGS, "it must be a JSON object")(text.clone()))?,
    };
    Ok(Mlflow {
        store,
        experiment: vars.get(env::MLFLOW_EXPERIMENT_NAME),
        name: plan.run_name.clone(),
        run_id: vars.get(env::MLFLOW_RUN_ID),
        tags,
        flatten: vars.is_on(env::MLFLOW_FLATTEN_PARAMS),
        max_params: vars.get(env::MLFLOW_MAX_LOG_PARAMS).and_then(|count| count.parse().ok()),
    })
}

/// Whether W&B is switched off by its own variables.
fn is_off(vars: &Vars<'_>) -> bool {
    vars.is_on(env::WANDB_DISABLED) || vars.get(env::WANDB_MODE).is_some_and(|mode| mode == "disabled")
}

fn wandb(plan: &TrackersPlan, vars: &Vars<'_>, here: &Path) -> Wandb {
    Wandb {
        folder: vars.get(env::WANDB_DIR).map_or_else(|| here.to_path_buf(), |dir| here.join(home(vars, &dir))),
        project: vars.get(env::WANDB_PROJECT).unwrap_or_else(|| "huggingface".into()),
        entity: vars.text(env::WANDB_ENTITY),
        name: plan.run_name.clone().or_else(|| vars.get(env::WANDB_NAME)).unwrap_or_default(),
        id: vars.get(env::WANDB_RUN_ID).filter(|id| is_plain(id)),
        group: vars.text(env::WANDB_RUN_GROUP),
        job_type: vars.text(env::WANDB_JOB_TYPE),
        notes: vars.text(env::WANDB_NOTES),
        tags: vars.list(env::WANDB_TAGS),
    }
}

/// The keys of `use_swanlab`, or with `report_to: swanlab` the variables that transformers and SwanLab read.
fn swanlab(plan: &TrackersPlan, vars: &Vars<'_>, here: &Path) -> Option<Swanlab> {
    let keys = plan.swanlab.as_ref()?;
    let mode = vars.get(env::SWANLAB_MODE);
    if keys.mode == SwanlabMode::Disabled || keys.mode == SwanlabMode::Unset && mode.as_deref() == Some("disabled") {
        return None;
    }
    let folder =
        keys.folder.clone().or_else(|| vars.get(env::SWANLAB_LOG_DIR)).or_else(|| vars.get(env::SWANLAB_LOGDIR));
    let (project, name) = match keys.project.clone() {
        Some(project) => (Some(project), keys.run_name.clone()),
        None => (vars.get(env::SWANLAB_PROJECT).or_else(|| vars.get(env::SWANLAB_PROJ_NAME)), plan.run_name.clone()),
    };
    let here_called =
        || here.file_name().map_or_else(|| "ferrotune".into(), |name| name.to_string_lossy().into_owned());
    Some(Swanlab {
        folder: folder.map_or_else(|| here.join("swanlog"), |dir| here.join(home(vars, &dir))),
        project: project.unwrap_or_else(here_called),
        workspace: keys.workspace.clone().or_else(|| vars.get(env::SWANLAB_WORKSPACE)).unwrap_or_default(),
        name: name.or_else(|| vars.get(env::SWANLAB_EXP_NAME)).unwrap_or_default(),
        id: vars.get(env::SWANLAB_RUN_ID).filter(|id| is_plain(id)),
        description: vars.text(env::SWANLAB_DESCRIPTION),
        tags: vars.list(env::SWANLAB_TAGS),
    })
}

/// Whether a name is one of a folder and nothing else.
fn is_plain(name: &str) -> bool {
    name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}
