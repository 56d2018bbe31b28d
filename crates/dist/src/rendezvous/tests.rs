//! Meetings over real sockets of this machine, each rank a thread: those that come about, and every way not to.

use super::*;
use crate::CommError;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Instant;

pub(super) fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn claims() -> Vec<Claim> {
    let claim = |what: &str, value: &str| Claim { what: what.into(), value: value.into() };
    vec![claim("build", "1"), claim("recipe key learning_rate", "1e-4"), claim("data file a.json", "77ab")]
}

pub(super) fn settings(rank: usize, world: usize, port: u16) -> JoinSettings {
    let millis = Duration::from_millis;
    JoinSettings {
        seat: Seat::Numbered { rank, world },
        local_rank: 0,
        local_world: 1,
        master: ("127.0.0.1".into(), port),
        interfaces: None,
        token: Token::derived([&b"recipe"[..]]),
        claims: claims(),
        facts: Facts { host: format!("host{rank}"), pid: 100 + rank as u32, threads: 1, memory: None },
        patience: Patience { join: millis(4000), remind: millis(200), quiet: millis(300), message: millis(700) },
    }
}

pub(super) type Told = (Result<Joined, JoinError>, Vec<JoinEvent>);

/// Joins as all of these at once.
pub(super) fn meet(all: &[JoinSettings]) -> Vec<Told> {
    let one = |settings: &JoinSettings| {
        let mut events = Vec::new();
        let result = join(settings, &mut |event| events.push(event));
        (result, events)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|settings| scope.spawn(move || one(settings))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub(super) fn error(told: &Told) -> &JoinError {
    told.0.as_ref().err().expect("the meeting failed")
}

#[test]
fn ranks_meet_whoever_comes_first_and_talk() {
    let port = port();
    let sums: Vec<f64> = std::thread::scope(|scope| {
        let one = |rank: usize| {
            std::thread::sleep(Duration::from_millis(if rank == 0 { 200 } else { 10 * (4 - rank as u64) }));
            let joined = join(&settings(rank, 4, port), &mut |_| {}).unwrap();
            assert_eq!(joined.rank, rank);
            let hosts: Vec<&str> = joined.members.iter().map(|m| m.facts.host.as_str()).collect();
            assert_eq!(hosts, ["host0", "host1", "host2", "host3"]);
            let comm = joined.connect(Arc::default(), Duration::from_secs(5)).unwrap();
            let mut value = [10f64.powi(rank as i32)];
            comm.sum(&mut value).unwrap();
            comm.barrier().unwrap();
            value[0]
        };
        let threads: Vec<_> = (0..4).map(|rank| scope.spawn(move || one(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(sums, [1111.0; 4]);
}

#[test]
fn a_difference_ends_it_everywhere_and_is_named() {
    let port = port();
    let mut other = settings(2, 3, port);
    other.claims[1].value = "2e-4".into();
    other.token = Token::derived([&b"another recipe"[..]]);
    let start = Instant::now();
    let told = meet(&[settings(0, 3, port), settings(1, 3, port), other]);
    assert!(start.elapsed() < Duration::from_secs(3));
    for one in &told {
        let text = error(one).to_string();
        assert!(text.contains("recipe key learning_rate: 1e-4 on host0, 2e-4 on host2"), "{text}");
    }
}

#[test]
fn with_a_secret_differences_are_named_only_to_those_who_know_it() {
    let (port, token) = (port(), Token::secret(b"s3cret"));
    let with = |rank, token: &Token| JoinSettings { token: token.clone(), ..settings(rank, 2, port) };
    let mut other = with(1, &token);
    other.claims[2].value = "changed".into();
    let told = meet(&[with(0, &token), other]);
    for one in &told {
        assert!(
            error(one).to_string().contains("data file a.json: 77ab on host0, changed on host1"),
            "{:?}",
            error(one)
        );
    }
    let port = tests::port();
    let mut patient = JoinSettings { token, ..settings(0, 2, port) };
    patient.patience.join = Duration::from_millis(800);
    let told = meet(&[patient, JoinSettings { token: Token::secret(b"guess"), ..settings(1, 2, port) }]);
    assert!(matches!(error(&told[0]), JoinError::Missing { .. }), "{:?}", error(&told[0]));
    assert!(matches!(&told[0].1[..], [JoinEvent::Stranger(words), ..] if words.contains("token")), "{:?}", told[0].1);
    assert!(matches!(error(&told[1]), JoinError::Token { .. }));
}

#[test]
fn two_with_one_number_are_both_named_to_all() {
    let port = port();
    let mut twin = settings(1, 3, port);
    twin.facts = Facts { host: "other".into(), pid: 7, ..twin.facts };
    let told = meet(&[settings(0, 3, port), settings(1, 3, port), twin]);
    for one in &told {
        let text = error(one).to_string();
        assert!(
            text.contains("as rank 1") && text.contains("host1 (process 101)") && text.contains("other (process 7)"),
            "{text}"
        );
    }
    let port = tests::port();
    let mut second = settings(0, 2, port);
    second.facts = Facts { host: "elsewhere".into(), pid: 8, ..second.facts };
    for one in &meet(&[settings(0, 2, port), second]) {
        let text = error(one).to_string();
        assert!(text.contains("as rank 0") && text.contains("host0") && text.contains("elsewhere"), "{text}");
    }
}

#[test]
fn who_is_missing_is_said_and_at_last_an_error() {
    let port = port();
    let brief = |rank| {
        let mut settings = settings(rank, 3, port);
        settings.patience.join = Duration::from_millis(2500);
        settings
    };
    let told = meet(&[brief(0), brief(1)]);
    assert!(
        matches!(error(&told[0]), JoinError::Missing { missing, .. } if missing.contains("rank 2 is missing (NODE_RANK 2); it must come"))
    );
    assert!(
        told[0].1.iter().any(|event| matches!(event, JoinEvent::Waiting(words) if words.contains("rank 1 on host1")))
    );
    let JoinError::Missing { .. } = error(&told[1]) else { panic!("{:?}", error(&told[1])) };
    assert!(
        told[1].1.iter().any(|event| matches!(event, JoinEvent::Waiting(words) if words.contains("rank 2"))),
        "{:?}",
        told[1].1
    );
}

#[test]
fn other_numbers_of_processes_and_other_builds_are_named() {
    let port = port();
    let told = meet(&[settings(0, 2, port), settings(1, 3, port)]);
    for one in &told {
        assert!(
            matches!(error(one), JoinError::World { ours, theirs, .. } if ours.starts_with("2 ") && theirs.starts_with("3 "))
        );
    }
    let port = tests::port();
    let mut other = settings(1, 2, port);
    other.claims[0].value = "2".into();
    for one in &meet(&[settings(0, 2, port), other]) {
        assert!(matches!(error(one), JoinError::Build { ours, theirs, .. } if ours == "1" && theirs == "2"));
    }
}

#[test]
fn an_unreachable_master_is_told_by_what_was_seen() {
    let mut nobody = settings(1, 2, port());
    nobody.patience.join = Duration::from_millis(500);
    let told = meet(&[nobody.clone()]);
    assert!(
        matches!(error(&told[0]), JoinError::Unreached { reason, .. } if reason.contains("nobody listens")),
        "{:?}",
        error(&told[0])
    );
    assert!(matches!(&told[0].1[..], [JoinEvent::Waiting(words), ..] if words.contains("MASTER_PORT")));
    nobody.master.0 = "no-such-host.invalid".into();
    assert!(matches!(error(&meet(&[nobody])[0]), JoinError::NoSuchHost { .. }));
    let mut elsewhere = settings(0, 2, port());
    elsewhere.master.0 = "192.0.2.7".into();
    let text = error(&meet(&[elsewhere])[0]).to_string();
    assert!(text.contains("192.0.2.7 isn't an address of this machine") && text.contains("127.0.0.1 (lo)"), "{text}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let told = meet(&[settings(0, 2, taken.local_addr().unwrap().port())]);
    assert!(matches!(error(&told[0]), JoinError::PortTaken { .. }));
}

#[test]
fn what_listens_instead_of_a_master_is_found_out() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = other.accept().unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            let _ = stream.read(&mut [0; 4096]);
        });
        let told = meet(&[settings(1, 2, port)]);
        assert!(matches!(error(&told[0]), JoinError::NoMaster { .. }), "{:?}", error(&told[0]));
    });
}

#[test]
fn interfaces_that_do_not_exist_are_named_with_those_that_do() {
    let port = port();
    let only = |name: &'static str| Allowed {
        words: format!("NCCL_SOCKET_IFNAME={name}"),
        allows: Arc::new(move |i| i == name),
    };
    let mut lost = settings(0, 2, port);
    lost.interfaces = Some(only("eth77"));
    let text = error(&meet(&[lost])[0]).to_string();
    assert!(
        text.contains("NCCL_SOCKET_IFNAME=eth77 leaves no network interface") && text.contains("127.0.0.1 (lo)"),
        "{text}"
    );
    let through_lo = |rank| JoinSettings { interfaces: Some(only("lo")), ..settings(rank, 2, port) };
    let told = meet(&[through_lo(0), through_lo(1)]);
    let joined = told[1].0.as_ref().ok().unwrap();
    assert!(joined.members.iter().all(|member| member.address.is_loopback()));
}

#[test]
fn strangers_neither_hold_up_nor_break_the_meeting() {
    let port = port();
    let held = Mutex::new(Vec::new());
    let told = std::thread::scope(|scope| {
        let strangers = scope.spawn(|| {
            let greetings: [&[u8]; 6] = [
                b"GET / HTTP/1.1\r\n\r\n",
                b"",
                b"ferrotune join 1\xff\xff\xff\xff",
                b"ferrotune join 1\x04\x00\x00\x00null",
                b"ferrotune join 1\x00\x00\x01\x00slow",
                &[0xa5; 70000],
            ];
            let end = Instant::now() + Duration::from_secs(2);
            for greeting in greetings.into_iter().cycle().take(90) {
                while Instant::now() < end {
                    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                    let _ = stream.write_all(greeting);
                    held.lock().unwrap().push(stream);
                    break;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        // The last one comes when strangers were heard for a while; once all are here nobody speaks of them.
        let last = scope.spawn(move || {
            std::thread::sleep(Duration::from_secs(1));
            meet(&[settings(2, 3, port)])
        });
        let mut told = meet(&[settings(0, 3, port), settings(1, 3, port)]);
        told.extend(last.join().unwrap());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        strangers.join().unwrap();
        told
    });
    assert!(
        told.iter().all(|one| one.0.is_ok()),
        "{:?}",
        told.iter().filter_map(|one| one.0.as_ref().err()).collect::<Vec<_>>()
    );
    assert!(
        told[0].1.iter().any(|event| matches!(event, JoinEvent::Stranger(words) if words.contains("GET / HTTP"))),
        "{:?}",
        told[0].1
    );
}

#[test]
fn machines_that_come_unnumbered_are_numbered_as_they_come() {
    let port = port();
    let arriving = |node: &str, local_rank: usize, (min, max): (usize, usize)| JoinSettings {
        seat: Seat::Arriving { node: node.into(), min, max },
        local_rank,
        local_world: 2,
        ..settings(0, 0, port)
    };
    // Two of up to three machines, with two processes each; one has only one of its processes for a while.
    let all = ["a", "b"].iter().flat_map(|node| (0..2).map(move |local| (*node, local)));
    let told = meet(&all.map(|(node, local)| arriving(node, local, (1, 3))).collect::<Vec<_>>());
    let mut ranks: Vec<usize> = told.iter().map(|one| one.0.as_ref().ok().unwrap().rank).collect();
    let joined = told[0].0.as_ref().ok().unwrap();
    assert_eq!(
        joined.members.iter().map(|m| (m.node, m.local_rank)).collect::<Vec<_>>(),
        [(0, 0), (0, 1), (1, 0), (1, 1)]
    );
    assert_eq!(ranks[0] / 2, ranks[1] / 2, "processes of a machine are neighbours");
    ranks.sort_unstable();
    assert_eq!(ranks, [0, 1, 2, 3]);
}

#[test]
fn one_who_leaves_while_the_others_wait_may_come_again() {
    let port = port();
    let gone = std::thread::spawn(move || {
        let mut impatient = settings(1, 3, port);
        impatient.patience.join = Duration::from_secs(2);
        // It proves itself, and then its process dies.
        member::amiss::leaves(&impatient);
    });
    let told = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| meet(&[settings(0, 3, port), settings(2, 3, port)]));
        gone.join().unwrap();
        let again = scope.spawn(|| meet(&[settings(1, 3, port)]));
        let mut told = waiting.join().unwrap();
        told.extend(again.join().unwrap());
        told
    });
    assert!(
        told.iter().all(|one| one.0.is_ok()),
        "{:?}",
        told.iter().filter_map(|one| one.0.as_ref().err()).collect::<Vec<_>>()
    );
}

#[test]
fn a_rank_that_dies_after_the_meeting_is_named_to_the_others() {
    let port = port();
    let errors: Vec<Option<CommError>> = std::thread::scope(|scope| {
        let one = |rank: usize| {
            let joined = join(&settings(rank, 3, port), &mut |_| {}).unwrap();
            if rank == 2 {
                // A process that is killed: its sockets close without a word.
                drop(joined);
                return None;
            }
            let comm = joined.connect(Arc::default(), Duration::from_secs(2)).unwrap();
            comm.barrier().err()
        };
        let threads: Vec<_> = (0..3).map(|rank| scope.spawn(move || one(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for error in &errors[..2] {
        assert!(matches!(error, Some(CommError::PeerLost { rank: 2, .. })), "{error:?}");
    }
}
