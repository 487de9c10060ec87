//! The one integration binary: real parts, no sleeps, only loopback.

mod net;
