//! Just enough of ELF to tell a static program, and to read a field.

/// The little-endian number of `length` bytes at `at`.
pub(crate) fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    let add = |value, byte: &u8| (value << 8) | u64::from(*byte);
    Some(bytes.iter().rev().fold(0, add))
}

/// Whether the bytes are a 64-bit ELF program without an interpreter (`PT_INTERP`).
pub(crate) fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let has_interpreter = || -> Option<bool> {
        let table = usize::try_from(number(elf, 32, 8)?).ok()?;
        let size = usize::try_from(number(elf, 54, 2)?).ok()?;
        let count = usize::try_from(number(elf, 56, 2)?).ok()?;
        for index in 0..count {
            let header = table.checked_add(index.checked_mul(size)?)?;
            if number(elf, header, 4)? == PT_INTERP {
                return Some(true);
            }
        }
        Some(false)
    };
    elf.starts_with(b"\x7fELF\x02\x01") && has_interpreter() == Some(false)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A program with segments of these types.
    pub(crate) fn elf(segment_types: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = u8::try_from(segment_types.len()).unwrap();
        for segment in segment_types {
            let mut header = [0; 56];
            header[..4].copy_from_slice(&segment.to_le_bytes());
            bytes.extend_from_slice(&header);
        }
        bytes
    }

    #[test]
    fn a_program_that_names_an_interpreter_is_not_static() {
        assert!(is_static(&elf(&[1, 1])));
        assert!(!is_static(&elf(&[1, 3])));
        assert!(!is_static(&elf(&[1, 1])[..100]));
        assert!(!is_static(b"#!/bin/sh"));
    }
}
