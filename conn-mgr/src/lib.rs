//! conn-mgr.
