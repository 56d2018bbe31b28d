//! Gathers for the next block and reductions of the last one run while this one computes: seen in what two ranks did when,
//! over wires that are slow and take nothing from the processor. The same ranks without overlap wait for every byte.

#![expect(clippy::unwrap_used, reason = "a test fails where a value is missing")]

use ferrotune_config::plan::{AdamWPlan, Tuning};
use ferrotune_data::rows::Row;
use ferrotune_dist::trace::{Lane, Span, hidden};
use ferrotune_dist::transport::{Finish, Head, Incoming, Outgoing, Transport, Waker};
use ferrotune_dist::{Abort, Comm, CommError, Layout, Link, Mesh, Pulse, Ranks, TcpSettings, TcpTransport};
use ferrotune_model::{Config, Model};
use ferrotune_tensor::{DType, Device, Lent};
use ferrotune_train::engine::{Division, Engine, Offload, Sharding};
use ferrotune_train::{Fresh, Sample, StepOptions, Votes, Work, step};
use serde_json::json;
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const TOKENS: usize = 256;
/// A block's weights or gradients then take some milliseconds, as its computation does.
const BYTES_PER_SECOND: f64 = 400e6;

/// A transport whose messages take their time.
struct Slow<T>(T);

impl<T: Transport> Transport for Slow<T> {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn world(&self) -> usize {
        self.0.world()
    }

    fn duplex(&mut self, out: Option<Outgoing<'_>>, into: Option<Incoming<'_>>) -> Result<(), CommError> {
        let bytes = into.as_ref().map_or(0, |into| into.bytes.len());
        std::thread::sleep(Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND));
        self.0.duplex(out, into)
    }

    fn post(&mut self, to: usize, head: Head, loan: Lent, finish: Finish) {
        self.0.post(to, head, loan, finish);
    }

    fn idle(&mut self) -> Result<(), CommError> {
        self.0.idle()
    }

    fn waker(&self) -> Waker {
        self.0.waker()
    }

    fn finish(&mut self) {
        self.0.finish();
    }

    fn abandon(&mut self, error: &CommError) {
        self.0.abandon(error);
    }
}

fn comm(rank: usize, stream: TcpStream) -> Rc<dyn Comm> {
    let (abort, pulse) = (Arc::new(Abort::default()), Arc::new(Pulse::default()));
    let settings = TcpSettings { rank, host: "here".into(), peer_timeout: Duration::from_secs(20) };
    let links = vec![Link { rank: 1 - rank, host: "here".into(), stream }];
    let transport = TcpTransport::new(settings, links, abort.clone(), pulse.clone()).unwrap();
    Rc::new(Ranks::start(Slow(transport), abort, pulse).unwrap())
}

/// What the first of two ranks did when in a step under ZeRO-3.
fn spans(overlap: bool) -> Vec<Span> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let other = listener.accept().unwrap().0;
    std::thread::scope(|scope| {
        let rank = |rank, stream| scope.spawn(move || steps(&comm(rank, stream), overlap));
        let ranks = [rank(0, one), rank(1, other)];
        ranks.map(|rank| rank.join().unwrap())[0].clone()
    })
}

fn steps(comm: &Rc<dyn Comm>, overlap: bool) -> Vec<Span> {
    let config = json!({
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "tie_word_embeddings": false,
        "max_position_embeddings": 1024
    });
    let model = Model::new(&Config::from_json(&config).unwrap(), DType::F32, Some(&Tuning::Full), false).unwrap();
    let mesh = Mesh::new(comm.clone(), Layout { shards: 2, stages: 1, replicas: 1 });
    let spans = std::iter::once(model.span()).collect();
    let division = Division { mesh, sharding: Sharding::Weights, spans, overlap, offload: Offload::default() };
    let engine = Engine::new(&Device::cpu(), &model, division, false);
    engine.load(&Fresh::new(&model, 0.02, 7), &[], None, 7).unwrap();
    let options = StepOptions {
        optimizer: AdamWPlan { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 },
        max_norm: 1.0,
        smoothing: 0.0,
        router_aux_loss: 0.0,
        embedding_alpha: 0.0,
        seed: 1,
        plus: None,
        recompute: false,
    };
    let (ids, labels): (Vec<u32>, Vec<i32>) = (0..TOKENS).map(|i| (i as u32 * 7 % 256, i as i32 * 11 % 256)).unzip();
    let row = Row { input_ids: &ids, labels: &labels, segments: &[TOKENS as u32], isolated: false, source: (0, 0) };
    let micro_batches = [vec![Sample { row, index: 0 }]];
    // The first visits find out what they need; from the second step on it is known.
    for number in 1..=3 {
        comm.barrier().unwrap();
        comm.pulse().trace().start();
        let work =
            Work { step: number, rate: 1e-3, micro_batches: &micro_batches, scale: None, votes: &Votes::default };
        step(&model, &engine, &options, &work).unwrap();
    }
    comm.pulse().trace().stop().0
}

/// Share of the time of collectives of this name for which nobody waited.
fn share(spans: &[Span], name: &str) -> f64 {
    let of: Vec<Span> = spans.iter().filter(|s| s.lane == Lane::Waiting || s.name == name).cloned().collect();
    let (beside, all) = hidden(&of);
    assert!(all > Duration::from_millis(20), "{name}: {all:?} in all, {:?}", of.len());
    beside.as_secs_f64() / all.as_secs_f64()
}

#[test]
fn gathers_and_reductions_run_beside_the_computation_and_without_overlap_they_do_not() {
    let (with, without) = (spans(true), spans(false));
    for name in ["all_gather", "reduce_scatter"] {
        let (with, without) = (share(&with, name), share(&without, name));
        assert!(with > 0.4, "{name}: {with:.2} beside computing");
        assert!(without < 0.1, "{name}: {without:.2} beside computing though nothing may overlap");
    }
    // A gather is of the block after the one that computes: while it moves, another block's visit is under way.
    let visits: Vec<&Span> = with.iter().filter(|s| s.name.starts_with("block")).collect();
    assert_eq!(visits.len(), 12, "six blocks forward and backward");
    let inside = |s: &&Span| visits.iter().any(|visit| visit.begin <= s.begin && s.end <= visit.end);
    assert!(with.iter().filter(|s| s.name == "all_gather").filter(inside).count() >= 4);
}
