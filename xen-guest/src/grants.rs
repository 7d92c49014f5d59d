//! The hypervisor's dump of all grant tables (`xl debug-keys g`, then `xl dmesg`): who still shares what.
//!
//! Source of the format: `gnttab_usage_print` in `xen/common/grant_table.c` of Xen 4.17.

/// A domain's grant table: only what is in use is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The domain that grants.
    pub domain: u32,
    /// Entries that another domain has mapped or copies from.
    pub active: usize,
}

/// Reads the last dump in a log; `None` if there is none that is complete.
#[must_use]
pub fn parse(log: &str) -> Option<Vec<Table>> {
    const BEGIN: &str = "gnttab_usage_print_all [ key 'g' pressed";
    const END: &str = "gnttab_usage_print_all ] done";
    let dump = &log[log.rfind(BEGIN)? + BEGIN.len()..];
    let dump = &dump[..dump.find(END)?];
    let mut tables: Vec<Table> = Vec::new();
    for line in dump.lines() {
        let line = line.trim_start_matches("(XEN)").trim();
        if let Some(rest) = line.strip_prefix("grant-table for remote d") {
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            tables.push(Table { domain: digits.parse().ok()?, active: 0 });
        } else if line.starts_with("[0x") {
            tables.last_mut()?.active += 1;
        }
    }
    Some(tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "(XEN) gnttab_usage_print_all [ key 'g' pressed\n(XEN) grant-table for remote d9 (v1)\n\
        (XEN) gnttab_usage_print_all ] done\n\
        (XEN) gnttab_usage_print_all [ key 'g' pressed\n\
        (XEN)       -------- active --------       -------- shared --------\n\
        (XEN) [ref] localdom mfn      pin          localdom gmfn     flags\n\
        (XEN) grant-table for remote d0 (v1)\n\
        (XEN)   1 frames (64 max), 3 maptrack frames (1024 max)\n\
        (XEN) no active grant table entries\n\
        (XEN) grant-table for remote d12 (v1)\n\
        (XEN)   1 frames (64 max), 0 maptrack frames (1024 max)\n\
        (XEN) [0x000]      0 0x7fd01 0x00000002          0 0x00f5d0 0x19\n\
        (XEN) [0x008]     13 0x7fd02 0x00000001         13 0x00f5d1 0x1d\n\
        (XEN) gnttab_usage_print_all ] done\n";

    #[test]
    fn the_last_dump_counts() {
        let wanted = [Table { domain: 0, active: 0 }, Table { domain: 12, active: 2 }];
        assert_eq!(parse(LOG).unwrap(), wanted);
    }

    #[test]
    fn half_a_dump_is_none() {
        let half = &LOG[..LOG.len() - 20];
        assert_eq!(parse(half), None);
        assert_eq!(parse("nothing"), None);
        assert_eq!(parse(""), None);
    }
}
