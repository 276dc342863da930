//! Configuration: placeholder until the reader arrives.
