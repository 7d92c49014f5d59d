//! What clients say, and what follows from it at once.

use std::sync::atomic::Ordering;

use super::super::client::{Client, Key, Talk};
use super::super::haggle::{Offer, Outcome, too_many};
use super::super::session::{Said, Session};
use super::super::{Export, Facts};
use super::{TURN, Worker};
use crate::nbd::incoming::Received;
use crate::queue::BlockQueue;

impl<Q: BlockQueue> Worker<Q> {
    pub(super) fn read(&mut self) -> bool {
        let count = self.reading.len();
        for _ in 0..count {
            let Some(key) = self.reading.pop_front() else { break };
            let Some(client) = self.clients.get_mut(key) else { continue };
            client.in_reading = false;
            match client.talk {
                Talk::Haggling(_) => self.haggle(key),
                Talk::Serving(_) => self.serve(key),
            }
        }
        count > 0
    }

    /// Goes on with a negotiation.
    fn haggle(&mut self, key: Key) {
        let refusal = too_many(&self.shared.limits);
        for _ in 0..TURN {
            let offers = self.offers();
            let Some(Client { talk: Talk::Haggling(haggling), socket, readable, .. }) = self.clients.get_mut(key)
            else {
                return;
            };
            if !haggling.listens() {
                break;
            }
            let bytes = match haggling.receive(socket, &self.memory) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => {
                    *readable = false;
                    break;
                }
                Err(_) => return self.close(key),
            };
            // A place is taken first, so that the limit is exact whoever else enters meanwhile.
            let place = self.shared.reserve();
            let (haggle, out) = haggling.parts();
            let outcome = haggle.input(&bytes, &offers, (!place).then_some(&*refusal), out);
            if place && !matches!(outcome, Outcome::Agreed(_)) {
                self.shared.release();
            }
            match outcome {
                Outcome::More => {}
                Outcome::Agreed(agreement) => haggling.agreed = Some(agreement),
                Outcome::Over(reason) => haggling.over = Some(reason),
            }
        }
        self.say(key);
        self.want_to_read(key);
    }

    fn offers(&self) -> Vec<Offer> {
        let offer = |(index, export): (usize, &Export)| {
            let Facts { geometry, flags, sizes } = self.facts(index)?;
            let (name, description) = (export.name.clone(), export.description.clone());
            Some(Offer { name, description, bytes: geometry.bytes, flags, sizes })
        };
        self.shared.exports.iter().enumerate().filter_map(offer).collect()
    }

    /// Says what a negotiation has to say; and what follows when that is said.
    pub(super) fn say(&mut self, key: Key) {
        let Some(Client { talk, socket, writable, .. }) = self.clients.get_mut(key) else { return };
        let Talk::Haggling(haggling) = talk else { return };
        if let Some(agreement) = haggling.agreed
            && self.shared.orphans.get(agreement.export).is_some_and(|count| count.load(Ordering::SeqCst) > 0)
        {
            return;
        }
        match haggling.send(socket, &self.memory) {
            Ok(true) => {}
            Ok(false) => {
                *writable = false;
                return;
            }
            Err(_) => {
                haggling.over = Some("its connection failed");
            }
        }
        if let Some(reason) = haggling.over {
            tracing::info!(reason, "leaving a client");
            return self.close(key);
        }
        if let Some(agreement) = haggling.agreed {
            tracing::info!(?agreement, "serving a client");
            *talk = Talk::Serving(Box::new(Session::new(agreement, &self.shared.limits)));
            self.haggling.retain(|other| *other != key);
        }
    }

    /// Reads and submits what a client says, with at most one receive.
    fn serve(&mut self, key: Key) {
        if self.parse(key) && self.receive(key) {
            self.parse(key);
            if self.clients.get_mut(key).is_some_and(|client| client.readable) {
                self.want_to_read(key);
            }
        }
    }

    /// Takes requests from what has arrived. Returns whether all of it is used up and more may be received.
    fn parse(&mut self, key: Key) -> bool {
        let limits = self.shared.limits;
        let Some(Client { talk: Talk::Serving(session), .. }) = self.clients.get_mut(key) else { return false };
        let export = session.agreement.export;
        let Some(facts) = self.facts(export) else { return false };
        loop {
            let Some(Client { talk: Talk::Serving(session), .. }) = self.clients.get_mut(key) else { return false };
            let Some(said) = session.next(&facts, &limits, &self.memory) else { break };
            match said {
                Said::Submit(open, op) => {
                    let Some(outlet) = self.outlets.get_mut(export) else { return false };
                    if outlet.submit(&mut self.requests, key, open, op, false) {
                        session.submitted(&open);
                    } else {
                        session.stalled = true;
                    }
                }
                Said::Refused => {}
                Said::Leaves => break,
                Said::Nonsense(reason) => {
                    self.memory.stats().refusals.add(1);
                    tracing::warn!(reason, "leaving a client");
                    self.close(key);
                    return false;
                }
            }
        }
        let Some(Client { talk: Talk::Serving(session), .. }) = self.clients.get_mut(key) else { return false };
        let (more, over) = (session.wants_bytes(&limits), session.is_over());
        if over {
            self.close(key);
        } else {
            self.want_to_send(key);
        }
        more && !over
    }

    /// Receives once. Returns whether there is something to parse.
    fn receive(&mut self, key: Key) -> bool {
        let Some(client) = self.clients.get_mut(key) else { return false };
        let Talk::Serving(session) = &mut client.talk else { return false };
        if !client.readable {
            return false;
        }
        let expected = session.expected();
        match session.incoming.receive(&client.socket, expected, &self.memory) {
            Received::Some => {
                client.readable = session.incoming.has_more() || client.to_the_end;
                true
            }
            Received::Nothing => {
                client.readable = session.incoming.has_more();
                false
            }
            Received::Blocked => {
                self.starving.push(key);
                false
            }
            Received::End | Received::Failed(_) => {
                self.close(key);
                false
            }
        }
    }
}
