//! Packet protection: AES-128-GCM with keys that rotate, or a checksum where encryption was switched off.
//!
//! The header is authenticated with the payload. The nonce is made of the path and the packet number, which together never come
//! twice under one key. Keys are derived from the secrets of the link with HKDF-SHA-256; a rotation derives the next
//! secret from the present one, so whoever learns a key later cannot read what was sent earlier.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;

use crate::checksum::checksum;
use crate::wire::{HEADER_LEN, Header};

/// How the packets of a link are protected.
#[derive(Debug, Clone)]
pub enum Keys {
    /// Encrypted and authenticated: one secret for each direction, the peer's the other way round.
    Encrypted {
        /// Protects what this side sends.
        send: Secret,
        /// Protects what the peer sends.
        receive: Secret,
    },
    /// For a trusted network only: a checksum finds damage, and nothing finds a forgery. Both sides must have chosen it.
    Plaintext,
}

/// 32 random bytes that both ends of a direction know and nobody else, fresh for every link and incarnation.
#[derive(Clone)]
pub struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The cryptographic library refused a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, displaydoc::Display, thiserror::Error)]
pub enum KeyError {
    /// no packet key could be derived from the secret; the cryptographic library is not usable on this machine
    Derive,
}

/// Why a packet was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// Damaged, forged, or protected with a key that is not held.
    Forged,
    /// Encrypted where plaintext was agreed, or the other way round.
    WrongMode,
}

/// Protects packets that go out.
#[derive(Debug)]
pub(crate) enum Sealer {
    Encrypted { key: DirectionKey, phase: u8 },
    Plaintext,
}

/// Checks packets that come in.
#[derive(Debug)]
pub(crate) enum Opener {
    Encrypted { keys: Box<HeldKeys> },
    Plaintext,
}

/// The receiver's keys: a rotation is seen by the phase of a packet and believed once the packet opens.
#[derive(Debug)]
pub(crate) struct HeldKeys {
    previous: Option<DirectionKey>,
    current: DirectionKey,
    next: DirectionKey,
    phase: u8,
}

/// What protects one direction during one phase.
pub(crate) struct DirectionKey {
    secret: [u8; 32],
    key: LessSafeKey,
    iv: [u8; 12],
}

impl std::fmt::Debug for DirectionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DirectionKey(..)")
    }
}

pub(crate) fn protection(keys: &Keys) -> Result<(Sealer, Opener), KeyError> {
    let Keys::Encrypted { send, receive } = keys else {
        return Ok((Sealer::Plaintext, Opener::Plaintext));
    };
    let current = DirectionKey::new(receive.0)?;
    let held = HeldKeys { next: current.next()?, current, previous: None, phase: 0 };
    let sealer = Sealer::Encrypted { key: DirectionKey::new(send.0)?, phase: 0 };
    Ok((sealer, Opener::Encrypted { keys: Box::new(held) }))
}

impl Sealer {
    /// Bytes behind the payload.
    pub(crate) fn tag_len(&self) -> usize {
        match self {
            Sealer::Encrypted { .. } => 16,
            Sealer::Plaintext => 8,
        }
    }

    pub(crate) fn is_plaintext(&self) -> bool {
        matches!(self, Sealer::Plaintext)
    }

    pub(crate) fn phase(&self) -> u8 {
        match self {
            Sealer::Encrypted { phase, .. } => *phase,
            Sealer::Plaintext => 0,
        }
    }

    /// Goes on to the next key. The caller knows that the peer has opened a packet of the present phase.
    pub(crate) fn rotate(&mut self) -> Result<(), KeyError> {
        if let Sealer::Encrypted { key, phase } = self {
            *key = key.next()?;
            *phase = (*phase + 1) % 4;
        }
        Ok(())
    }

