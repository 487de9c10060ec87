//! stub
mod acheron;
