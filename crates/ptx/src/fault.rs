//! What can go wrong, with the operands that show it.

/// Where in a launch a fault happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Kernel.
    pub kernel: String,
    /// Line of the PTX, counted from 1.
    pub line: u32,
    /// The instruction as written.
    pub text: String,
    /// Block of the grid.
    pub block: [u32; 3],
    /// Thread of the block, `x + y * nx + z * nx * ny`; of a warp's fault its first thread.
    pub thread: u32,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kernel, line, text, block: [x, y, z], thread } = self;
        write!(f, "{kernel}, PTX line {line} `{text}`, block ({x}, {y}, {z}), thread {thread}")
    }
}

/// Why a kernel, or the host, was stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// No live allocation holds these bytes.
    #[error("{bytes} bytes at {address:#x} are in no allocation{near}")]
    OutOfBounds {
        /// First byte.
        address: u64,
        /// Bytes of the access.
        bytes: u64,
        /// The allocation before it, in words, if there is one.
        near: String,
    },
    /// Not a multiple of the access's size.
    #[error("{address:#x} is no multiple of {bytes}")]
    Misaligned {
        /// First byte.
        address: u64,
        /// Bytes of the access.
        bytes: u64,
    },
    /// Nobody has written there since the allocation.
    #[error("{address:#x} was never written")]
    Uninitialised {
        /// First byte of the access.
        address: u64,
    },
    /// Beyond the block's shared memory.
    #[error("{bytes} bytes at {address:#x} of {size} bytes of shared memory")]
    SharedBounds {
        /// First byte.
        address: u64,
        /// Bytes of the access.
        bytes: u64,
        /// Shared memory of the block.
        size: usize,
    },
    /// Two threads use one place of shared memory, one of them writes, and no barrier is between them.
    #[error("shared memory at {address:#x} is used by this thread and {other}, one of them writes, no barrier between")]
    SharedRace {
        /// First byte of the place.
        address: u64,
        /// The other thread, in words.
        other: String,
    },
    /// Shared memory that an unfinished `cp.async` is still filling.
    #[error("shared memory at {address:#x} is still being filled by cp.async")]
    InFlight {
        /// First byte of the place.
        address: u64,
    },
    /// Two blocks of one launch use one place of global memory and one writes.
    #[error("{address:#x} was written by block {other} of the same launch")]
    GlobalRace {
        /// First byte of the place.
        address: u64,
        /// Linear index of the other block.
        other: u32,
    },
    /// An instruction for all lanes of a mask was reached by some.
    #[error("reached by lanes {active:#010x}, wanted by {wanted:#010x}")]
    Diverged {
        /// Lanes that wait there.
        active: u32,
        /// Lanes it names.
        wanted: u32,
    },
    /// Threads of a block wait at different barriers, or some have ended.
    #[error("barrier not reached by all threads of the block: {others}")]
    Barrier {
        /// What the others do, in words.
        others: String,
    },
    /// More instructions than allowed.
    #[error("no end after {0} instructions")]
    TooLong(u64),
}

/// An error of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// PTX that isn't understood.
    #[error("PTX line {line}: {what}: `{text}`")]
    Parse {
        /// Line, counted from 1.
        line: u32,
        /// The statement.
        text: String,
        /// What is wrong with it.
        what: String,
    },
    /// A kernel did something undefined.
    #[error("{place}: {cause}")]
    Run {
        /// Where.
        place: Box<Place>,
        /// What.
        cause: Cause,
    },
    /// The host used device memory wrongly.
    #[error("host: {0}")]
    Host(Cause),
    /// A launch that no driver would accept.
    #[error("launch of {kernel}: {what}")]
    Launch {
        /// Kernel asked for.
        kernel: String,
        /// What is wrong.
        what: String,
    },
}
