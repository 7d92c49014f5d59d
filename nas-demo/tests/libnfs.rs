//! End to end: the NAS as a user runs it, and a real third-party client, `nfs-ls`, `nfs-cp` and `nfs-cat` of
//! libnfs-utils. What those cannot do (directories, rename, remove, writes in place) an own small client does.
//!
//! Not part of `cargo test`, because it needs the package: `.ci/e2e` runs it.

mod support;

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nas_demo::workload::client::Client;
use nas_demo::workload::rpc::ClientError;
use nfs3_types::nfs3::{nfs_fh3, nfsstat3, stable_how};

use support::command::{CALL_LIMIT, cat, copy_in, copy_out, list, start_copy};
use support::data::{Noise, assert_same, difference, write_noise};
use support::ledger::{Promise, Writer, mount};
use support::server::{Server, Url, command, fails_to_start};
use support::wait_until;

const MIB: u64 = 1 << 20;

/// A test's directory: the image and local files. Removed at the end.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn serve(&self, mode: &str, size: &str) -> Server {
        Server::start(mode, &self.path("nas.img"), size)
    }

    fn noise(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        write_noise(&path, len + 7, len);
        path
    }

    /// Reads a file back by `nfs-cp` and by `nfs-cat` and compares both with the local one.
    fn assert_same_on(&self, url: &Url, path: &str, local: &Path) {
        let back = self.path("back");
        copy_out(url, path, &back).expect_success("nfs-cp from the server");
        assert_same(local, &back);
        assert!(cat(url, path, &back), "nfs-cat {path}");
        assert_same(local, &back);
        std::fs::remove_file(&back).expect("the file was just written");
    }
}

fn status(error: ClientError) -> nfsstat3 {
    match error {
        ClientError::Nfs { status, .. } => status,
        other => panic!("an answer of the server was expected: {other}"),
    }
}

fn free_bytes(client: &mut Client) -> u64 {
    client.fsstat().expect("the volume's space").fbytes
}

/// One big file and a tree, in and out.
fn copies_lists_and_changes(mode: &str, big_bytes: u64, files: usize) {
    let bench = Bench::new();
    let server = bench.serve(mode, "1GiB");
    let (url, mut client) = (server.url(), mount(server.url().port()));
    let free = free_bytes(&mut client);
    let big = bench.noise("big", big_bytes);
    copy_in(&big, &url, "big").expect_success("nfs-cp to the server");
    bench.assert_same_on(&url, "big", &big);

    let tree = Tree::plant(&bench, &mut client, files);
    tree.copy_in(&url);
    tree.check(&bench, &url);

    refuses_to_overwrite_then_overwrites(&bench, &url, &mut client, &big);
    renames(&bench, &url, &mut client, &big);
    tree.fell(&mut client);
    let root = client.root();
    client.remove(&root, "renamed").expect("the big file");
    assert_eq!(list(&url, "/"), [], "nothing is left");
    wait_until("the space is free again", Duration::from_secs(30), || free_bytes(&mut client) + 4 * MIB >= free);
    drop(client);
    server.stop();
    let left: Vec<_> = std::fs::read_dir(bench.path("tmp")).expect("the server's TMPDIR").collect();
    assert!(left.is_empty(), "the server has left behind: {left:?}");
}

