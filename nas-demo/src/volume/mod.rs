//! The file system of the NAS: metadata in a store, file data out of place beside it.

#[expect(missing_docs, reason = "the fields of operations and answers are named as in RFC 1813")]
pub mod ops;
