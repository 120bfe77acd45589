//! Descriptors of a library's own, out of the way of the program that it is in.

pub use vmmc_os::Descriptor;
