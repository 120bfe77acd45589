//! Several transfers under way at once, their buffers owned by the library until they are over.

use vmmc::{ImportSource, Process};

const MB: usize = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let process = Process::open()?;
    let export = process.export(4 * MB).create()?;
    let import = process.import(ImportSource::Id(export.id())).open()?;

    // Large: copied by a thread of the library. The buffers are gone from here until the transfers are over.
    let first = import.send_async(0, vec![1; MB]);
    let second = import.send_async(MB, vec![2; MB].into_boxed_slice());
    // Pieces, each to its own place.
    let pieces = import.send_vectored_async(vec![(2 * MB, b"head"), (3 * MB, b"tail")]);
    // Visible after all of that.
    let word = import.signal_async(4 * MB - 8, 1);

    // The receiver.
    while export.load_signal(4 * MB - 8)? == 0 {
        std::thread::yield_now();
    }
    let mut tail = [0; 4];
    export.read(3 * MB, &mut tail)?;
    assert_eq!(&tail, b"tail");

    // Waiting gives a buffer back, to be used again; `.await` in any executor does the same.
    let buffer = first.wait().buffer;
    let fetched = import.fetch_async(MB, buffer).wait();
    fetched.result?;
    assert!(fetched.buffer.iter().all(|byte| *byte == 2));

    // Dropping a transfer cancels what has not been copied yet; flush says that nothing more will be written.
    drop(import.send_async(0, vec![3; 2 * MB]));
    import.flush()?;
    for result in [second.wait().result, pieces.wait().result, word.wait().result] {
        result?;
    }
    println!("{:?} arrived last", String::from_utf8_lossy(&tail));
    Ok(())
}
