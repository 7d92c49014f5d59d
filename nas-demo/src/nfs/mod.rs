//! The NFSv3 and MOUNT v3 server.
