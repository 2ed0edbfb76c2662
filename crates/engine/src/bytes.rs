//! Little-endian values in byte buffers, read with bounds checks.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

/// A message does not hold what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// It ends too early.
    #[error("the message is cut short")]
    Short,
    /// It goes on after its end.
    #[error("the message has bytes left over")]
    Long,
    /// A tag that nothing has.
    #[error("unknown {what} {tag}")]
    Unknown {
        /// What the tag was to tell.
        what: &'static str,
        /// The tag.
        tag: u8,
    },
    /// A value that cannot be.
    #[error("bad {0}")]
    Bad(&'static str),
}

/// Reads values one after the other.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads a size that was written as 64 bits.
    pub(crate) fn size(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(self.u64()?).map_err(|_| DecodeError::Bad("size"))
    }

    pub(crate) fn f32(&mut self) -> Result<f32, DecodeError> {
        self.array().map(f32::from_le_bytes)
    }

    pub(crate) fn f64(&mut self) -> Result<f64, DecodeError> {
        self.array().map(f64::from_le_bytes)
    }

    pub(crate) fn text(&mut self) -> Result<String, DecodeError> {
        let len = self.u32()? as usize;
        let bytes = self.take(len)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Bad("text"))
    }

    /// Reads a list whose items take at least `item_bytes` each, which bounds what a forged length can allocate.
    pub(crate) fn list<T>(
        &mut self,
        item_bytes: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let len = self.u32()? as usize;
        if len > self.0.len() / item_bytes.max(1) {
            return Err(DecodeError::Short);
        }
        (0..len).map(|_| item(self)).collect()
    }

    pub(crate) fn tokens(&mut self) -> Result<Vec<u32>, DecodeError> {
        self.list(4, Self::u32)
    }

    pub(crate) fn option<T>(
        &mut self,
        value: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        match self.u8()? {
            0 => Ok(None),
            1 => value(self).map(Some),
            tag => Err(DecodeError::Unknown {
                what: "presence",
                tag,
            }),
        }
    }

    pub(crate) fn address(&mut self) -> Result<SocketAddr, DecodeError> {
        let ip = match self.u8()? {
            4 => IpAddr::from(self.array::<4>()?),
            6 => IpAddr::from(self.array::<16>()?),
            tag => {
                return Err(DecodeError::Unknown {
                    what: "address family",
                    tag,
                });
            }
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    /// Ends the message.
    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Long)
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(head)
    }
}

/// Appends values to a buffer as [`Reader`] reads them.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    fn put_size(&mut self, value: usize) {
        self.put_u64(value as u64);
    }

    fn put_f32(&mut self, value: f32) {
        self.put(&value.to_le_bytes());
    }

    fn put_f64(&mut self, value: f64) {
        self.put(&value.to_le_bytes());
    }

    fn put_text(&mut self, value: &str) {
        self.put_len(value.len());
        self.put(value.as_bytes());
    }

    fn put_tokens(&mut self, tokens: &[u32]) {
        self.put_len(tokens.len());
        for &token in tokens {
            self.put_u32(token);
        }
    }

    fn put_len(&mut self, len: usize) {
        self.put_u32(u32::try_from(len).expect("messages hold less than 2^32 items"));
    }

    fn put_address(&mut self, address: &SocketAddr) {
        match address.ip() {
            IpAddr::V4(ip) => {
                self.put_u8(4);
                self.put(&ip.octets());
            }
            IpAddr::V6(ip) => {
                self.put_u8(6);
                self.put(&ip.octets());
            }
        }
        self.put_u16(address.port());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}
