//! How the preloaded library is linked.

fn main() {
    // A call from one hook to another must not go through the symbol table: a program that has a function of that name too, and
    // calls the hook behind it (Erlang's `sigaction` does), would be called back for ever.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-Bsymbolic-functions");
    println!("cargo::rerun-if-changed=build.rs");
}
