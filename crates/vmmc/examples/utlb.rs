//! Programs like those of the paper's tables 3 and 4, in small: each computes something real, and looks up in the translation table
//! what it would exchange with other processes.
//!
//! ```text
//! vmmc utlb record -o fft.utlb -- target/release/examples/utlb fft
//! vmmc utlb replay fft.utlb --limit 3M --policy lru
//! ```

use std::error::Error;

use vmmc::Process;
use vmmc::utlb::{Access, Buffer, Located, LookupError, Utlb};

fn main() -> Result<(), Box<dyn Error>> {
    let process = Process::open()?;
    let utlb = process.utlb();
    let answer = match std::env::args().nth(1).as_deref() {
        Some("fft") => fft(utlb)?,
        Some("lu") => lu(utlb)?,
        Some("radix") => radix(utlb)?,
        _ => return Err("say which: fft, lu or radix".into()),
    };
    let counters = utlb.counters();
    println!("{answer}");
    println!(
        "lookups {} hits {} pins {} unpins {} NI misses {}",
        counters.lookups,
        counters.hits(),
        counters.pins,
        counters.unpins,
        counters.ni_misses
    );
    Ok(())
}

/// Memory of words that the program exchanges.
struct Words<'u> {
    utlb: &'u Utlb,
    buffer: Buffer,
}

impl<'u> Words<'u> {
    fn new(utlb: &'u Utlb, count: usize) -> Result<Self, Box<dyn Error>> {
        Ok(Self { utlb, buffer: utlb.allocate(count * 8)? })
    }

    fn all(&mut self) -> &mut [[u8; 8]] {
        self.buffer.bytes().as_chunks_mut().0
    }

    fn at(&mut self, index: usize) -> f64 {
        f64::from_ne_bytes(self.all()[index])
    }

    fn put(&mut self, index: usize, value: f64) {
        self.all()[index] = value.to_ne_bytes();
    }

    /// What a transfer of these words would look up.
    fn transfer(&self, first: usize, count: usize, access: Access) -> Result<(), LookupError> {
        let mut at = self.buffer.as_ptr().wrapping_add(first * 8).cast_const();
        let mut left = count * 8;
        while left > 0 {
            let done = match self.utlb.lookup(at, left, access)? {
                Located::Pinned(hold) => hold.len(),
                Located::Bounce(bounce) => bounce.len(),
            };
            (at, left) = (at.wrapping_add(done), left - done);
        }
        Ok(())
    }
}

/// The transposes of a six-step FFT of 2^18 complex points as a 512 x 512 matrix, in blocks of 8 x 8: rows are written in one
/// matrix, columns read in the other.
fn fft(utlb: &Utlb) -> Result<String, Box<dyn Error>> {
    const SIDE: usize = 512;
    const BLOCK: usize = 8;
    let mut from = Words::new(utlb, SIDE * SIDE)?;
    let mut to = Words::new(utlb, SIDE * SIDE)?;
    (0..SIDE * SIDE).for_each(|index| from.put(index, index as f64));
    for _ in 0..3 {
        for row in (0..SIDE).step_by(BLOCK) {
            for column in (0..SIDE).step_by(BLOCK) {
                for line in 0..BLOCK {
                    from.transfer((row + line) * SIDE + column, BLOCK, Access::Read)?;
                    for word in 0..BLOCK {
                        let value = from.at((row + line) * SIDE + column + word);
                        to.put((column + word) * SIDE + row + line, value);
                    }
                }
                for line in 0..BLOCK {
                    to.transfer((column + line) * SIDE + row, BLOCK, Access::Write)?;
                }
            }
        }
        std::mem::swap(&mut from, &mut to);
    }
    let transposed =
        (0..SIDE * SIDE).all(|index| from.at(index) as usize == index % SIDE * SIDE + index / SIDE);
    Ok(format!("transposed: {transposed}"))
}

/// LU factorisation of a matrix of 512 x 512 in blocks of 32 x 32, each block in a row of its own: a step fetches the pivot block
/// and those of its row and column.
fn lu(utlb: &Utlb) -> Result<String, Box<dyn Error>> {
    const SIDE: usize = 512;
    const BLOCK: usize = 32;
    const BLOCKS: usize = SIDE / BLOCK;
    let place = |row: usize, column: usize| {
        let block = row / BLOCK * BLOCKS + column / BLOCK;
        block * BLOCK * BLOCK + row % BLOCK * BLOCK + column % BLOCK
    };
    let value = |row: usize, column: usize| {
        if row == column { SIDE as f64 } else { 1.0 / (1 + row.abs_diff(column)) as f64 }
    };
    let mut matrix = Words::new(utlb, SIDE * SIDE)?;
    for row in 0..SIDE {
        (0..SIDE).for_each(|column| matrix.put(place(row, column), value(row, column)));
    }
    for pivot in 0..SIDE {
        let block = pivot / BLOCK * BLOCK;
        matrix.transfer(place(block, block), BLOCK * BLOCK, Access::Read)?;
        for row in pivot + 1..SIDE {
            if row % BLOCK == 0 || row == pivot + 1 {
                let start = row / BLOCK * BLOCK;
                matrix.transfer(place(start, block), BLOCK * BLOCK, Access::Write)?;
                matrix.transfer(place(block, start), BLOCK * BLOCK, Access::Read)?;
            }
            let factor = matrix.at(place(row, pivot)) / matrix.at(place(pivot, pivot));
            matrix.put(place(row, pivot), factor);
            for column in pivot + 1..SIDE {
                let value =
                    matrix.at(place(row, column)) - factor * matrix.at(place(pivot, column));
                matrix.put(place(row, column), value);
            }
        }
    }
    // The last line of L times U gives the last line of the matrix again.
    let last = SIDE - 1;
    let product: f64 = (0..SIDE)
        .map(
            |k| if k == last { 1.0 } else { matrix.at(place(last, k)) } * matrix.at(place(k, last)),
        )
        .sum();
    Ok(format!("residual: {:.1e}", (product - value(last, last)).abs()))
}

/// Radix sort of 2^18 keys, 8 bits a pass: each run of keys that goes to one bucket is written where the bucket stands in the other
/// array.
fn radix(utlb: &Utlb) -> Result<String, Box<dyn Error>> {
    const KEYS: usize = 1 << 18;
    let mut from = Words::new(utlb, KEYS)?;
    let mut to = Words::new(utlb, KEYS)?;
    let mut random = 88_172_645_463_325_252u64;
    for key in from.all() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        *key = (random & 0xffff_ffff).to_ne_bytes();
    }
    for shift in [0, 8, 16, 24] {
        let digit = |key: [u8; 8]| (u64::from_ne_bytes(key) >> shift & 255) as usize;
        let mut starts = [0usize; 257];
        from.all().iter().for_each(|key| starts[digit(*key) + 1] += 1);
        (0..256).for_each(|at| starts[at + 1] += starts[at]);
        for index in 0..KEYS {
            if index % 512 == 0 {
                from.transfer(index, 512, Access::Read)?;
            }
            let key = from.all()[index];
            let place = &mut starts[digit(key)];
            to.transfer(*place, 1, Access::Write)?;
            to.all()[*place] = key;
            *place += 1;
        }
        std::mem::swap(&mut from, &mut to);
    }
    let sorted = from.all().is_sorted_by_key(|key| u64::from_ne_bytes(*key));
    Ok(format!("sorted: {sorted}"))
}
