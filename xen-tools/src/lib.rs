//! xen-tools.
