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
    let mut wires = Vec::new();
    for (lane, queue) in lanes.into_iter().zip(queues) {
        wires.push(Relay::new(FrameLink::new(lane, queue.mtu())?, queue));
    }
    component::run(&domain, Wires(wires))
}

/// The wires between queues and lanes.
struct Wires(Vec<Relay<FrameLink, TapPort>>);

impl Service for Wires {
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
            let (_, tap) = wire.ports();
            notes.push(("device".into(), tap.name().into()));
            notes.push(("mtu".into(), tap.mtu().to_string()));
            notes.push(("heap".into(), tap.memory().heap().used().to_string()));
        }
        for (number, wire) in self.0.iter().enumerate() {
            let (link, tap) = wire.ports();
            let (link, tap) = (link.counts(), tap.counts());
            let lost = link.dropped_sending + link.dropped_receiving + tap.dropped_sending + tap.dropped_receiving;
            let refused = link.refused + tap.refused + wire.unfit();
            let text = format!("out {} in {} dropped {lost} refused {refused}", tap.sent, tap.received);
            notes.push((format!("queue{number}"), text));
        }
        notes
    }

    fn failure(&self) -> Option<String> {
        let failed = self.0.iter().find_map(|wire| Some((wire.ports().1.name(), wire.ports().1.failure()?)));
        failed.map(|(name, error)| format!("the TAP device {name} is gone: {error}"))
    }
}
