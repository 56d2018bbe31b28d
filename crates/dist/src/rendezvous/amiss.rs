//! Meetings in which somebody dies, lies, is deaf or comes too late, at the moments where that hurts most.

use super::mesh::{Meshing, Unmeshed};
use super::tests::{Told, error, meet, port, settings};
use super::token::nonce;
use super::*;
use crate::rendezvous::member::amiss;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

/// Joins as ranks 0 and 2 of three, while rank 1 does something else.
fn around(rank_1: impl FnOnce(&JoinSettings) + Send) -> Vec<Told> {
    let port = port();
    let start = Instant::now();
    let told = std::thread::scope(|scope| {
        scope.spawn(move || rank_1(&settings(1, 3, port)));
        meet(&[settings(0, 3, port), settings(2, 3, port)])
    });
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    told
}

#[test]
fn one_that_can_t_be_reached_is_named_with_both_ends_and_what_was_seen() {
    let mut own = None;
    let told = around(|settings| own = amiss::is_deaf(settings).err());
    for error in [error(&told[0]), error(&told[1]), &own.unwrap()] {
        let is_named = matches!(error, JoinError::NoWay { from: 2, to: 1, reason, .. } if reason.contains("refused"));
        assert!(is_named, "{error:?}");
        assert!(error.to_string().contains("NCCL_SOCKET_IFNAME"));
    }
}

#[test]
fn one_that_dies_while_all_connect_is_named_and_no_survivor() {
    for one in &around(amiss::leaves_at_the_table) {
        assert!(matches!(error(one), JoinError::Left { rank: 1, host, .. } if host == "host1"), "{:?}", error(one));
    }
}

#[test]
fn silent_strangers_at_a_data_port_hold_up_nobody() {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let member = |rank: usize| {
        let address = listeners[rank].local_addr().unwrap();
        let facts = Facts::default();
        Member { rank, node: rank, local_rank: 0, address: address.ip(), port: address.port(), facts }
    };
    let (members, session, token) = ([member(0), member(1)], nonce().unwrap(), Token::secret(b"s"));
    let strangers: Vec<TcpStream> = (0..40)
        .map(|i| {
            let mut stream = TcpStream::connect(listeners[0].local_addr().unwrap()).unwrap();
            stream.write_all(&b"\x10\0\0\0slow and silent"[..i % 16]).unwrap();
            stream
        })
        .collect();
    let start = Instant::now();
    let connect = |rank: usize, token: &Token| {
        let seconds = Duration::from_secs;
        let (within, message) = (seconds(3), seconds(2));
        let meshing = Meshing { rank, members: &members, session: &session, token, within, message, stop: &|| false };
        meshing.connect(&listeners[rank]).map(|links| links.iter().map(|link| link.rank).collect::<Vec<_>>())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| connect(1, &token).ok());
        assert_eq!(connect(0, &token).ok(), Some(vec![1]));
        assert_eq!(other.join().unwrap(), Some(vec![0]));
    });
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    drop(strangers);
    // A rank of another run is as much a stranger.
    std::thread::scope(|scope| {
        let other = scope.spawn(|| connect(1, &Token::secret(b"t")));
        assert!(matches!(connect(0, &token), Err(Unmeshed::Failed(JoinError::NoWay { from: 1, to: 0, .. }))));
        let failed = other.join().unwrap();
        assert!(matches!(failed, Err(Unmeshed::Failed(JoinError::NoWay { reason, .. })) if reason.contains("proof")));
    });
}

#[test]
fn a_port_that_ends_its_connections_is_tried_again_until_the_master_has_it() {
    let before = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = before.local_addr().unwrap().port();
    std::thread::scope(|scope| {
        let rank_1 = scope.spawn(move || meet(&[settings(1, 2, port)]));
        for _ in 0..2 {
            // As a master of an earlier attempt, which is just ending.
            drop(before.accept().unwrap());
        }
        drop(before);
        assert!(meet(&[settings(0, 2, port)])[0].0.is_ok());
        assert!(rank_1.join().unwrap()[0].0.is_ok());
    });
}

#[test]
fn another_version_of_the_protocol_is_named_to_both() {
    let port = port();
    std::thread::scope(|scope| {
        let host = scope.spawn(move || meet(&[settings(0, 2, port)]));
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        stream.write_all(b"ferrotune join 9").unwrap();
        let mut answer = Vec::new();
        // The connection may be reset behind the answer.
        let _ = stream.read_to_end(&mut answer);
        assert!(String::from_utf8_lossy(&answer).contains("version 9"), "{}", answer.escape_ascii());
        let told = host.join().unwrap();
        assert!(matches!(error(&told[0]), JoinError::Build { theirs, .. } if theirs.contains("version 9")));
    });
}

#[test]
fn a_rank_beyond_the_world_is_told_what_there_is() {
    let port = port();
    for one in &meet(&[settings(0, 2, port), settings(5, 2, port)]) {
        let text = error(one).to_string();
        assert!(text.contains("host5 (process 105) came as rank 5, but the run has 2 processes"), "{text}");
    }
}

fn arriving(node: &str, pid: u32, (min, max): (usize, usize), port: u16) -> JoinSettings {
    let facts = Facts { host: format!("host-{node}"), pid, ..Facts::default() };
    JoinSettings { seat: Seat::Arriving { node: node.into(), min, max }, facts, ..settings(0, 0, port) }
}

#[test]
fn two_of_one_unnumbered_place_are_named() {
    let port = port();
    for one in &meet(&[arriving("a", 1, (2, 3), port), arriving("b", 2, (2, 3), port), arriving("b", 3, (2, 3), port)])
    {
        assert!(matches!(error(one), JoinError::Duplicate { place, .. } if place.contains("local rank 0")));
    }
}

#[test]
fn no_more_machines_than_may_be_take_part() {
    let port = port();
    let all = ["a", "b", "c", "d"].map(|node| arriving(node, 1, (2, 3), port));
    // All but one begin; he hears that he is late, or finds nobody any more, or, on this one machine, waits for others as
    // the next run's master.
    let told = meet(&all);
    let begun: Vec<usize> = told.iter().filter_map(|one| Some(one.0.as_ref().ok()?.members.len())).collect();
    assert_eq!(begun, [3; 3]);
    let late = told.iter().find_map(|one| one.0.as_ref().err()).unwrap();
    let is_late = matches!(
        late,
        JoinError::Full { max: 3, .. }
            | JoinError::Unreached { .. }
            | JoinError::NoMaster { .. }
            | JoinError::MasterLeft { .. }
            | JoinError::Missing { .. }
    );
    assert!(is_late, "{late:?}");
}
