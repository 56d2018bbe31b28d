//! Ranks over TCP inside one process.

use ferrotune_dist::{Abort, Comm, Link, Pulse, Ranks, TcpSettings, TcpTransport};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Two ends of one connection.
pub(crate) fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

/// For each rank its links to all others.
pub(crate) fn mesh(world: usize) -> Vec<Vec<Link>> {
    let mut links: Vec<Vec<Link>> = (0..world).map(|_| Vec::new()).collect();
    for low in 0..world {
        for high in low + 1..world {
            let (one, other) = connection();
            links[low].push(Link { rank: high, host: format!("host-{high}"), stream: one });
            links[high].push(Link { rank: low, host: format!("host-{low}"), stream: other });
        }
    }
    links
}

/// A rank over its links.
pub(crate) fn start(rank: usize, links: Vec<Link>, peer_timeout: Duration) -> Rc<dyn Comm> {
    let (abort, pulse) = (Arc::new(Abort::default()), Arc::new(Pulse::default()));
    let settings = TcpSettings { rank, host: format!("host-{rank}"), peer_timeout };
    let transport = TcpTransport::new(settings, links, abort.clone(), pulse.clone()).unwrap();
    Rc::new(Ranks::start(transport, abort, pulse).unwrap())
}

/// As `threads::run`, over sockets.
pub(crate) fn tcp<R: Send>(world: usize, peer_timeout: Duration, body: impl Fn(Rc<dyn Comm>) -> R + Sync) -> Vec<R> {
    let body = &body;
    std::thread::scope(|scope| {
        let ranks = mesh(world).into_iter().enumerate();
        let ranks = ranks.map(|(rank, links)| scope.spawn(move || body(start(rank, links, peer_timeout))));
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}
