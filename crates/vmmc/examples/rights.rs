//! An export that asks for a key and may only be written; what importers see when it is taken back.

use vmmc::{Allow, ImportError, ImportSource, Path, Process, Rights, TransferError};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let process = Process::open()?;
    let inbox = process
        .export(4096)
        .rights(Rights::WRITE)
        .allow(Allow::Key(*b"sixteen bytes ok"))
        .create()?;
    let source = || ImportSource::Id(inbox.id());

    // Without the key, and with more rights than there are.
    let refused = process.import(source()).rights(Rights::WRITE).open();
    assert_eq!(refused.err(), Some(ImportError::NotAllowed));
    let refused = process.import(source()).key(*b"sixteen bytes ok").open();
    assert_eq!(refused.err(), Some(ImportError::Rights));

    // A mapping cannot be for writing only: the service's engine writes for us.
    let writer = process.import(source()).rights(Rights::WRITE).key(*b"sixteen bytes ok").open()?;
    assert_eq!(writer.path(), Path::Engine);
    writer.send(0, b"written by the engine")?;
    let mut text = [0; 21];
    inbox.read(0, &mut text)?;
    println!("{}", String::from_utf8_lossy(&text));
    assert_eq!(writer.fetch(0, &mut text), Err(TransferError::Rights));

    // Many small ones are in the command queue together.
    let posted: Vec<_> = (0..100).map(|slot| writer.send_async(slot * 8, [7; 8])).collect();
    for transfer in posted {
        transfer.wait().result?;
    }

    inbox.unexport()?;
    assert_eq!(writer.send(0, b"late"), Err(TransferError::Revoked));
    println!("and nothing after it was taken back");
    Ok(())
}
