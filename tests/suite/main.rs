//! The tests that use several parts together, as one program.

mod conformance;
