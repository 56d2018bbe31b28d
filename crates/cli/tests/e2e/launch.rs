//! `launch` over a stand-in for ssh: a script that runs what it is given here, each host with a home of its own.

use crate::common::{Place, Run, trainable};
use crate::many::{PATIENCE, adapter, end, port, reach, run, signal};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Options as ssh's, then a host and a command. What is special about a host is in its name.
const SSH: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$@" >> "$here/called"
ask=
while [ $# -gt 0 ]; do
    case "$1" in
        -o) shift 2 ;;
        -T) shift ;;
        -G) ask=1; shift ;;
        *) break ;;
    esac
done
host=$1
shift
[ -n "$ask" ] && { echo "user me"; echo "hostname 127.0.0.1"; exit 0; }
case "$host" in
    down) echo "ssh: connect to host down port 22: Connection timed out" >&2; exit 255 ;;
    closed) echo "me@closed: Permission denied (publickey)." >&2; exit 255 ;;
    changed) echo "Host key verification failed." >&2; exit 255 ;;
    nobody) echo "ssh: Could not resolve hostname nobody: Name or service not known" >&2; exit 255 ;;
    full) case "$*" in *"cat >"*) echo "cat: write error: No space left on device" >&2; exit 1 ;; esac ;;
    arm) echo "Welcome!"; echo "ferrotune-launch: Linux armv7l"; exit 0 ;;
esac
export HOME="$here/homes/$host"
mkdir -p "$HOME"
cd "$HOME"
if [ "$host" = short ]; then
    head -c 100000 | sh -c "$*"
    exit $?
fi
case "$host:$*" in
    # Its system hasn't what the program needs.
    old:*) exec sh -c "$(echo "$*" | sed 's/ version 2>/ nonsense 2>/')" ;;
    slow:*"cat >"*) { head -c 100000; touch "$here/slow"; sleep 1; cat; } | sh -c "$*"; exit $? ;;
esac
echo "Welcome to $host!"
exec sh -c "$*"
"#;

/// A place with a recipe and the script; the recipe's data are where the run is started.
fn place(more: &str) -> Place {
    let place = trainable(more);
    place.write("bin/ssh", SSH);
    fs::set_permissions(place.path("bin/ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    place
}

fn launch(place: &Place, hosts: &str, args: &[&str]) -> Command {
    let (port, ssh) = (port().to_string(), place.path("bin/ssh"));
    let own = ["launch", "-H", hosts, "--port", &port, "--ssh", ssh.to_str().unwrap(), "train.yaml"];
    let mut command = place.command(&[&own, args].concat());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn launched(place: &Place, hosts: &str, args: &[&str]) -> Run {
    end(place, vec![launch(place, hosts, args).spawn().unwrap()]).remove(0)
}

/// Processes of hosts whose names begin so: those that have their home in their environment.
fn processes(place: &Place, host: &str) -> Vec<String> {
    let home = format!("HOME={}/{host}", place.path("bin/homes").display());
    let lives_there = |pid: &String| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(home.as_bytes()))
    };
    let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    all.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).filter(lives_there).collect()
}

fn nobody_stays(place: &Place) {
    let begun = Instant::now();
    while !processes(place, "").is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(15), "somebody stays: {:?}", processes(place, ""));
        std::thread::sleep(Duration::from_millis(50));
    }
}

const STEPS: &str = "max_steps: 8\nsave_steps: 4\n";
const LONG: &str = "max_steps: 100000\nsave_steps: 100000\n";

