//! The reader against GNU tar, and against archives that no tool would write.

use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::{Entry, EntryKind, Reader, Segment, TarError, Timestamp};

/// An entry and its data, holes filled.
type Whole = (Entry, Vec<u8>);

fn read_all(archive: &[u8]) -> Result<Vec<Whole>, TarError> {
    let mut reader = Reader::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut stored = Vec::new();
        loop {
            let data = reader.data()?.to_vec();
            if data.is_empty() {
                break;
            }
            reader.consume(data.len());
            stored.extend(data);
        }
        let mut data = stored.clone();
        if let Some(segments) = &entry.segments {
            data = vec![0; usize::try_from(entry.size).expect("a small file")];
            let mut rest = stored.as_slice();
            for &Segment { offset, length } in segments {
                let (offset, length) = (to_usize(offset), to_usize(length));
                data[offset..offset + length].copy_from_slice(&rest[..length]);
                rest = &rest[length..];
            }
            assert!(rest.is_empty());
        }
        entries.push((entry, data));
    }
    Ok(entries)
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("64 bits")
}

/// A header with this name, type and size, and a right checksum; `edit` comes before that.
fn header(name: &str, kind: u8, size: u64, edit: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    edit(&mut block);
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.to_vec()
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(512), 0);
    data
}

/// A PAX header with these records before a file of this data.
fn with_pax(records: &[(&str, &[u8])], data: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        text.extend(
            format!("{length} {key}=")
                .bytes()
                .chain(value.iter().copied())
                .chain([b'\n']),
        );
    }
    let extended = header("pax", b'x', text.len() as u64, |_| {});
    let file = header("name", b'0', data.len() as u64, |_| {});
    [extended, padded(&text), file, padded(data), vec![0; 1024]].concat()
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("tar is installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// A directory with one of everything.
fn sample() -> TempDir {
    let directory = TempDir::new().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    fs::write(path("file"), b"hello").expect("a file");
    fs::write(path("empty"), b"").expect("a file");
    fs::write(path("block"), [7; 512]).expect("a file");
    fs::hard_link(path("file"), path("link")).expect("a link");
    std::os::unix::fs::symlink("file", path("symlink")).expect("a link");
    let long = path(&"d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&long).expect("directories");
    fs::write(long.join("f".repeat(200)), b"deep").expect("a file");
    std::os::unix::fs::symlink("t".repeat(300), path("far")).expect("a link");
    let odd = Path::new(std::ffi::OsStr::from_bytes(b"odd-\xff\xfe"));
    fs::write(directory.path().join(odd), b"odd").expect("a file");
    nix::unistd::mkfifo(
        &path("fifo"),
        nix::sys::stat::Mode::from_bits_truncate(0o600),
    )
    .expect("a pipe");
    directory
}

#[test]
fn every_format_of_gnu_tar_is_read_alike() {
    let directory = sample();
    let read = |format: &str| {
        let archive = run(Command::new("tar")
            .args([
                "--create",
                "--numeric-owner",
                "--sort=name",
                "--mtime=@1700000000",
            ])
            .arg(format!("--format={format}"))
            .arg("--directory")
            .arg(directory.path())
            .arg("."));
        read_all(&archive).expect(format)
    };
    let gnu = read("gnu");
    let pax = read("posix");
    assert_eq!(gnu, pax);
    assert_eq!(gnu.len(), 12);
    let find = |name: &str| {
        let found = gnu
            .iter()
            .find(|(entry, _)| entry.path.ends_with(name.as_bytes()));
        found.expect(name).clone()
    };
    assert_eq!(find("./block").1, [7; 512]);
    assert_eq!(find("./link").0.kind, EntryKind::HardLink);
    assert_eq!(find("./link").0.link, b"./file");
    assert_eq!(find("./far").0.link, "t".repeat(300).into_bytes());
    assert_eq!(find(&"f".repeat(200)).1, b"deep");
    assert_eq!(find("./fifo").0.kind, EntryKind::Fifo);
    assert_eq!(find("./fifo").0.mode, 0o600 & !umask());
    assert_eq!(
        find("./file").0.mtime,
        Timestamp {
            seconds: 1_700_000_000,
            nanoseconds: 0
        }
    );
}

fn umask() -> u16 {
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    nix::sys::stat::umask(mask);
    u16::try_from(mask.bits()).expect("nine bits")
}

#[test]
fn sparse_files_keep_their_holes_in_every_format() {
    let directory = TempDir::new().expect("a directory");
    let mut file = File::create(directory.path().join("sparse")).expect("a file");
    // More segments than a header of the old format holds, or an extension block.
    for number in 0..40 {
        file.seek(SeekFrom::Start(number * 131_072))
            .expect("a hole");
        file.write_all(&[u8::try_from(number).expect("small") + 1; 4096])
            .expect("data");
    }
    file.set_len(41 * 131_072 + 5).expect("a hole at the end");
    let expected = fs::read(directory.path().join("sparse")).expect("a file");
    for arguments in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let archive = run(Command::new("tar")
            .args(["--create", "--sparse", "--hole-detection=seek"])
            .args(arguments)
            .arg("--directory")
            .arg(directory.path())
            .arg("sparse"));
        let entries = read_all(&archive).expect("an archive");
        let (entry, data) = &entries[0];
        assert_eq!(entry.path, b"sparse", "{arguments:?}");
        assert!(
            entry.segments.as_ref().expect("holes").len() >= 40,
            "{arguments:?}"
        );
        assert!(*data == expected, "{arguments:?}");
        assert!(archive.len() < expected.len() / 2, "the test has no holes");
    }
}

#[test]
fn pax_records_override_the_header() {
    let archive = with_pax(
        &[
            ("path", b"a/longer/name"),
            ("uid", b"3000000000"),
            ("gid", b"70000"),
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.user.b", b"\x00\n=\xff"),
            ("SCHILY.xattr.user.a", b""),
            ("comment", b"nothing"),
        ],
        b"data",
    );
    let entries = read_all(&archive).expect("an archive");
    let (entry, data) = &entries[0];
    assert_eq!(entry.path, b"a/longer/name");
    assert_eq!((entry.uid, entry.gid), (3_000_000_000, 70_000));
    assert_eq!(
        entry.mtime,
        Timestamp {
            seconds: -2,
            nanoseconds: 750_000_000
        }
    );
    let xattrs = [
        (b"user.a".to_vec(), Vec::new()),
        (b"user.b".to_vec(), b"\x00\n=\xff".to_vec()),
    ];
    assert_eq!(entry.xattrs, xattrs);
    assert_eq!(data, b"data");
}

#[test]
fn numbers_beyond_octal_are_base_256() {
    let far = header("far", b'0', 0, |block| {
        block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0, 0x2d, 0xc6, 0xc0]);
        block[136..148].copy_from_slice(&[0xff; 12]);
    });
    let entries = read_all(&far).expect("an archive");
    assert_eq!(entries[0].0.uid, 3_000_000);
    assert_eq!(entries[0].0.mtime.seconds, -1);
}