/// nfs-cp never overwrites (it creates exclusively); the own client does, at any offset.
fn refuses_to_overwrite_then_overwrites(bench: &Bench, url: &Url, client: &mut Client, big: &Path) {
    let other = bench.noise("other", 1234);
    assert!(!copy_in(&other, url, "big").is_success(), "the name exists");
    bench.assert_same_on(url, "big", big);

    let root = client.root();
    let file = client.lookup(&root, "big").expect("the big file");
    let mut local = std::fs::File::options().write(true).open(big).expect("the local file");
    let mut noise = Noise::new(99);
    for (offset, len) in [(0, 1), (4095, 2), (MIB - 3, 70_000), (5 * MIB + 17, 262_144), (3 * 4096, 4096)] {
        let bytes = noise.bytes(len);
        let written = client.write(&file, offset, &bytes, stable_how::UNSTABLE).expect("a write in place");
        assert_eq!(written.count as usize, len);
        local.seek(SeekFrom::Start(offset)).expect("a local file");
        local.write_all(&bytes).expect("a local file");
    }
    client.commit(&file).expect("a commit");
    bench.assert_same_on(url, "big", big);

    let len = local.metadata().expect("a local file").len();
    for size in [len - 4097, len + 12_345] {
        client.truncate(&file, size).expect("another length");
        local.set_len(size).expect("another length");
        bench.assert_same_on(url, "big", big);
    }
}

fn renames(bench: &Bench, url: &Url, client: &mut Client, big: &Path) {
    let root = client.root();
    let sub = client.mkdir(&root, "sub").expect("a directory");
    let small = bench.noise("small", 10);
    copy_in(&small, url, "sub/target").expect_success("nfs-cp into a directory");
    client.rename((&root, "big"), (&sub, "target")).expect("a rename over a file in another directory");
    bench.assert_same_on(url, "sub/target", big);
    assert_eq!(status(client.lookup(&root, "big").expect_err("renamed")), nfsstat3::NFS3ERR_NOENT);
    assert_eq!(status(client.rmdir(&root, "sub").expect_err("not empty")), nfsstat3::NFS3ERR_NOTEMPTY);
    client.rename((&sub, "target"), (&root, "renamed")).expect("a rename back");
    client.rename((&root, "sub"), (&root, "moved")).expect("a rename of a directory");
    client.rmdir(&root, "moved").expect("an empty directory");
    bench.assert_same_on(url, "renamed", big);
    assert!(list(url, "/").iter().all(|entry| !entry.path.contains("sub") && !entry.path.contains("moved")));
}

/// A tree of files, here and on the server.
struct Tree {
    /// Directories, outer ones first.
    dirs: Vec<String>,
    /// Path on the server, local file, length.
    files: Vec<(String, PathBuf, u64)>,
}

impl Tree {
    /// Makes the directories on the server and the files here.
    fn plant(bench: &Bench, client: &mut Client, files: usize) -> Self {
        let mut dirs = vec!["tree".to_owned()];
        dirs.extend((0..8).map(|d| format!("tree/d{d}")));
        dirs.extend((0..8).map(|d| format!("tree/d{d}/größer.{d}")));
        for dir in &dirs {
            let (parent, name) = Self::find(client, dir);
            client.mkdir(&parent, name).expect("a directory");
        }
        let sizes = [0, 1, 511, 4095, 4096, 4097, 10_000, 65_536, 100_001];
        let file = |n: usize| {
            let len = sizes[n % sizes.len()] + (n / sizes.len()) as u64;
            let local = bench.path(&format!("tree-{n}"));
            write_noise(&local, n as u64, len);
            (format!("{}/file-{n}.x", dirs[n % dirs.len()]), local, len)
        };
        let files = (0..files).map(file).collect();
        Self { dirs, files }
    }

