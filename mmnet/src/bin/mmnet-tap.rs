//! The TAP component: joins the queues of a TAP device with the lanes of its only link, one to one.
//!
//! `docs/mmnet.md` has its settings and an example.

use std::error::Error;
use std::process::ExitCode;

use fido_core::addr::DomainId;
use fido_core::domain::Domain;
use fido_core::wait::Source;
use mmnet::component::{self, Service};
use mmnet::frame::{FrameLink, FramePort};
use mmnet::layer::fault::{FaultCounts, Faults, Faulty};
use mmnet::relay::Relay;
use mmnet::tap::{TapOptions, TapPort};

fn main() -> ExitCode {
    component::main("mmnet-tap", run)
}

fn run() -> Result<(), Box<dyn Error>> {
    let domain = Domain::join()?;
    let options = TapOptions {
        name: domain.required_param("device")?,
        mtu: domain.param("mtu", None)?,
        offload: domain.param("offload", true)?,
    };
    let [link] = &*domain.assignment().links else {
        return Err(format!("{} links; a TAP device is joined to one", domain.assignment().links.len()).into());
    };
    let lanes = domain.take_lanes(&link.name)?;
    let memories = lanes.iter().map(|_| domain.memory()).collect();
    let queues =
        TapPort::open_queues(&options, memories).map_err(|error| domain.bad_param("device", error.to_string()))?;
    let links = lanes.into_iter().zip(&queues).map(|(lane, queue)| FrameLink::new(lane, queue.mtu()));
    let links = links.collect::<Result<Vec<_>, _>>()?;
    let Some(faults) = domain.param::<Option<Faults>>("faults", None)? else {
        return component::run(&domain, Wires::between(links, queues));
    };
    faults.check().map_err(|error| domain.bad_param("faults", error.to_string()))?;
    let faulty = queues.into_iter().map(|queue| Faulty::new(queue, faults)).collect::<Result<_, _>>()?;
    component::run(&domain, Wires::<Faulty<TapPort>>::between(links, faulty))
}

/// A queue of a TAP device, perhaps in a layer.
trait Edge: FramePort {
    fn tap(&self) -> &TapPort;

    fn faults(&self) -> Option<FaultCounts> {
        None
    }
}

impl Edge for TapPort {
    fn tap(&self) -> &TapPort {
        self
    }
}

impl Edge for Faulty<TapPort> {
    fn tap(&self) -> &TapPort {
        self.port()
    }

    fn faults(&self) -> Option<FaultCounts> {
        Some(self.faults())
    }
}

/// The wires between queues and lanes.
struct Wires<P>(Vec<Relay<FrameLink, P>>);

impl<P: Edge> Wires<P> {
    fn between(links: Vec<FrameLink>, edges: Vec<P>) -> Self {
        Self(links.into_iter().zip(edges).map(|(link, edge)| Relay::new(link, edge)).collect())
    }
}

impl<P: Edge> Service for Wires<P> {
    fn turn(&mut self) -> bool {
        self.0.iter_mut().fold(false, |worked, wire| wire.turn() | worked)
    }

    fn sources<'a>(&'a mut self, all: &mut Vec<&'a mut dyn Source>) {
        self.0.iter_mut().for_each(|wire| wire.sources(all));
    }

    fn forget(&mut self, dead: DomainId) {
        self.0.iter_mut().for_each(|wire| wire.forget(dead));
    }

    fn notes(&self) -> Vec<(String, String)> {
        let mut notes = Vec::new();
        if let Some(wire) = self.0.first() {
            let tap = wire.ports().1.tap();
            notes.push(("device".into(), tap.name().into()));
            notes.push(("mtu".into(), tap.mtu().to_string()));
            notes.push(("heap".into(), tap.memory().heap().used().to_string()));
        }
        for (number, wire) in self.0.iter().enumerate() {
            let (link, edge) = wire.ports();
            let (link, tap) = (link.counts(), edge.counts());
            let lost = link.dropped_sending + link.dropped_receiving + tap.dropped_sending + tap.dropped_receiving;
            let refused = link.refused + tap.refused + wire.unfit();
            let text = format!("out {} in {} dropped {lost} refused {refused}", tap.sent, tap.received);
            notes.push((format!("queue{number}"), text));
            if let Some(faults) = edge.faults() {
                let FaultCounts { lost, duplicated, corrupted, reordered, crowded_out } = faults;
                let text = format!(
                    "lost {lost} duplicated {duplicated} corrupted {corrupted} reordered {reordered} crowded out {crowded_out}"
                );
                notes.push((format!("faults{number}"), text));
            }
        }
        notes
    }

    fn failure(&self) -> Option<String> {
        let failed =
            self.0.iter().find_map(|wire| Some((wire.ports().1.tap().name(), wire.ports().1.tap().failure()?)));
        failed.map(|(name, error)| format!("the TAP device {name} is gone: {error}"))
    }
}
