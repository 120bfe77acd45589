//! A sender writes to the export; the bytes arrive in memory that the receiver posted for them.

use vmmc::{ImportSource, Process};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let receiver = Process::open()?;
    let export = receiver.export(8192).redirectable(4096).create()?;
    // Nothing in the sender's calls says where the bytes end up.
    let import = receiver.import(ImportSource::Id(export.id())).open()?;

    import.send(0, b"early, ")?; // nothing is posted: into the default buffer
    let posting = export.post(0, export.redirect_buffer(20)?)?;
    import.send_signal(7, b"then directly", 8184, 1)?;
    while export.load_signal(8184)? == 0 {
        std::thread::yield_now();
    }
    let arrived = export.finish(posting)?; // copies what was early
    let mut text = [0; 20];
    arrived.buffer.read(0, &mut text)?;
    println!("{:?}, of which {:?} directly", String::from_utf8_lossy(&text), arrived.redirected);
    assert_eq!(&text, b"early, then directly");
    assert_eq!(arrived.redirected.first(), Some(&(7..20)));
    Ok(())
}