    /// The directory of a path, and the name in it.
    fn find<'p>(client: &mut Client, path: &'p str) -> (nfs_fh3, &'p str) {
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut dir = client.root();
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            dir = client.lookup(&dir, parent).unwrap_or_else(|error| panic!("{parent} of {path}: {error}"));
        }
        (dir, name)
    }

    fn copy_in(&self, url: &Url) {
        for (path, local, _) in &self.files {
            copy_in(local, url, path).expect_success(path);
        }
    }

    fn check(&self, bench: &Bench, url: &Url) {
        let listed = list(url, "/tree");
        assert_eq!(listed.len(), self.dirs.len() - 1 + self.files.len());
        for (path, local, len) in &self.files {
            let inside = path.strip_prefix("tree/").unwrap_or(path);
            let entry = listed.iter().find(|entry| entry.path == inside);
            let entry = entry.unwrap_or_else(|| panic!("{path} is not listed"));
            assert_eq!((entry.mode.as_bytes()[0], entry.size), (b'-', *len), "{path}");
            let back = bench.path("tree-back");
            assert!(cat(url, path, &back), "nfs-cat {path}");
            assert_same(local, &back);
        }
    }

    fn fell(&self, client: &mut Client) {
        for (path, ..) in &self.files {
            let (dir, name) = Self::find(client, path);
            client.remove(&dir, name).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        for path in self.dirs.iter().rev() {
            let (dir, name) = Self::find(client, path);
            client.rmdir(&dir, name).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
    }
}

#[test]
#[ignore = "needs libnfs-utils; run .ci/e2e"]
fn split_copies_lists_and_changes() {
    copies_lists_and_changes("split", 256 * MIB, 300);
}

#[test]
#[ignore = "needs libnfs-utils; run .ci/e2e"]
fn copying_copies_lists_and_changes() {
    copies_lists_and_changes("copying", 24 * MIB, 40);
}

#[test]
#[ignore = "needs libnfs-utils; run .ci/e2e"]
fn monolithic_copies_lists_and_changes() {
    copies_lists_and_changes("monolithic", 24 * MIB, 40);
}

#[test]
#[ignore = "needs libnfs-utils; run .ci/e2e"]
fn a_full_volume_says_so_and_recovers() {
    let bench = Bench::new();
    let server = bench.serve("split", "64MiB");
    let (url, mut client) = (server.url(), mount(server.url().port()));
    let (kept, big) = (bench.noise("kept", 3 * MIB), bench.noise("big", 128 * MIB));
    copy_in(&kept, &url, "kept").expect_success("nfs-cp to the server");
    let free = free_bytes(&mut client);
    let ended = copy_in(&big, &url, "big");
    assert!(!ended.is_success(), "128 MiB do not fit into 64:\n{}", ended.text);

    let root = client.root();
    let file = client.create(&root, "last").expect("a name needs next to nothing");
    let chunk = Noise::new(5).bytes(64 << 10);
    let filled = (0..2048).find_map(|n| client.write(&file, n * 65_536, &chunk, stable_how::FILE_SYNC).err());
    assert_eq!(status(filled.expect("the volume is full")), nfsstat3::NFS3ERR_NOSPC);
    bench.assert_same_on(&url, "kept", &kept);

    for name in ["big", "last"] {
        client.remove(&root, name).expect("a full volume lets go of files");
    }
    wait_until("the space is free again", Duration::from_secs(30), || free_bytes(&mut client) + MIB >= free);
    let again = bench.noise("again", 32 * MIB);
    copy_in(&again, &url, "again").expect_success("nfs-cp after the volume was full");
    bench.assert_same_on(&url, "again", &again);
    bench.assert_same_on(&url, "kept", &kept);
    drop(client);
    server.stop();
}

/// Waits until a copy that is under way has brought `bytes` to the server.
fn wait_for_copy(client: &mut Client, name: &str, bytes: u64) {
    let root = client.root();
    wait_until("the copy is under way", CALL_LIMIT, || {
        let size = client.lookup(&root, name).and_then(|file| client.getattr(&file)).map(|attr| attr.size);
        size.is_ok_and(|size| size >= bytes)
    });
}

/// Two writers and a copy are under way when a domain is killed: the service comes back, every promise is kept, and
/// the copy can be made again.
fn survives_the_death_of(domain: &str, mode: &str) {
    let bench = Bench::new();
    let server = bench.serve(mode, "1GiB");
    let (url, port) = (server.url(), server.url().port());
    let kept = bench.noise("kept", 2 * MIB);
    copy_in(&kept, &url, "kept").expect_success("nfs-cp to the server");
    let big = bench.noise("big", 256 * MIB);
    let writers = [Promise::Stable, Promise::Commit].map(|how| Writer::start(port, &format!("{how:?}"), how));
    wait_until("promises", CALL_LIMIT, || writers.iter().all(|writer| writer.promises() > 20));
    let mut watch = mount(port);
    let mut copy = start_copy(big.to_str().expect("a plain path"), &url.of("big"));
    wait_for_copy(&mut watch, "big", MIB);
    assert!(copy.is_running(), "the copy was to be interrupted");

    server.kill_domain(domain);
    server.wait_for_service();
    assert_eq!(server.url().port(), port, "the address stays");
    let promises = writers.each_ref().map(Writer::promises);
    wait_until("promises again", CALL_LIMIT, || {
        writers.iter().zip(promises).all(|(writer, before)| writer.promises() > before + 20)
    });

    let copied = copy.wait(CALL_LIMIT);
    let mut client = mount(port);
    for ledger in writers.map(Writer::finish) {
        ledger.check(&mut client);
    }
    bench.assert_same_on(&url, "kept", &kept);
    let went_through = copied.is_success();
    if went_through {
        judge_copy(&bench, &url, &big, domain);
    }
    println!("{mode}, {domain} killed: libnfs went on by itself: {went_through}");
    let root = client.root();
    client.remove(&root, "big").expect("the copy, whole or not");
    copy_in(&big, &url, "big").expect_success("the copy again");
    bench.assert_same_on(&url, "big", &big);
    drop(client);
    server.stop();
}

/// A member of an array dies under two writers and a copy, which go on as if nothing were. When the disk domain comes again it
/// fills the member, and then another one dies.
#[test]
#[ignore = "needs libnfs-utils; run .ci/e2e"]
fn a_member_of_an_array_may_die() {
    let bench = Bench::new();
    let member = |index: u32| format!("file:{},create=96MiB", bench.path(&format!("member{index}")).display());
    // The third dies in the copy; what it says of itself is then stale.
    let device = format!(
        "raid5(create=yes,zeroed=yes,degraded=yes,replace=yes; {}; {}; fault(do=die,on=write,after=300; {}))",
        member(0),
        member(1),
        member(2)
    );
    let server = Server::start_on(&device, bench.dir.path());
    let (url, port) = (server.url(), server.url().port());
    let (kept, big) = (bench.noise("kept", 2 * MIB), bench.noise("big", 48 * MIB));
    copy_in(&kept, &url, "kept").expect_success("nfs-cp to the server");
    let writers = [Promise::Stable, Promise::Commit].map(|how| Writer::start(port, &format!("{how:?}"), how));
    copy_in(&big, &url, "big").expect_success("nfs-cp while a member dies");
    let is_degraded = || server.logged().contains("a member has failed; the array goes on without it");
    wait_until("a member has died", CALL_LIMIT, is_degraded);
    bench.assert_same_on(&url, "big", &big);

    let promises = writers.each_ref().map(Writer::promises);
    server.kill_domain("disk");
    server.wait_for_service();
    wait_until("promises again", CALL_LIMIT, || {
        writers.iter().zip(promises).all(|(writer, before)| writer.promises() > before + 20)
    });
    let mut client = mount(port);
    for ledger in writers.map(Writer::finish) {
        ledger.check(&mut client);
    }
    bench.assert_same_on(&url, "kept", &kept);
    bench.assert_same_on(&url, "big", &big);
    drop(client);
    server.stop();
}

/// A copy for which libnfs connected again by itself. It sends unstable writes and never looks at the verifier that would
/// tell it to send them again; but whichever domain dies, none of them is lost.
fn judge_copy(bench: &Bench, url: &Url, big: &Path, killed: &str) {
    let back = bench.path("interrupted");
    copy_out(url, "big", &back).expect_success("nfs-cp from the server");
    let difference = difference(big, &back);
    std::fs::remove_file(&back).expect("the file was just written");
    assert_eq!(difference, None, "domain {killed} was killed during the copy");
}

#[test]
#[ignore = "needs libnfs-utils; run .ci/e2e"]
fn the_net_domain_may_die() {
    survives_the_death_of("net", "split");
}

#[test]
#[ignore = "needs libnfs-utils; run .ci/e2e"]
fn the_fs_domain_may_die() {
    survives_the_death_of("fs", "split");
}

#[test]
#[ignore = "needs libnfs-utils; run .ci/e2e"]
fn the_disk_domain_may_die() {
    survives_the_death_of("disk", "split");
}

/// Kills the program and all domains at once, several times, and starts them again on the same image.
fn keeps_promises_over_kill_9_of_everything(mode: &str) {
    let bench = Bench::new();
    let kept = bench.noise("kept", 8 * MIB);
    let big = bench.noise("big", 128 * MIB);
    for round in 0..3 {
        let server = bench.serve(mode, "1GiB");
        let (url, port) = (server.url(), server.url().port());
        if round == 0 {
            copy_in(&kept, &url, "kept").expect_success("nfs-cp to the server");
        }
        let writers =
            [Promise::Stable, Promise::Commit].map(|how| Writer::start(port, &format!("{how:?}-{round}"), how));
        let name = format!("big-{round}");
        wait_until("promises", CALL_LIMIT, || writers.iter().all(|writer| writer.promises() > 20));
        let mut watch = mount(port);
        let copy = start_copy(big.to_str().expect("a plain path"), &url.of(&name));
        wait_for_copy(&mut watch, &name, MIB);
        server.kill_everything();
        drop(copy);
        let ledgers = writers.map(Writer::finish);

        let server = bench.serve(mode, "1GiB");
        let (url, mut client) = (server.url(), mount(server.url().port()));
        ledgers.iter().for_each(|ledger| ledger.check(&mut client));
        bench.assert_same_on(&url, "kept", &kept);
        drop(client);
        server.stop();
    }
}

#[test]
#[ignore = "needs libnfs-utils; run .ci/e2e"]
fn split_keeps_promises_over_kill_9_of_everything() {
    keeps_promises_over_kill_9_of_everything("split");
}

#[test]
#[ignore = "needs libnfs-utils; run .ci/e2e"]
fn monolithic_keeps_promises_over_kill_9_of_everything() {
    keeps_promises_over_kill_9_of_everything("monolithic");
}

#[test]
#[ignore = "needs the release build; run .ci/e2e"]
fn bad_starts_are_told_apart() {
    let bench = Bench::new();
    let any = "127.0.0.1:0";
    let says = |name: &str, image: &Path, size: &str, listen: &str, word: &str| {
        let text = fails_to_start(&mut command("split", image, size, listen)).text;
        assert!(text.contains(word), "{name}: the message lacks {word:?}:\n{text}");
        assert!(!text.contains("panicked"), "{name}:\n{text}");
        assert!(text.matches("will be restarted").count() <= 1, "{name}: nothing is tried again:\n{text}");
    };

    let taken = std::net::TcpListener::bind(any).expect("a port");
    let taken = taken.local_addr().expect("its address").to_string();
    says("occupied port", &bench.path("new.img"), "64MiB", &taken, &taken);
    says("no directory", &bench.path("nowhere/new.img"), "64MiB", any, "nowhere");
    says("a directory", bench.dir.path(), "64MiB", any, bench.dir.path().to_str().expect("a plain path"));
    says("no size", &bench.path("new.img"), "many", any, "many");
    says("no address", &bench.path("new.img"), "64MiB", "here", "here");
    says("too small to format", &bench.path("tiny.img"), "64KiB", any, "needs at least");

    for (name, len, word) in [("small", 64 << 10, "needs at least"), ("foreign", 64 * MIB, "foreign")] {
        let image = bench.noise(name, len);
        let before = bench.noise("before", len);
        says(name, &image, "64MiB", any, word);
        assert_same(&before, &image);
    }
}