#[test]
fn an_archive_may_end_without_its_end() {
    assert!(read_all(b"").expect("nothing").is_empty());
    let file = [header("f", b'0', 3, |_| {}), padded(b"abc")].concat();
    assert_eq!(read_all(&file).expect("one file").len(), 1);
    // What follows the end is not looked at.
    let ended = [file, vec![0; 1024], vec![b'x'; 700]].concat();
    assert_eq!(read_all(&ended).expect("one file").len(), 1);
}

#[test]
fn links_and_directories_have_no_data_whatever_they_claim() {
    let archive = [
        header("dir/", b'5', 4096, |_| {}),
        header("link", b'1', 4096, |block| {
            block[157..161].copy_from_slice(b"file")
        }),
        header("file", b'0', 3, |_| {}),
        padded(b"abc"),
    ]
    .concat();
    let entries = read_all(&archive).expect("an archive");
    assert_eq!(entries.len(), 3);
    assert_eq!((entries[0].0.size, entries[1].0.size), (0, 0));
}

#[test]
fn malformed_archives_are_refused() {
    let good = header("f", b'0', 3, |_| {});
    let mut flipped = good.clone();
    flipped[0] = b'g';
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a wrong checksum", flipped),
        ("a cut header", good[..300].to_vec()),
        ("cut data", [good.clone(), b"ab".to_vec()].concat()),
        (
            "cut padding",
            [good, b"abc\0".to_vec(), header("g", b'0', 0, |_| {})].concat(),
        ),
        (
            "10 TB that are not there",
            header("f", b'0', 0, |block| {
                block[124..136]
                    .copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 9, 0x18, 0x4e, 0x72, 0xa0, 0]);
            }),
        ),
        (
            "a negative size",
            header("f", b'0', 0, |block| block[124..136].fill(0xff)),
        ),
        (
            "a size that overflows",
            header("f", b'0', 0, |block| {
                block[124..136].fill(0x7f);
                block[124] = 0x80;
            }),
        ),
        (
            "a size that is no number",
            header("f", b'0', 0, |block| block[124] = b'x'),
        ),
        ("an unknown type", header("f", b'V', 0, |_| {})),
        ("a huge extended header", header("f", b'x', 1 << 30, |_| {})),
        ("a huge long name", header("f", b'L', 1 << 30, |_| {})),
        (
            "a record without a value",
            [header("p", b'x', 6, |_| {}), padded(b"6 abc\n")].concat(),
        ),
        (
            "a record that is too long",
            [header("p", b'x', 9, |_| {}), padded(b"99 a=b\n\n\n")].concat(),
        ),
        (
            "a record of no length",
            [header("p", b'x', 6, |_| {}), padded(b"0 a=b\n")].concat(),
        ),
        ("a name with a NUL", with_pax(&[("path", b"a\0b")], b"")),
        (
            "an owner out of range",
            with_pax(&[("uid", b"4294967296")], b""),
        ),
        ("a time that is none", with_pax(&[("mtime", b"now")], b"")),
        ("a negative decimal", with_pax(&[("size", b"-1")], b"")),
    ];
    for (name, archive) in cases {
        assert!(read_all(&archive).is_err(), "{name}");
    }
}