#[test]
fn a_run_on_two_hosts_is_the_one_that_is_started_by_hand() {
    let calm = trainable(STEPS);
    run(&calm, 2, &["run_name=two words"]);
    let place = place(STEPS);
    let mut command = launch(&place, "first,me@second", &["run_name=two words"]);
    command.env("FERROTUNE_JOB_TOKEN", "open sesame");
    let told = end(&place, vec![command.spawn().unwrap()]).remove(0).ok();
    assert!(told.err.contains("copying this program to first ("), "{}", told.err);
    assert!(told.err.contains("copying this program to me@second ("), "{}", told.err);
    assert!(told.err.contains("started on 2 hosts; first is the master, at 127.0.0.1:"), "{}", told.err);
    assert!(told.err.contains("rank node  host") && told.err.contains("'loss'"), "{}", told.err);
    assert!(told.out.contains("8 steps in ") && told.out.contains("  ferrotune chat "), "{}", told.out);
    assert!(adapter(&place) == adapter(&calm), "the same bits");
    let log = |host: &str| fs::read_to_string(place.path(&format!("output/logs/{host}.log"))).unwrap();
    assert!(log("first").contains("'loss'") && log("second").contains("Welcome to me@second!"), "{}", log("second"));
    // Nothing that is secret, and nothing that a shell could misread, is in a command.
    let called = fs::read_to_string(place.path("bin/called")).unwrap();
    assert!(
        called.contains("BatchMode=yes") && !called.contains("sesame") && !called.contains("two words"),
        "{called}"
    );
    nobody_stays(&place);
    // The program is there now.
    let again = launched(&place, "first,me@second", &["overwrite_output_dir=true", "max_steps=2"]).ok();
    assert!(!again.err.contains("copying"), "{}", again.err);
    // Unless somebody has changed it. What was used long ago goes.
    let kept = place.path("bin/homes/first/.cache/ferrotune/bin");
    let program = fs::read_dir(&kept).unwrap().next().unwrap().unwrap().path();
    fs::write(&program, "#!/bin/sh\necho wrong\n").unwrap();
    let old = fs::File::create(kept.join("0123")).unwrap();
    old.set_modified(std::time::SystemTime::now() - Duration::from_secs(40 * 86_400)).unwrap();
    let mended = launched(&place, "first,me@second", &["overwrite_output_dir=true", "max_steps=2"]).ok();
    assert!(mended.err.contains("copying this program to first ("), "{}", mended.err);
    assert!(program.exists() && !kept.join("0123").exists());
}

#[test]
fn hosts_that_cannot_be_used_are_all_told_and_nothing_starts() {
    let place = place(STEPS);
    let told = launched(&place, "down,closed,good,changed,nobody,arm,short,full,old", &[]);
    assert_eq!(told.code, Some(1), "{}", told.err);
    for line in [
        "nothing was started:",
        "arm: it is `Linux armv7l` and this program is for Linux",
        "changed: ",
        "Host key verification failed; connect once by hand and accept its key: ssh changed",
        "closed: ",
        "Permission denied (publickey); it must let you in without a password: ssh-copy-id closed",
        "down: ",
        "Connection timed out; is it up, and does a firewall let ssh pass?",
        "nobody: ",
        "write its address, or add it to ~/.ssh/config",
        "short: the program arrived there damaged",
        "No space left on device; make room in the cache folder of its user",
        "old: it can't run this program: error: ",
    ] {
        assert!(told.error().contains(line), "no `{line}` in {}", told.error());
    }
    assert!(!told.error().contains("good"), "{}", told.error());
    assert!(!place.path("output").exists());
    for host in ["short", "old"] {
        assert_eq!(kept(&place, host), 0, "{host}: what is not whole, or doesn't run, stays nowhere");
    }
}

/// Programs and parts of programs that a host keeps.
fn kept(place: &Place, host: &str) -> usize {
    fs::read_dir(place.path(&format!("bin/homes/{host}/.cache/ferrotune/bin"))).unwrap().count()
}

