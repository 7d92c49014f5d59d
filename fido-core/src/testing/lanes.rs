//! A link of several lanes whose user can die and come again, each lane being told of it in its own time.

use std::sync::Arc;

use super::{Passes, TestDomain};
use crate::addr::DomainId;
use crate::arena::LanePlan;
use crate::assignment::Transport;
use crate::bell::Bell;
use crate::lane::{Lane, LaneSetup, Mailbox, News};
use crate::private::own_id;

/// A link of several lanes between a domain that serves and one that uses it. The test plays the manager.
#[derive(Debug)]
pub struct TestLanes {
    slots: u32,
    /// The domain that serves.
    pub server: TestDomain,
    /// The present incarnation of its user.
    pub user: TestDomain,
    server_mail: Vec<Arc<Mailbox>>,
    user_mail: Vec<Arc<Mailbox>>,
    /// The fences that the server has passed.
    pub passes: Arc<Passes>,
}

fn plans(lanes: u16, slots: u32) -> Vec<LanePlan> {
    (0..lanes).map(|lane| LanePlan { link: 1, lane, slots }).collect()
}

fn mail(lanes: u16) -> Vec<Arc<Mailbox>> {
    (0..lanes).map(|_| Arc::new(Mailbox::new(Arc::new(Bell::new().expect("a bell"))))).collect()
}

impl TestLanes {
    /// A link of so many lanes with rings of `slots` slots between arenas of `bytes` bytes; the server's ends and the
    /// user's ends, connected.
    ///
    /// # Panics
    /// If the system has no memory or descriptor for it, or the rings leave no room in the arenas.
    pub fn new(lanes: u16, slots: u32, bytes: u64) -> (Self, Vec<Lane>, Vec<Lane>) {
        let domain = || {
            let id = own_id();
            TestDomain::new(id, bytes, &plans(lanes, slots))
        };
        let (server, user) = (domain(), domain());
        let (server_mail, user_mail) = (mail(lanes), mail(lanes));
        let link = Self { slots, server, user, server_mail, user_mail, passes: Arc::default() };
        let mut server = link.ends(&link.server, &link.server_mail, &link.passes);
        let mut user = link.ends(&link.user, &link.user_mail, &Arc::default());
        link.server.memory.windows().insert(link.user.window());
        link.tell_user();
        (0..lanes).for_each(|lane| link.tell_up(lane));
        // Each side sets its half up and, at the second look, sees that the other has.
        for _ in 0..2 {
            server.iter_mut().chain(&mut user).for_each(|lane| _ = lane.change());
        }
        (link, server, user)
    }

    fn ends(&self, domain: &TestDomain, mail: &[Arc<Mailbox>], passes: &Arc<Passes>) -> Vec<Lane> {
        let end = |(place, mailbox): (_, &Arc<Mailbox>)| {
            Lane::new(LaneSetup {
                name: "test".into(),
                place,
                transport: Transport::Pointer,
                memory: domain.memory.clone(),
                mailbox: mailbox.clone(),
                fence: passes.clone(),
            })
        };
        domain.memory.arena().lanes().iter().copied().zip(mail).map(end).collect()
    }

    fn tell_user(&self) {
        self.user.memory.windows().insert(self.server.window());
        for (user, server) in self.user_mail.iter().zip(&self.server_mail) {
            let bell = Box::new(server.bell().share().expect("a bell"));
            user.put(News::Up(self.server.id(), bell));
        }
    }

    /// Starts the user again in its next generation, with a new arena. Returns its ends of the lanes. The server's learn
    /// of it when they are told.
    ///
    /// # Panics
    /// If the system has no memory or descriptor for it.
    pub fn restart_user(&mut self) -> Vec<Lane> {
        let dead = self.user.id();
        let lanes = self.user_mail.len() as u16;
        let id = DomainId { slot: dead.slot, generation: dead.generation.next() };
        self.user = TestDomain::new(id, self.server.memory.arena().len(), &plans(lanes, self.slots));
        self.user_mail = mail(lanes);
        let ends = self.ends(&self.user, &self.user_mail, &Arc::default());
        self.server.memory.windows().insert(self.user.window());
        self.tell_user();
        ends
    }

    /// Tells one lane of the server that an incarnation of the user is dead.
    pub fn tell_death(&self, lane: u16, dead: DomainId) {
        if let Some(mailbox) = self.server_mail.get(usize::from(lane)) {
            mailbox.put(News::Died(dead));
        }
    }

    /// Tells one lane of the server that the present incarnation of the user is there.
    ///
    /// # Panics
    /// If the system has no descriptor left.
    pub fn tell_up(&self, lane: u16) {
        if let (Some(server), Some(user)) =
            (self.server_mail.get(usize::from(lane)), self.user_mail.get(usize::from(lane)))
        {
            server.put(News::Up(self.user.id(), Box::new(user.bell().share().expect("a bell"))));
        }
    }
}
