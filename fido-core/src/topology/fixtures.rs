//! Trees like those of real machines, for tests.

use std::fs::File;
use std::path::Path;

use tempfile::TempDir;

/// A tree in a temporary directory.
pub(super) struct Tree(TempDir);

/// What is in a file.
#[derive(Clone, Copy)]
pub(super) enum Text<'a> {
    Of(&'a str),
    /// So many zero bytes.
    Zeros(u64),
}

/// What a machine of equal packages is like.
pub(super) struct Shape {
    pub(super) packages: u32,
    pub(super) cores: u32,
    pub(super) threads: u32,
    /// Cores that share a last-level cache.
    pub(super) cores_per_l3: u32,
    pub(super) nodes_per_package: u32,
}

impl Shape {
    fn core_count(&self) -> u32 {
        self.packages * self.cores
    }

    pub(super) fn cpu_count(&self) -> u32 {
        self.core_count() * self.threads
    }

    /// Linux numbers the first threads of all cores, then the second ones.
    fn threads_of(&self, cores: std::ops::Range<u32>) -> String {
        let numbers = (0..self.threads).flat_map(|thread| cores.clone().map(move |core| (thread, core)));
        let texts: Vec<_> = numbers.map(|(thread, core)| (thread * self.core_count() + core).to_string()).collect();
        texts.join(",")
    }

    pub(super) fn tree(&self) -> Tree {
        let tree = Tree::new();
        tree.file("sys/devices/system/cpu/online", &format!("0-{}\n", self.cpu_count() - 1));
        for cpu in 0..self.cpu_count() {
            let core = cpu % self.core_count();
            let own = self.threads_of(core..core + 1);
            let l3 = core / self.cores_per_l3 * self.cores_per_l3;
            tree.cpu(cpu, "topology/core_cpus_list", &own);
            tree.cpu(cpu, "topology/physical_package_id", &(core / self.cores).to_string());
            tree.cache(cpu, 0, (1, "Data", "32K", &own));
            tree.cache(cpu, 1, (1, "Instruction", "32K", &own));
            tree.cache(cpu, 2, (2, "Unified", "1024K", &own));
            tree.cache(cpu, 3, (3, "Unified", "32M", &self.threads_of(l3..l3 + self.cores_per_l3)));
        }
        let (nodes, share) = (self.packages * self.nodes_per_package, self.cores / self.nodes_per_package);
        tree.file("sys/devices/system/node/online", &format!("0-{}", nodes - 1));
        for node in 0..nodes {
            tree.node(node, "cpulist", &self.threads_of(node * share..(node + 1) * share));
            let distance =
                |other| match (other == node, other / self.nodes_per_package == node / self.nodes_per_package) {
                    (true, _) => "10",
                    (_, true) => "12",
                    _ => "32",
                };
            tree.node(node, "distance", &(0..nodes).map(distance).collect::<Vec<_>>().join(" "));
        }
        tree.file("proc/cpuinfo", "processor\t: 0\nmodel name\t: Test Processor 9000\nflags\t\t: fpu sse2\n");
        tree
    }
}

impl Tree {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap_or_else(|error| panic!("{error}")))
    }

    pub(super) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn file(&self, name: &str, text: &str) -> &Self {
        let path = self.root().join(name);
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, text));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self
    }

    /// Has a file say something else, or nothing for so many bytes, while `look` looks.
    pub(super) fn with<T>(&self, name: &str, text: Text<'_>, look: impl FnOnce() -> T) -> T {
        let path = self.root().join(name);
        let before = std::fs::read(&path).ok();
        match text {
            Text::Of(text) => _ = self.file(name, text),
            // Nothing of it is on the device.
            Text::Zeros(bytes) => File::create(&path)
                .and_then(|file| file.set_len(bytes))
                .unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        }
        let seen = look();
        let restored = match before {
            Some(before) => std::fs::write(&path, before),
            None => std::fs::remove_file(&path),
        };
        restored.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        seen
    }

    pub(super) fn cpu(&self, cpu: u32, name: &str, text: &str) -> &Self {
        self.file(&format!("sys/devices/system/cpu/cpu{cpu}/{name}"), text)
    }

    pub(super) fn node(&self, node: u32, name: &str, text: &str) -> &Self {
        self.file(&format!("sys/devices/system/node/node{node}/{name}"), text)
    }

    pub(super) fn cache(&self, cpu: u32, index: u32, (level, kind, size, shared): (u32, &str, &str, &str)) {
        let values =
            [("level", level.to_string().as_str()), ("type", kind), ("size", size), ("shared_cpu_list", shared)]
                .map(|(name, value)| (name, value.to_owned()));
        for (name, value) in values {
            self.cpu(cpu, &format!("cache/index{index}/{name}"), &value);
        }
    }
}
