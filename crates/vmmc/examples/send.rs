//! Imports "board" from the process that runs the `export` example and writes into its memory.

use vmmc::{ImportSource, Process};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let process = Process::open()?;
    let board = process.import(ImportSource::Name("board".into())).open()?;
    board.send(0, b"hello")?; // a copy: no system call
    board.signal(4088, 1)?; // visible after the copy
    println!("sent to {}", board.id());
    Ok(())
}
