//! Several domains of one process, linked as a test or a benchmark wants them.

use std::sync::Arc;

use super::{Passes, TestDomain};
use crate::arena::LanePlan;
use crate::assignment::Transport;
use crate::bell::Bell;
use crate::lane::{Lane, LaneSetup, Mailbox, News};
use crate::memory::Memory;
use crate::private::own_id;

/// One domain of a mesh.
#[derive(Debug)]
pub struct Node {
    /// Its memory.
    pub memory: Memory,
    /// Its ends of the lanes, in the order in which the mesh was given them.
    pub lanes: Vec<Lane>,
}

/// So many domains with arenas of `bytes` bytes, and a lane with rings of `slots` slots between each of the given pairs.
///
/// # Panics
/// If the system has no memory or descriptor for it, a number in `pairs` is no domain's, or the lanes are beyond an
/// arena's limits.
pub fn mesh(domains: usize, pairs: &[(usize, usize)], slots: u32, bytes: u64) -> Vec<Node> {
    let nodes: Vec<TestDomain> = (0..domains)
        .map(|node| {
            let id = own_id();
            let mine = (0..).zip(pairs).filter(|(_, (a, b))| *a == node || *b == node);
            let plans: Vec<_> = mine.map(|(link, _)| LanePlan { link, lane: 0, slots }).collect();
            TestDomain::new(id, bytes, &plans)
        })
        .collect();
    for (a, b) in pairs {
        nodes[*a].memory.windows().insert(nodes[*b].window());
        nodes[*b].memory.windows().insert(nodes[*a].window());
    }
    let mut ends: Vec<Vec<Lane>> = nodes.iter().map(|_| Vec::new()).collect();
    for (link, (a, b)) in (0..).zip(pairs) {
        let mail = [a, b].map(|_| Arc::new(Mailbox::new(Arc::new(Bell::new().expect("a bell")))));
        for (side, node) in [a, b].into_iter().enumerate() {
            let peer = [b, a][side];
            let bell = mail[1 - side].bell().share().expect("a bell");
            mail[side].put(News::Up(nodes[*peer].id(), Box::new(bell)));
            let places = nodes[*node].memory.arena().lanes();
            ends[*node].push(Lane::new(LaneSetup {
                name: format!("{a}-{b}"),
                place: *places.iter().find(|place| place.plan.link == link).expect("planned above"),
                transport: Transport::Pointer,
                memory: nodes[*node].memory.clone(),
                mailbox: mail[side].clone(),
                fence: Arc::new(Passes::default()),
            }));
        }
    }
    // Each side sets its half up and, at the second look, sees that the other has.
    for _ in 0..2 {
        ends.iter_mut().flatten().for_each(|lane| _ = lane.change());
    }
    nodes.into_iter().zip(ends).map(|(node, lanes)| Node { memory: node.memory, lanes }).collect()
}
