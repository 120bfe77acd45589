//! Packets to messages and back.

use serde::{Deserialize, Serialize};

use crate::{Answer, MAX_MESSAGE, Request};

/// Why a packet is not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum DecodeError {
    /// packet longer than any message: the peer speaks another protocol
    TooLong,
    /// packet is not a message of this version: the peer is broken or of another version
    Malformed,
    /// bytes are left after the message: the peer is broken or of another version
    Trailing,
}

/// Why a message is not a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum EncodeError {
    /// message is longer than a packet may be: shorten names or send the bytes in pieces
    TooLong,
}

/// Encodes a request.
///
/// # Errors
/// When it is longer than [`MAX_MESSAGE`].
pub fn encode_request(request: &Request) -> Result<Vec<u8>, EncodeError> {
    encode(request)
}

/// Encodes a request without taking memory, into `room`.
///
/// # Errors
/// When there is not enough of it.
pub fn encode_request_into<'a>(
    request: &Request,
    room: &'a mut [u8],
) -> Result<&'a [u8], EncodeError> {
    postcard::to_slice(request, room).map(|packet| &*packet).map_err(|_| EncodeError::TooLong)
}

/// Decodes a request.
///
/// # Errors
/// When the packet is anything but one whole request. Never panics, never allocates more than the packet's length
/// asks for.
pub fn decode_request(packet: &[u8]) -> Result<Request, DecodeError> {
    decode(packet)
}

/// Encodes an answer.
///
/// # Errors
/// When it is longer than [`MAX_MESSAGE`].
pub fn encode_answer(answer: &Answer) -> Result<Vec<u8>, EncodeError> {
    encode(answer)
}

/// Decodes an answer.
///
/// # Errors
/// When the packet is anything but one whole answer. Never panics.
pub fn decode_answer(packet: &[u8]) -> Result<Answer, DecodeError> {
    decode(packet)
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, EncodeError> {
    let packet = postcard::to_allocvec(message).map_err(|_| EncodeError::TooLong)?;
    if packet.len() > MAX_MESSAGE { Err(EncodeError::TooLong) } else { Ok(packet) }
}

fn decode<'a, T: Deserialize<'a>>(packet: &'a [u8]) -> Result<T, DecodeError> {
    if packet.len() > MAX_MESSAGE {
        return Err(DecodeError::TooLong);
    }
    let (message, rest) = postcard::take_from_bytes(packet).map_err(|_| DecodeError::Malformed)?;
    if rest.is_empty() { Ok(message) } else { Err(DecodeError::Trailing) }
}
