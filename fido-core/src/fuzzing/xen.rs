//! What comes from outside on platform `xen`: xenstored's packets, other domains' nodes, a peer's directory pages.

use super::Input;
use crate::addr::{DomainId, Generation, Slot};
use crate::platform::xen::directory::{self, Kind, Label, Page, WORDS};
use crate::platform::xen::layout::{self, DomainNode, Link, ManagerNode, Passed, Peer, Reader};
use crate::platform::xen::store::wire::{self, Decoder, Packet};

/// Any bytes are packets, nodes and pages that have one meaning, or they are refused.
pub fn xen(data: &[u8]) {
    packets(data);
    node(data);
    pages(data);
}

fn packets(data: &[u8]) {
    let (mut decoder, mut whole) = (Decoder::default(), Decoder::default());
    whole.push(data);
    let (mut parts, mut seen) = (data.chunks(7), Vec::new());
    loop {
        match decoder.take() {
            Ok(Some(packet)) => seen.push(packet),
            Ok(None) => match parts.next() {
                Some(part) => decoder.push(part),
                None => break,
            },
            Err(_) => break,
        }
    }
    for packet in seen {
        let bytes = packet.encode().expect("what was received can be sent");
        assert!(matches!(whole.take(), Ok(Some(same)) if same == packet), "packets do not depend on how they are cut");
        assert_eq!(bytes.len(), wire::HEADER_BYTES + packet.content.len());
        content(&packet);
    }
}

fn content(packet: &Packet) {
    let bytes = &packet.content;
    let _ = (wire::string(bytes), wire::number(bytes), wire::watch_event(bytes));
    if let Ok(list) = wire::strings(bytes) {
        assert_eq!(list.iter().map(|text| text.len() + 1).sum::<usize>(), bytes.len());
    }
    if let Ok(part) = wire::directory_part(bytes) {
        assert!(part.bytes <= bytes.len() && part.names.iter().all(|name| !name.is_empty()));
    }
    if let Ok(entries) = wire::permissions(bytes) {
        assert!(!entries.is_empty());
    }
}

fn node(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (name, value) = text.split_once('=').unwrap_or((&text, ""));
    if let Some(node) = DomainNode::of(name) {
        assert!(DomainNode::of(&node.name()) == Some(node) && wire::check_path(&node.path("")).is_ok());
    }
    if let Some(node) = ManagerNode::of(name) {
        assert!(ManagerNode::of(&node.name()) == Some(node) && wire::check_path(&node.path("")).is_ok());
    }
    let value = value.as_bytes();
    let _ = (layout::decode::<Reader>(name, value), layout::decode::<Link>(name, value));
    let _ = (layout::decode::<Passed>(name, value), layout::decode::<layout::Arena>(name, value));
    if let Ok(peer) = layout::decode::<Peer>(name, value) {
        let bytes = layout::encode(name, &peer).expect("a short value");
        assert_eq!(layout::decode::<Peer>(name, &bytes).expect("its own encoding"), peer);
    }
}

fn pages(data: &[u8]) {
    let mut input = Input(data);
    let owner = DomainId { slot: Slot::new(3).expect("a slot"), generation: Generation::FIRST };
    let kind = if input.byte().is_multiple_of(2) { Kind::Grants } else { Kind::Frames };
    let label = Label { kind, owner, reader: 5, pages: input.word() as usize % (3 * WORDS) };
    // A root as it should be, with some words that are not.
    let mut page: Page = directory::root(&label, &[8, 9, 10]);
    while !input.is_empty() {
        let at = usize::from(u16::from_le_bytes(input.take())) % WORDS;
        page[at] = input.word();
    }
    if let Ok(list) = directory::read_root(&page, &label) {
        assert_eq!(list.len(), directory::directories_of(label.pages));
    }
    if let Ok(list) = directory::read_directories(&[page], &label) {
        assert_eq!(list.len(), label.pages);
        assert!(kind == Kind::Frames || list.iter().all(|word| *word >= directory::FIRST_REFERENCE));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_from_outside(data: Vec<u8>, kind in 0u32..24, content in prop::collection::vec(0u8..4, 0..40)) {
            super::xen(&data);
            let header = [kind, 0, 0, content.len() as u32];
            let mut packet: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
            packet.extend(content);
            packet.extend(data);
            super::xen(&packet);
        }

        #[test]
        fn any_node(name in "(peers|links|roots|mapped)/[0-9]{1,5}-[0-9]{1,5}", value in r#"\{"state":"(alive|dead)"\}"#) {
            super::xen(format!("{name}={value}").as_bytes());
        }
    }
}
