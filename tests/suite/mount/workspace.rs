//! Mounting what a gateway offers.
