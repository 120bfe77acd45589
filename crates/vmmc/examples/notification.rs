//! An exporter learns of sends by a handler, by waiting, and by a future.

use std::sync::mpsc::channel;
use std::time::Duration;

use vmmc::{ImportSource, Notify, Process, WaitError};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let process = Process::open()?;

    // A handler runs on the library's notification thread.
    let (told, hear) = channel();
    let handler = Box::new(move |notification| {
        // The receiving end goes first only when the program ends.
        let _ = told.send(notification);
    });
    let handled = process.export(4096).notify(Notify::Handler(handler)).create()?;
    let import = process.import(ImportSource::Id(handled.id())).open()?;
    import.send_notify(16, b"handled!")?;
    let notification = hear.recv()?;
    println!("the handler was told: {} bytes at {}", notification.len, notification.offset);
    assert_eq!(notification.last_word.to_le_bytes(), *b"handled!");

    // A thread waits; more than 64 that nobody takes are counted.
    let awaited = process.export(4096).notify(Notify::Event).create()?;
    let import = process.import(ImportSource::Id(awaited.id())).open()?;
    for number in 0..70u64 {
        import.send_notify(0, &number.to_le_bytes())?;
    }
    for number in 0..64 {
        assert_eq!(awaited.wait(Duration::from_secs(1))?.last_word, number);
    }
    println!("64 came one by one, and {} at once", awaited.wait(Duration::ZERO)?.lost);
    assert_eq!(awaited.wait(Duration::ZERO), Err(WaitError::Timeout));

    // `awaited.notified().await` is the same in any executor, and `awaited.event_fd()` for epoll.
    Ok(())
}
