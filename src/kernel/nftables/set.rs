//! Sets and maps: how they are declared, and whether one that was read is the one we would declare.

use super::FLAG_CONCAT;

const FLAG_INTERVAL: u32 = 0x4;
const FLAG_MAP: u32 = 0x8;
const FLAG_TIMEOUT: u32 = 0x10;
const FLAG_EVAL: u32 = 0x20;
const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;
const UDATA_SET_KEY_BYTE_ORDER: u8 = 0;
const UDATA_SET_DATA_BYTE_ORDER: u8 = 1;
const UDATA_SET_COMMENT: u8 = 7;

/// A part of a set's key or data, by nft's data type (`enum datatypes` of nft, part of its stored format).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Field {
    /// `ipv4_addr`.
    Ipv4Addr = 7,
    /// `ipv6_addr`.
    Ipv6Addr = 8,
    /// `inet_proto`.
    InetProto = 12,
    /// `inet_service`.
    InetService = 13,
    /// `mark`: a plain 32-bit number.
    Mark = 19,
    /// `classid`: what `meta priority` holds.
    ClassId = 23,
}

/// What the elements of a map lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// A verdict.
    Verdict,
    /// A value.
    Fields(&'static [Field]),
}

/// A named set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSpec {
    /// Its name.
    pub name: &'static str,
    /// What it is for; shown by `nft list`.
    pub comment: &'static str,
    /// The key, concatenated from these.
    pub key: &'static [Field],
    /// For a map, what it maps to.
    pub data: Option<Data>,
    /// Keys are ranges.
    pub interval: bool,
    /// Filled by packets, with timeouts; at most this many elements.
    pub dynamic: Option<u32>,
    /// Packets and bytes are counted for each element.
    pub counter: bool,
}

/// A set as read from the kernel: what tells whether it is the one we would declare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSet {
    /// Its name.
    pub name: String,
    /// `NFT_SET_*` flags.
    pub flags: u32,
    /// nft's key type number.
    pub key_type: u32,
    /// nft's data type number; 0 for sets.
    pub data_type: u32,
    /// Whether elements are counted.
    pub counter: bool,
}

const fn padded(length: usize) -> usize {
    (length + 3) & !3
}

// === impl Field ===

impl Field {
    /// Bytes without padding.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Ipv6Addr => 16,
            Self::InetProto => 1,
            Self::InetService => 2,
            Self::Ipv4Addr | Self::Mark | Self::ClassId => 4,
        }
    }

    /// The name nft prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
            Self::InetProto => "inet_proto",
            Self::InetService => "inet_service",
            Self::Mark => "mark",
            Self::ClassId => "classid",
        }
    }

    /// nft's number for the concatenation of some fields: six bits each.
    pub(super) fn concatenated(fields: &[Self]) -> u32 {
        fields.iter().fold(0, |all, &field| all << 6 | field as u32)
    }

    /// nft's `enum byteorder`: of this machine, of the network, or a concatenation that has none.
    fn byte_order(fields: &[Self]) -> u32 {
        match fields {
            [Self::Mark | Self::ClassId] => 1,
            [_] => 2,
            _ => 0,
        }
    }

    /// Bytes of the concatenation of some fields. A lone field is not padded.
    pub fn total(fields: &[Self]) -> usize {
        match fields {
            [only] => only.bytes(),
            several => several.iter().map(|field| padded(field.bytes())).sum(),
        }
    }
}

// === impl SetSpec ===

impl SetSpec {
    pub(super) fn flags(&self) -> u32 {
        let mut flags = 0;
        if self.data.is_some() {
            flags |= FLAG_MAP;
        }
        if self.interval {
            flags |= FLAG_INTERVAL;
            if self.key.len() > 1 {
                flags |= FLAG_CONCAT;
            }
        }
        if self.dynamic.is_some() {
            flags |= FLAG_TIMEOUT | FLAG_EVAL;
        }
        flags
    }

    pub(super) fn data_type(&self) -> u32 {
        match self.data {
            None => 0,
            Some(Data::Verdict) => DATA_TYPE_VERDICT,
            Some(Data::Fields(fields)) => Field::concatenated(fields),
        }
    }

    /// What nft needs to know to print the set: byte orders and the comment.
    pub(super) fn userdata(&self) -> Vec<u8> {
        let byte_order = |kind, fields: &[Field]| {
            let [a, b, c, d] = Field::byte_order(fields).to_ne_bytes();
            [kind, 4, a, b, c, d]
        };
        let mut userdata = byte_order(UDATA_SET_KEY_BYTE_ORDER, self.key).to_vec();
        if let Some(Data::Fields(fields)) = self.data {
            userdata.extend(byte_order(UDATA_SET_DATA_BYTE_ORDER, fields));
        }
        userdata.extend(comment_data(UDATA_SET_COMMENT, self.comment));
        userdata
    }

    /// Whether a set that was read from the kernel is this one.
    pub fn is(&self, read: &ReadSet) -> bool {
        read.name == self.name
            && read.flags == self.flags()
            && read.key_type == Field::concatenated(self.key)
            && read.data_type == self.data_type()
            && read.counter == self.counter
    }

    /// Whether ranges are stored as a first key and a first key beyond.
    pub fn has_interval_ends(&self) -> bool {
        self.interval && self.key.len() == 1
    }
}

/// A comment as nft keeps it.
pub(super) fn comment_data(kind: u8, comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).expect("comments are short constants");
    [&[kind, length], comment.as_bytes(), &[0]].concat()
}
