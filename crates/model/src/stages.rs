//! How a model that is cut into stages is walked through from one of them: what runs it says which segments lie here and
//! carries the residual stream over the borders. The model itself knows spans of segments and no ranks.

use ferrotune_tensor::{Host, Tensor};
use std::ops::Range;

/// A host that holds the segments of one stage; of all of them where there is one.
pub trait Stages: Host {
    /// The segments here.
    fn here(&self) -> Range<usize>;

    /// Fills `stream` with what the stage before handed on. Not asked on the first stage.
    fn receive(&self, stream: &Tensor);

    /// Hands the residual stream to the next stage. Not asked on the last one.
    fn hand_on(&self, stream: &Tensor);

    /// Makes the last stage's `logits` those of all ranks that walk through the model together. A rank that is lost stops
    /// the device, as in a host's other work.
    fn share(&self, logits: &Tensor);
}
