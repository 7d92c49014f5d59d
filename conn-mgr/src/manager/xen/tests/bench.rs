//! A machine to test with: a script that plays `xl` by asking this process, and guests that follow the manager's nodes.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fido_core::platform::xen::store::Store;
use fido_core::platform::xen::store::fake::FakeStore;

use super::super::{XenCarrier, Xl};
pub use super::puppet::Manners;
use super::puppet::Puppet;
use super::vault::TestVault;
use crate::manager::{Manager, ManagerError, Options};
use crate::manifest::Manifest;
use crate::placement::Plan;

/// Longer than anything here takes on a busy machine; no test waits that long unless it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Hands its arguments and its input over in a file, and waits for the answer in another.
const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
{ echo "$*"; while IFS= read -r line; do echo "$line"; done; } > "$dir/part.$$"
mv "$dir/part.$$" "$dir/ask.$$"
until [ -e "$dir/answer.$$" ]; do [ -d "$dir" ] || exit 99; sleep 0.02; done
{ read -r status; while IFS= read -r line; do echo "$line"; done; } < "$dir/answer.$$"
exit "$status"
"#;

struct Record {
    name: String,
    state: &'static str,
    is_on: Arc<AtomicBool>,
}

#[derive(Default)]
struct Machine {
    guests: BTreeMap<u16, Record>,
    last: u16,
    configs: BTreeMap<String, String>,
    manners: BTreeMap<String, Manners>,
    domains: Vec<String>,
    failing_creates: BTreeMap<String, String>,
    failing_destroys: u32,
    failing_vault: bool,
    allowed: String,
    log: Arc<Mutex<Vec<String>>>,
}

type Shared = Arc<Mutex<Machine>>;

fn lock(machine: &Shared) -> MutexGuard<'_, Machine> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Bench {
    appliance: String,
    text: String,
    folder: tempfile::TempDir,
    store: FakeStore,
    machine: Shared,
    is_on: Arc<AtomicBool>,
}