#[test]
fn a_launcher_that_is_killed_while_it_copies_leaves_no_part_of_a_program() {
    let place = place(STEPS);
    let mut child = launch(&place, "slow", &[]).spawn().unwrap();
    let begun = Instant::now();
    while !place.path("bin/slow").exists() {
        assert!(begun.elapsed() < PATIENCE, "nothing is copied");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(kept(&place, "slow"), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    nobody_stays(&place);
    assert_eq!(kept(&place, "slow"), 0);
}

#[test]
fn a_wrong_recipe_or_list_of_hosts_touches_no_host() {
    let place = place(STEPS);
    for (hosts, args, code, word) in [
        ("a,b", &["learning_rat=1"][..], 2, "learning_rate"),
        ("a,b", &["max_steps=x"], 2, "max_steps"),
        ("a,a", &[], 1, "named twice"),
        ("a,-oProxyCommand=evil", &[], 1, "no name of a host"),
        ("me@a:2222,b", &[], 1, "written ssh://host:2222"),
    ] {
        let told = launched(&place, hosts, args);
        assert_eq!(told.code, Some(code), "{}", told.err);
        assert!(told.err.contains(word), "{}", told.err);
    }
    assert!(!place.path("bin/called").exists());
    for (args, code, word) in [
        (&["train.yaml"][..], 2, "--hosts"),
        (&["-H", "a", "--port", "0", "train.yaml"], 2, "0 is not in 1..=65535"),
        (&["-H", "a", "--ssh", "ssh -o 'x", "train.yaml"], 1, "a quote (') is not closed"),
        (&["--hostfile", "none", "train.yaml"], 1, "cannot read none"),
    ] {
        let told = place.run(&[&["launch"], args].concat());
        assert_eq!(told.code, Some(code), "{}", told.err);
        assert!(told.err.contains(word), "{}", told.err);
    }
}

#[test]
fn a_folder_that_a_host_lacks_is_told_by_its_name() {
    let place = place(STEPS);
    let told = launched(&place, "first,second", &["--dir", "/nowhere/at/all"]);
    assert_ne!(told.code, Some(0));
    assert!(told.err.contains("has no folder /nowhere/at/all") && told.err.contains("--dir"), "{}", told.err);
    assert!(told.err.contains("second: error: "), "{}", told.err);
}

#[test]
fn an_interrupt_stops_all_hosts_with_a_checkpoint() {
    let place = place(LONG);
    let child = launch(&place, "first,second", &[]).spawn().unwrap();
    reach(&place, 8);
    assert!(!processes(&place, "first").is_empty() && !processes(&place, "second").is_empty());
    signal(&child, "-INT");
    let told = end(&place, vec![child]).remove(0);
    assert_eq!(told.code, Some(130), "{}", told.err);
    assert!(told.err.contains("asking all nodes to stop after this step"), "{}", told.err);
    let step = place.json("output/trainer_state.json")["global_step"].as_u64().unwrap();
    assert!(place.path(&format!("output/checkpoint-{step}/DONE")).exists());
    nobody_stays(&place);
}

#[test]
fn nobody_outlives_a_launcher_that_is_killed() {
    let place = place(LONG);
    let mut child = launch(&place, "first,second", &[]).spawn().unwrap();
    reach(&place, 8);
    assert!(!processes(&place, "second").is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    nobody_stays(&place);
    let step = place.json("output/trainer_state.json")["global_step"].as_u64().unwrap();
    assert!(place.path(&format!("output/checkpoint-{step}/DONE")).exists(), "they stopped as if they had been asked");
}

#[test]
fn a_host_that_dies_ends_the_run_and_is_named() {
    let place = place(&format!("{LONG}peer_timeout: 3\n"));
    let child: Child = launch(&place, "first,second", &[]).spawn().unwrap();
    reach(&place, 8);
    let killed = Instant::now();
    let is_program =
        |pid: &String| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.starts_with(place.path("bin")));
    for process in processes(&place, "second").iter().filter(|pid| is_program(pid)) {
        Command::new("kill").args(["-KILL", process]).status().unwrap();
    }
    let told = end(&place, vec![child]).remove(0);
    assert!(killed.elapsed() < PATIENCE / 3, "{:?}", killed.elapsed());
    assert_ne!(told.code, Some(0));
    assert!(told.err.contains("error: rank 1 ("), "{}", told.err);
    assert!(told.err.contains("error: second was killed by signal 9 (SIGKILL)"), "{}", told.err);
    assert!(told.err.contains("note: first ended with exit code 75"), "{}", told.err);
    assert!(told.err.contains("note: what each host printed is in output/logs"), "{}", told.err);
    nobody_stays(&place);
}

#[test]
fn a_connection_that_is_lost_ends_the_run_and_is_named() {
    let place = place(&format!("{LONG}peer_timeout: 3\n"));
    let child: Child = launch(&place, "first,second", &[]).spawn().unwrap();
    reach(&place, 8);
    // What stands in for ssh is the shell that the program was started by.
    let is_shell =
        |pid: &String| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| !exe.starts_with(place.path("bin")));
    for process in processes(&place, "second").iter().filter(|pid| is_shell(pid)) {
        Command::new("kill").args(["-KILL", process]).status().unwrap();
    }
    let told = end(&place, vec![child]).remove(0);
    assert_eq!(told.code, Some(75), "{}", told.err);
    assert!(told.err.contains("error: the connection to second was lost"), "{}", told.err);
    nobody_stays(&place);
    let step = place.json("output/trainer_state.json")["global_step"].as_u64().unwrap();
    assert!(place.path(&format!("output/checkpoint-{step}/DONE")).exists(), "all stopped as if they had been asked");
}
