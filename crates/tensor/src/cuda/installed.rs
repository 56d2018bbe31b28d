//! What one GPU needs of the machine: a driver with a GPU behind it, and cublasLt.

use super::blas::{self, Blas};
use super::driver::{self, Driver, code};
use super::gpu::{self, About};
use super::{CallError, NotLoaded, Search};

/// The libraries, opened.
#[derive(Debug, Clone)]
pub struct Libraries {
    pub(crate) driver: Driver,
    pub(crate) blas: Blas,
}

/// There is something, but it can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// A library.
    #[error(transparent)]
    Library(#[from] NotLoaded),
    /// The driver says no.
    #[error("the NVIDIA driver ({path}) can't be used: {error}")]
    Driver {
        /// Its library.
        path: String,
        /// What it said.
        #[source]
        error: CallError,
    },
    /// A driver from before CUDA 12.
    #[error(
        "the NVIDIA driver ({path}) runs CUDA {}.{} at most; 12.0 is needed. Driver 525 or newer brings it.",
        version / 1000, version % 1000 / 10
    )]
    OldDriver {
        /// Its library.
        path: String,
        /// 1000 major + 10 minor.
        version: i32,
    },
}

impl Libraries {
    /// Finds them; `None` where there is no GPU, be it that there is no driver or that it sees none.
    ///
    /// # Errors
    /// If there is a GPU that can't be used, with every place that was looked at.
    pub fn find(search: &Search) -> Result<Option<Self>, Unusable> {
        let driver = match driver::open(search) {
            Ok(driver) => driver,
            Err(missing) if !missing.found_something() => return Ok(None),
            Err(missing) => return Err(missing.into()),
        };
        let path = driver.library().path().display().to_string();
        let counted = driver.begin().and_then(|()| driver.count());
        match counted {
            Ok(0) => return Ok(None),
            Err(error) if error.code == code::NO_DEVICE => return Ok(None),
            Err(error) => return Err(Unusable::Driver { path, error }),
            Ok(_) => {}
        }
        let version = driver.version().map_err(|error| Unusable::Driver { path: path.clone(), error })?;
        if version < 12_000 {
            return Err(Unusable::OldDriver { path, version });
        }
        let blas = blas::open(search, version)?;
        Ok(Some(Self { driver, blas }))
    }

    /// The driver's functions.
    pub fn driver(&self) -> &Driver {
        &self.driver
    }

    /// cublasLt's.
    pub fn blas(&self) -> &Blas {
        &self.blas
    }

    /// What is known of each GPU that the process may see.
    ///
    /// # Errors
    /// The driver's.
    pub fn devices(&self) -> Result<Vec<About>, CallError> {
        (0..self.driver.count()?).map(|number| gpu::about(&self.driver, number).map(|(_, about)| about)).collect()
    }
}
