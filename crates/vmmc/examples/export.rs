//! Exports a page by the name "board" and prints what the `send` example writes into it.

use vmmc::Process;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let process = Process::open()?;
    let board = process.export(4096).name("board").create()?;
    println!("exported {}; now run the send example", board.id());
    while board.load_signal(4088)? == 0 {
        std::thread::yield_now();
    }
    let mut text = [0; 5];
    board.read(0, &mut text)?;
    println!("received {:?}", String::from_utf8_lossy(&text));
    Ok(())
}