#[test]
fn sparse_maps_that_make_no_sense_are_refused() {
    for map in [
        "0,4,2,4",
        "8,4,0,4",
        "0,100",
        "0,4",
        "0,4,4",
        "0,4,18446744073709551615,4",
        "x",
        "",
    ] {
        let archive = with_pax(
            &[
                ("GNU.sparse.size", b"50"),
                ("GNU.sparse.map", map.as_bytes()),
            ],
            b"12345678",
        );
        assert!(read_all(&archive).is_err(), "{map}");
    }
    let endless = with_pax(
        &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"100"),
        ],
        b"9999999\n1\n2\n",
    );
    assert!(read_all(&endless).is_err());
}

#[test]
fn a_sparse_file_of_ten_terabytes_costs_nothing_to_read() {
    let archive = with_pax(
        &[
            ("GNU.sparse.size", b"10995116277760"),
            ("GNU.sparse.map", b"10995116277752,8"),
        ],
        b"12345678",
    );
    let mut reader = Reader::new(archive.as_slice());
    let entry = reader.next_entry().expect("an entry").expect("an entry");
    assert_eq!(entry.size, 10 << 40);
    assert!(reader.next_entry().expect("the end").is_none());
}

proptest! {
    #[test]
    fn any_bytes_are_read_to_an_end_without_panic(
        noise in proptest::collection::vec(any::<u8>(), 0..4096),
        flips in proptest::collection::vec((0..10_000_usize, any::<u8>()), 0..8),
    ) {
        // Noise after a good entry, and a good archive with bytes flipped, checksums repaired.
        let _ = read_all(&noise);
        let mut archive = with_pax(
            &[("path", b"p"), ("GNU.sparse.map", b"0,4"), ("GNU.sparse.size", b"9")],
            b"data",
        );
        for (at, value) in flips {
            let at = at % archive.len();
            archive[at] = value;
        }
        for block in archive.chunks_exact_mut(512) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let _ = read_all(&archive);
    }

    #[test]
    fn the_input_s_pieces_do_not_matter(size in 1..700_usize) {
        let archive = with_pax(&[("path", b"some/name"), ("uid", b"5")], &[9; 1500]);
        let whole = read_all(&archive).expect("an archive");
        let mut reader = Reader::new(BufReader::with_capacity(size, archive.as_slice()));
        let entry = reader.next_entry().expect("an entry").expect("an entry");
        prop_assert_eq!(&entry, &whole[0].0);
        let mut length = 0;
        loop {
            let data = reader.data().expect("data").len();
            if data == 0 {
                break;
            }
            reader.consume(data);
            length += data;
        }
        prop_assert_eq!(length, 1500);
        prop_assert!(reader.next_entry().expect("the end").is_none());
        let mut rest = Vec::new();
        reader.into_inner().read_to_end(&mut rest).expect("what follows");
        prop_assert!(rest.is_empty());
    }
}