    /// Protects a packet in place: header, payload, and room for the tag. `false` if it could not be done.
    #[must_use]
    pub(crate) fn seal(&self, header: &Header, packet: &mut [u8]) -> bool {
        let Some((body, tag_room)) = packet
            .len()
            .checked_sub(self.tag_len())
            .and_then(|len| packet.split_at_mut_checked(len))
        else {
            return false;
        };
        let Some((head, payload)) = body.split_at_mut_checked(HEADER_LEN) else { return false };
        match self {
            Sealer::Encrypted { key, .. } => {
                let aad = Aad::from(&*head);
                match key.key.seal_in_place_separate_tag(key.nonce(header), aad, payload) {
                    Ok(tag) => tag_room.copy_from_slice(tag.as_ref()),
                    Err(_) => return false,
                }
            }
            Sealer::Plaintext => tag_room.copy_from_slice(&checksum(body).to_le_bytes()),
        }
        true
    }
}

impl Opener {
    /// Checks a packet and decrypts its payload in place. A packet of the next phase makes that phase the present one.
    pub(crate) fn open<'a>(
        &mut self,
        header: &Header,
        packet: &'a mut [u8],
    ) -> Result<&'a [u8], OpenError> {
        if header.plaintext != matches!(self, Opener::Plaintext) {
            return Err(OpenError::WrongMode);
        }
        match self {
            Opener::Plaintext => {
                let (body, tag) = packet.split_last_chunk().ok_or(OpenError::Forged)?;
                match body.get(HEADER_LEN..) {
                    Some(payload) if checksum(body) == u64::from_le_bytes(*tag) => Ok(payload),
                    _ => Err(OpenError::Forged),
                }
            }
            Opener::Encrypted { keys } => {
                let turn = header.key_phase.wrapping_sub(keys.phase) % 4;
                let key = match turn {
                    0 => &keys.current,
                    1 => &keys.next,
                    3 => keys.previous.as_ref().ok_or(OpenError::Forged)?,
                    _ => return Err(OpenError::Forged),
                };
                let (head, sealed) =
                    packet.split_at_mut_checked(HEADER_LEN).ok_or(OpenError::Forged)?;
                let payload = key
                    .key
                    .open_in_place(key.nonce(header), Aad::from(&*head), sealed)
                    .map_err(|_| OpenError::Forged)?;
                if turn == 1 {
                    keys.advance();
                }
                Ok(payload)
            }
        }
    }
}

impl HeldKeys {
    fn advance(&mut self) {
        // If the key behind the next cannot be derived, the next rotation is refused; until then nothing is missing.
        let Ok(after) = self.next.next() else { return };
        let current = std::mem::replace(&mut self.next, after);
        self.previous = Some(std::mem::replace(&mut self.current, current));
        self.phase = (self.phase + 1) % 4;
    }
}

impl DirectionKey {
    fn new(secret: [u8; 32]) -> Result<DirectionKey, KeyError> {
        let bytes: [u8; 16] = expand(&secret, b"vmmc key")?;
        let iv = expand(&secret, b"vmmc iv")?;
        let key = UnboundKey::new(&AES_128_GCM, &bytes).map_err(|_| KeyError::Derive)?;
        Ok(DirectionKey { secret, key: LessSafeKey::new(key), iv })
    }

    fn next(&self) -> Result<DirectionKey, KeyError> {
        DirectionKey::new(expand(&self.secret, b"vmmc next")?)
    }

    /// `iv` xor (three zero bytes, path, packet number).
    fn nonce(&self, header: &Header) -> Nonce {
        let mut nonce = self.iv;
        nonce[3] ^= header.path;
        for (byte, number) in nonce[4..].iter_mut().zip(header.number.to_le_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

fn expand<const N: usize>(secret: &[u8; 32], label: &[u8]) -> Result<[u8; N], KeyError> {
    struct Len(usize);
    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut out = [0; N];
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret)
        .expand(&[label], Len(N))
        .and_then(|okm| okm.fill(&mut out))
        .map_err(|_| KeyError::Derive)?;
    Ok(out)
}
