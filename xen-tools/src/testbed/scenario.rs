//! The scenarios that there are.

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it shows, in a line.
    pub about: &'static str,
}

/// All of them, in the order in which `all` runs them.
pub const ALL: [Scenario; 11] = [
    Scenario { name: "boot", about: "dom0 comes up; two guests run a program of ours and find themselves in xenstore" },
    Scenario {
        name: "doctor",
        about: "`fido xen doctor` in dom0 and in guests made by `fido xen image` and `fido xen config`",
    },
    Scenario {
        name: "memory",
        about: "arenas, windows and bells between three guests; a write that must fault; deaths, and no leak",
    },
    Scenario {
        name: "costs",
        about: "large windows, and what a window, a mapping, a copy and a bell take, in relation",
    },
    Scenario { name: "conformance", about: "fido-core's suite for platforms between three guests under the manager" },
    Scenario {
        name: "destroy",
        about: "bytes are forwarded by address from guest to guest to guest; kill -9 and xl destroy of each, and its return",
    },
    Scenario { name: "ring", about: "what a lane between two guests takes, and that it asks nothing of the kernel" },
    Scenario { name: "refusals", about: "fidod where something is missing or wrong says what, and what to do" },
    Scenario {
        name: "handshake",
        about: "a guest that leaves or lies in each step of the handshake harms nobody else",
    },
    Scenario {
        name: "nas",
        about: "the NAS in three guests under fidod, served to libnfs in dom0; each destroyed in turn",
    },
    // Nothing can be created or destroyed after it.
    Scenario { name: "lost", about: "xenstored is killed under a running NAS, which goes on; fidod says so and ends" },
];

/// The names that `wanted` stands for: itself, several with commas between them, or every one for `all`.
#[must_use]
pub fn names(wanted: &str) -> Option<Vec<String>> {
    let all = ALL.iter().map(|scenario| scenario.name.to_owned());
    if wanted == "all" {
        return Some(all.collect());
    }
    let is_there = |name: &str| ALL.iter().any(|scenario| scenario.name == name);
    // In their own order: some leave a machine that others cannot use.
    let found = all.filter(|name| wanted.split(',').any(|one| one == name)).collect();
    wanted.split(',').all(is_there).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_all_is_all() {
        assert_eq!(names("boot").unwrap(), ["boot"]);
        assert_eq!(names("all").unwrap().len(), ALL.len());
        assert_eq!((names("no"), names("boot,no"), names("")), (None, None, None));
        assert_eq!(names("ring,boot").unwrap(), ["boot", "ring"]);
        assert!(ALL.iter().all(|scenario| xen_guest::report::plain_name(scenario.name) == scenario.name));
    }
}
