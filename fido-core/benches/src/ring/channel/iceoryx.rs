//! `iceoryx2` between the two processes: a publish-subscribe service for each direction, polled, nothing discarded.

use fido_core::ring::Words;
use iceoryx2::port::backpressure_strategy::BackpressureStrategy;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;

use super::Channel;
use crate::Failure;
use crate::ring::end::{End, SLOTS, Side};
use crate::ring::spin::spin;

/// A message with its padding to a slot's size.
type Message = [u32; 16];

/// One side's ports. They stay open for the whole run.
#[derive(Debug)]
pub struct Ports {
    out: Publisher<ipc::Service, Message, ()>,
    into: Subscriber<ipc::Service, Message, ()>,
    _node: Node<ipc::Service>,
}

impl Ports {
    /// This side's ports, opened at the first use; both sides come here for the same piece of work.
    pub fn of(end: &mut End) -> Result<&mut Self, Failure> {
        if end.iceoryx.is_none() {
            end.iceoryx = Some(Self::open(end.side, end.run)?);
        }
        end.iceoryx.as_mut().ok_or_else(|| "just opened".into())
    }

    fn open(side: Side, run: u32) -> Result<Self, Failure> {
        set_log_level(LogLevel::Error);
        let wrong = |error: &dyn std::fmt::Debug| -> Failure { format!("iceoryx2: {error:?}").into() };
        let node = NodeBuilder::new().create::<ipc::Service>().map_err(|error| wrong(&error))?;
        let service = |direction: &str| {
            let name = format!("fido-bench/{run}/{direction}");
            let name = ServiceName::new(&name).map_err(|error| wrong(&error))?;
            node.service_builder(&name)
                .publish_subscribe::<Message>()
                .enable_safe_overflow(false)
                .subscriber_max_buffer_size(SLOTS as usize)
                .max_publishers(1)
                .max_subscribers(1)
                .open_or_create()
                .map_err(|error| wrong(&error))
        };
        let (out, into) = if side == Side::Lead { ("there", "back") } else { ("back", "there") };
        let (there, back) = (service(out)?, service(into)?);
        let publisher = there
            .publisher_builder()
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()
            .map_err(|error| wrong(&error))?;
        let subscriber =
            back.subscriber_builder().buffer_size(SLOTS as usize).create().map_err(|error| wrong(&error))?;
        // What is sent before there is a subscriber is lost.
        spin("iceoryx2 peer", || {
            let met = there.dynamic_config().number_of_subscribers() == 1
                && back.dynamic_config().number_of_publishers() == 1;
            met.then_some(())
        })?;
        Ok(Self { out: publisher, into: subscriber, _node: node })
    }
}

impl Channel for Ports {
    #[inline]
    fn send(&mut self, message: &Words) -> Result<(), Failure> {
        let mut payload = [0; 16];
        payload[..message.len()].copy_from_slice(message);
        self.out.loan_uninit()?.write_payload(payload).send()?;
        Ok(())
    }

    #[inline]
    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        let sample = spin("message", || self.into.receive().transpose())??;
        *message = std::array::from_fn(|word| sample[word]);
        Ok(())
    }
}
