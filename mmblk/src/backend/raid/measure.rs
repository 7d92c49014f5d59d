//! How fast an array is, against its members.
