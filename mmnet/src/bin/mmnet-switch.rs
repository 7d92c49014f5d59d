//! The switch component: every link of the domain is a port of one learning switch, which forwards addresses only.
//!
//! `docs/mmnet.md` has its settings and an example.

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;

use fido_core::addr::DomainId;
use fido_core::domain::{Domain, DomainError};
use fido_core::wait::Source;
use mmnet::component::{self, Service};
use mmnet::frame::{FrameLink, FramePort};
use mmnet::switch::{Membership, PortSettings, Switch, SwitchSettings};
use serde::Deserialize;

fn main() -> ExitCode {
    component::main("mmnet-switch", run)
}

/// What the manifest says of a port, under `ports.LINK`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Given {
    mtu: Option<usize>,
    access: Option<u16>,
    trunk: Option<Vec<u16>>,
    native: Option<u16>,
    broadcast: Option<u32>,
    unknown: Option<u32>,
    #[serde(default)]
    mirror: bool,
}

impl Given {
    fn membership(&self) -> Result<Membership, &'static str> {
        match (self.access, &self.trunk, self.native) {
            (access, None, None) => Ok(Membership::Access(access.unwrap_or(1))),
            (None, Some(vlans), native) => Ok(Membership::Trunk { vlans: vlans.clone(), native }),
            (Some(_), Some(_), _) => Err("`access` and `trunk` exclude each other"),
            (_, None, Some(_)) => Err("`native` is for a `trunk`"),
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let domain = Domain::join()?;
    let default = SwitchSettings::default();
    let settings = SwitchSettings {
        stations: domain.param("stations", default.stations)?,
        age: domain.param("age", default.age)?,
    };
    let ports = ports(&domain)?;
    component::run(&domain, Ports(Switch::new(settings, ports, domain.memory())?))
}

fn ports(domain: &Domain) -> Result<Vec<(PortSettings, FrameLink)>, Box<dyn Error>> {
    let mtu = domain.param("mtu", 1500)?;
    let mut given: BTreeMap<String, Given> = domain.param("ports", BTreeMap::new())?;
    let mut ports = Vec::new();
    for link in &domain.assignment().links {
        let given = given.remove(&link.name).unwrap_or_default();
        let wrong = |error: String| domain.bad_param(&format!("ports.{}", link.name), error);
        let settings = PortSettings {
            name: link.name.clone(),
            membership: given.membership().map_err(|error| wrong(error.into()))?,
            broadcast: given.broadcast,
            unknown: given.unknown,
            mirror: given.mirror,
        };
        let lane = domain.take_lane(&link.name, 0)?;
        let device = FrameLink::new(lane, given.mtu.unwrap_or(mtu)).map_err(|error| wrong(error.to_string()))?;
        ports.push((settings, device));
    }
    if let Some(unknown) = given.keys().next() {
        return Err(unknown_link(domain, unknown).into());
    }
    Ok(ports)
}

fn unknown_link(domain: &Domain, name: &str) -> DomainError {
    domain.bad_param("ports", format!("there is no link {name:?}"))
}

/// The switch as a service.
struct Ports(Switch<FrameLink>);

impl Service for Ports {
    fn turn(&mut self) -> bool {
        self.0.turn()
    }

    fn sources<'a>(&'a mut self, all: &mut Vec<&'a mut dyn Source>) {
        self.0.sources(all);
    }

    fn forget(&mut self, dead: DomainId) {
        self.0.forget(dead);
    }

    fn notes(&self) -> Vec<(String, String)> {
        let (stations, evicted) = self.0.stations();
        let mut notes = vec![("stations".into(), stations.to_string()), ("evicted".into(), evicted.to_string())];
        for (name, device, counts) in self.0.ports() {
            let of = device.counts();
            let lost = of.dropped_sending + of.dropped_receiving;
            let text = format!(
                "in {} out {} flooded {} lost {lost} refused {} dropped {} (storm {} vlan {} unfit {})",
                of.received,
                of.sent,
                counts.flooded,
                of.refused,
                counts.dropped(),
                counts.storm,
                counts.vlan,
                counts.unfit
            );
            notes.push((format!("port.{name}"), text));
        }
        notes
    }
}