impl Bench {
    pub fn new(name: &str) -> Self {
        // Other processes may run the same tests, and names are claimed on the whole machine.
        let appliance = format!("{name}-{}", std::process::id());
        let text = format!("appliance = \"{appliance}\"\nplatform = \"xen\"\n");
        let folder = tempfile::tempdir().unwrap();
        let (store, machine, is_on) = (FakeStore::default(), Shared::default(), Arc::new(AtomicBool::new(true)));
        let script = folder.path().join("xl");
        std::fs::write(&script, SCRIPT).unwrap();
        let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        let bench = Self { appliance, text, folder, store, machine, is_on };
        let (folder, store, machine) = (bench.folder.path().to_owned(), bench.store.clone(), bench.machine.clone());
        let is_on = bench.is_on.clone();
        std::thread::spawn(move || {
            while is_on.load(Ordering::SeqCst) {
                answer_all(&folder, &store, &machine);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        bench
    }

    pub fn line(&mut self, line: &str) -> &mut Self {
        self.text.push_str(line);
        self.text.push('\n');
        self
    }

    pub fn domain(&mut self, name: &str, keys: &str) -> &mut Self {
        lock(&self.machine).domains.push(name.to_owned());
        self.line(&format!("[domain.{name}]\nprogram = \"/p\"\narena = \"1MiB\"\n{keys}"))
            .line("xen = { kernel = \"/no/kernel\", image = \"/no/image\" }")
    }

    pub fn domain_sized(&mut self, name: &str, arena: &str) -> &mut Self {
        lock(&self.machine).domains.push(name.to_owned());
        self.line(&format!("[domain.{name}]\nprogram = \"/p\"\narena = \"{arena}\""))
            .line("xen = { kernel = \"/no/kernel\", image = \"/no/image\", memory = \"512MiB\" }")
    }

    pub fn link(&mut self, name: &str, a: &str, b: &str, lanes: u32) -> &mut Self {
        self.line(&format!("[[link]]\nname = {name:?}\nbetween = [{a:?}, {b:?}]\nlanes = {lanes}\nslots = 16"))
    }

    pub fn manners(&self, domain: &str, manners: Manners) {
        lock(&self.machine).manners.insert(domain.to_owned(), manners);
    }

    pub fn guest_name(&self, domain: &str) -> String {
        format!("{}-{domain}", self.appliance)
    }

    pub fn appliance(&self) -> &str {
        &self.appliance
    }

    pub fn manifest(&self) -> Manifest {
        Manifest::parse(&self.text, "test").unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn start(&self) -> Manager {
        self.try_start().unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn try_start(&self) -> Result<Manager, ManagerError> {
        let manifest = self.manifest();
        let options = Options { start_deadline: PATIENCE, ..Options::default() };
        let plan = Plan::here(&manifest);
        Manager::launch(manifest, options, &plan, |manifest, _| {
            let xl = Xl(self.folder.path().join("xl"));
            let vault = {
                let machine = lock(&self.machine);
                TestVault { log: machine.log.clone(), fails: machine.failing_vault }
            };
            Ok(Box::new(XenCarrier::prepare(manifest, xl, self.store.connect(0), Box::new(vault))?))
        })
    }

    /// dom0 can neither keep arenas nor give anything to successors from now on.
    pub fn fail_vault(&self) {
        lock(&self.machine).failing_vault = true;
    }

    pub fn log(&self) -> Vec<String> {
        lock(&self.machine).log.lock().unwrap().clone()
    }

    pub fn eventually(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "in vain: {what}; {:#?}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn wait_for(&self, line: &str) {
        self.eventually(line, || self.log().iter().any(|logged| logged == line));
    }

    pub fn position(&self, line: &str) -> usize {
        let log = self.log();
        log.iter().position(|logged| logged == line).unwrap_or_else(|| panic!("no {line:?} in {log:#?}"))
    }

    /// The guests that there are.
    pub fn guests(&self) -> Vec<u16> {
        lock(&self.machine).guests.keys().copied().collect()
    }

    /// The latest configuration of a domain's guest.
    pub fn config(&self, domain: &str) -> String {
        lock(&self.machine).configs[&self.guest_name(domain)].clone()
    }

    /// A connection as that guest.
    pub fn store(&self, guest: u16) -> Store {
        self.store.connect(guest)
    }

    /// All nodes that concern Fido in a guest's home.
    pub fn paths(&self, guest: u16) -> Vec<String> {
        let (store, mut found) = (self.store.connect(0), Vec::new());
        let home = format!("/local/domain/{guest}");
        let mut left = VecDeque::from([format!("{home}/fido"), format!("{home}/data/fido")]);
        while let Some(path) = left.pop_front() {
            left.extend(store.now().children(&path).unwrap().iter().map(|name| format!("{path}/{name}")));
            found.push(path);
        }
        found
    }

    /// What somebody does who types `xl destroy`.
    pub fn destroy(&self, guest: u16) {
        remove(&mut lock(&self.machine), &self.store, guest);
    }

    pub fn crash(&self, guest: u16) {
        if let Some(record) = lock(&self.machine).guests.get_mut(&guest) {
            record.state = "----c-";
            record.is_on.store(false, Ordering::SeqCst);
        }
        self.store.announce_release();
    }

    pub fn add_guest(&self, name: &str, uuid: &str) -> u16 {
        add(&mut lock(&self.machine), &self.store, name, uuid)
    }

    /// As another manager would.
    pub fn write(&self, path: &str, value: &[u8]) {
        self.store.connect(0).now().write(path, value).unwrap();
    }

    pub fn fail_create(&self, domain: &str, words: &str) {
        lock(&self.machine).failing_creates.insert(self.guest_name(domain), words.to_owned());
    }

    pub fn fail_destroys(&self, count: u32) {
        lock(&self.machine).failing_destroys = count;
    }

    pub fn allow(&self, command_line: &str) {
        lock(&self.machine).allowed = command_line.to_owned();
    }

    pub fn end_store(&self) {
        self.store.die();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.is_on.store(false, Ordering::SeqCst);
        lock(&self.machine).guests.values().for_each(|guest| guest.is_on.store(false, Ordering::SeqCst));
    }
}

fn answer_all(folder: &Path, store: &FakeStore, machine: &Shared) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(number) = name.strip_prefix("ask.") else { continue };
        let asked = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let _ = std::fs::remove_file(entry.path());
        let (status, text) = answer(&asked, store, machine);
        let part: PathBuf = folder.join(format!("reply.{number}"));
        // The test may be over, and the folder gone.
        let _ = std::fs::write(&part, format!("{status}\n{text}\n"));
        let _ = std::fs::rename(&part, folder.join(format!("answer.{number}")));
    }
}

fn answer(asked: &str, store: &FakeStore, machine: &Shared) -> (u8, String) {
    let (arguments, config) = asked.split_once('\n').unwrap_or((asked, ""));
    match arguments.split(' ').collect::<Vec<_>>()[..] {
        ["info"] => (0, format!("host : test\nxen_commandline        : {}\n", lock(machine).allowed)),
        ["list"] => {
            let line = |(number, guest): (&u16, &Record)| format!("{} {number} 192 1 {} 0.1", guest.name, guest.state);
            let lines: Vec<_> = lock(machine).guests.iter().map(line).collect();
            (0, format!("Name ID Mem VCPUs State Time(s)\n{}", lines.join("\n")))
        }
        ["create", "-e", "-q", "/proc/self/fd/0"] => create(config, store, machine),
        ["destroy", number] => {
            let mut machine = lock(machine);
            if machine.failing_destroys > 0 {
                machine.failing_destroys -= 1;
                return (1, "libxl: error: cannot destroy".into());
            }
            match number.parse().is_ok_and(|number| remove(&mut machine, store, number)) {
                true => (0, String::new()),
                false => (1, format!("{number} is an invalid domain identifier")),
            }
        }
        _ => (2, format!("unknown command {arguments}")),
    }
}

fn create(config: &str, store: &FakeStore, shared: &Shared) -> (u8, String) {
    let value = |key: &str| {
        let line = config.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    let (name, uuid) = (value("name"), value("uuid"));
    let mut machine = lock(shared);
    if let Some(words) = machine.failing_creates.get(&name) {
        return (1, words.clone());
    }
    machine.configs.insert(name.clone(), config.to_owned());
    let number = add(&mut machine, store, &name, &uuid);
    let domain = machine.domains.iter().find(|domain| name.ends_with(&format!("-{domain}"))).cloned();
    let manners = domain.as_ref().and_then(|domain| machine.manners.get(domain)).cloned().unwrap_or_default();
    let is_on = machine.guests[&number].is_on.clone();
    let (domains, log) = (machine.domains.clone(), machine.log.clone());
    drop(machine);
    let store = store.connect(number);
    std::thread::spawn(move || Puppet::new(store, manners, domains, log).live(&is_on));
    (0, String::new())
}

fn add(machine: &mut Machine, store: &FakeStore, name: &str, uuid: &str) -> u16 {
    machine.last += 1;
    let number = machine.last;
    store.add_domain(number);
    let dom0 = store.connect(0);
    let home = format!("/local/domain/{number}");
    // Without a store nobody reads it.
    let _ = dom0.now().write(&format!("{home}/name"), name.as_bytes());
    let _ = dom0.now().write(&format!("{home}/vm"), format!("/vm/{uuid}").as_bytes());
    let is_on = Arc::new(AtomicBool::new(true));
    machine.guests.insert(number, Record { name: name.to_owned(), state: "-b----", is_on });
    number
}

fn remove(machine: &mut Machine, store: &FakeStore, number: u16) -> bool {
    let Some(guest) = machine.guests.remove(&number) else { return false };
    guest.is_on.store(false, Ordering::SeqCst);
    store.remove_domain(number);
    true
}
