//! Which devices a container may use.
//!
//! cgroup v2 has no device controller: a small program, attached to the group, is asked about every
//! open and mknod (kernel documentation, cgroup-v2, "Device controller"). libcontainer leaves the
//! spec's rules out when it is built without a C library for it, so they are made into a program
//! here. As in runc the last rule that matches decides, everything is denied before the first, and
//! the standard devices are allowed after the last.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// Most rules of a spec.
const RULES_MAX: usize = 1024;

/// How often a program is loaded that signals keep from being loaded.
const LOAD_ATTEMPTS: u32 = 100;

/// `bpf_cgroup_dev_ctx` (linux/bpf.h): what the program is asked.
const CTX_ACCESS_AND_TYPE: i16 = 0;
const CTX_MAJOR: i16 = 4;
const CTX_MINOR: i16 = 8;
const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const ACCESS_ALL: i32 = ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE;

/// Why the rules do not hold.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DevicesError {
    /// A rule that no device can match.
    #[error("device rule: {0}")]
    Rule(&'static str),
    /// The kernel refuses the program.
    #[error("{what} the device rules")]
    Bpf {
        /// Loading or attaching.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A rule as the program checks it. None matches anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    access: i32,
    major: Option<i32>,
    minor: Option<i32>,
}

impl Rule {
    fn matches_all(&self) -> bool {
        self.access == ACCESS_ALL
            && self.kind.is_none()
            && self.major.is_none()
            && self.minor.is_none()
    }
}

/// Nodes may be made of anything, and those of a usual `/dev` be used.
fn standard_rules() -> impl Iterator<Item = Rule> {
    let rule = |kind, access, major, minor| Rule {
        allow: true,
        kind: Some(kind),
        access,
        major,
        minor,
    };
    let nodes = [TYPE_CHAR, TYPE_BLOCK].map(|kind| rule(kind, ACCESS_MKNOD, None, None));
    let usable = [
        // null, zero, full, random, urandom
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        // tty, console, ptmx, and the pseudo-terminals
        (5, Some(0)),
        (5, Some(1)),
        (5, Some(2)),
        (136, None),
    ];
    let usable = usable.map(|(major, minor)| rule(TYPE_CHAR, ACCESS_ALL, Some(major), minor));
    nodes.into_iter().chain(usable)
}

/// Has the group at `path` obey `rules`, and those below it.
///
/// # Errors
///
/// [`DevicesError`].
pub(crate) fn restrict(path: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), DevicesError> {
    if rules.len() > RULES_MAX {
        return Err(DevicesError::Rule("too many"));
    }
    let mut all = rules.iter().map(translate).collect::<Result<Vec<_>, _>>()?;
    all.extend(standard_rules());
    let program = load(&compile(&all)).map_err(|source| DevicesError::Bpf {
        what: "loading",
        source,
    })?;
    attach(path, &program).map_err(|source| DevicesError::Bpf {
        what: "attaching",
        source,
    })
}

fn translate(rule: &LinuxDeviceCgroup) -> Result<Rule, DevicesError> {
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(TYPE_BLOCK),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(TYPE_CHAR),
        LinuxDeviceType::P => return Err(DevicesError::Rule("a fifo is no device")),
    };
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or_default().chars() {
        access |= match letter {
            'r' => ACCESS_READ,
            'w' => ACCESS_WRITE,
            'm' => ACCESS_MKNOD,
            _ => return Err(DevicesError::Rule("access is made of r, w and m")),
        };
    }
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => i32::try_from(number)
            .ok()
            .filter(|number| *number >= 0)
            .map(Some)
            .ok_or(DevicesError::Rule("a device number is out of range")),
    };
    Ok(Rule {
        allow: rule.allow(),
        kind,
        // No access named means all, as in cgroup v1's "a".
        access: if access == 0 { ACCESS_ALL } else { access },
        major: number(rule.major())?,
        minor: number(rule.minor())?,
    })
}

/// One instruction (`struct bpf_insn`), in memory order: opcode, registers, offset, immediate.
type Instruction = [u8; 8];

/// Opcodes (kernel documentation, BPF instruction set).
mod op {
    pub(super) const LOAD_WORD: u8 = 0x61;
    pub(super) const AND: u8 = 0x54;
    pub(super) const SHIFT_RIGHT: u8 = 0x74;
    pub(super) const MOVE: u8 = 0xb4;
    pub(super) const MOVE_REGISTER: u8 = 0xbc;
    pub(super) const JUMP_IF_NOT: u8 = 0x56;
    pub(super) const JUMP_IF_NOT_REGISTER: u8 = 0x5e;
    pub(super) const EXIT: u8 = 0x95;
}

/// Registers: 0 is the answer, 1 the question and then free for use.
const ANSWER: u8 = 0;
const FREE: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn instruction(opcode: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    let (o, i) = (offset.to_le_bytes(), immediate.to_le_bytes());
    [opcode, (from << 4) | to, o[0], o[1], i[0], i[1], i[2], i[3]]
}

/// The last rule first; the first that matches answers.
fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(op::LOAD_WORD, TYPE, FREE, CTX_ACCESS_AND_TYPE, 0),
        instruction(op::MOVE_REGISTER, ACCESS, TYPE, 0, 0),
        instruction(op::AND, TYPE, 0, 0, 0xffff),
        instruction(op::SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(op::LOAD_WORD, MAJOR, FREE, CTX_MAJOR, 0),
        instruction(op::LOAD_WORD, MINOR, FREE, CTX_MINOR, 0),
    ];
    for rule in rules.iter().rev() {
        program.extend(compile_rule(rule));
        if rule.matches_all() {
            // The kernel refuses a program with instructions that are never reached.
            return program;
        }
    }
    program.push(instruction(op::MOVE, ANSWER, 0, 0, 0));
    program.push(instruction(op::EXIT, 0, 0, 0, 0));
    program
}

fn compile_rule(rule: &Rule) -> Vec<Instruction> {
    // Jumps of instructions at the beginning lead to the end, whose distance is known last.
    let mut checks: Vec<(bool, Instruction)> = Vec::new();
    if rule.access != ACCESS_ALL {
        // All that is asked for must be in the rule.
        checks.push((false, instruction(op::MOVE_REGISTER, FREE, ACCESS, 0, 0)));
        checks.push((false, instruction(op::AND, FREE, 0, 0, rule.access)));
        checks.push((
            true,
            instruction(op::JUMP_IF_NOT_REGISTER, FREE, ACCESS, 0, 0),
        ));
    }
    for (register, wanted) in [(TYPE, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(wanted) = wanted {
            checks.push((true, instruction(op::JUMP_IF_NOT, register, 0, 0, wanted)));
        }
    }
    let answer = [
        instruction(op::MOVE, ANSWER, 0, 0, i32::from(rule.allow)),
        instruction(op::EXIT, 0, 0, 0, 0),
    ];
    let length = checks.len() + answer.len();
    let resolved = checks
        .into_iter()
        .enumerate()
        .map(|(index, (jumps, mut check))| {
            if jumps {
                // A rule has at most 8 instructions.
                let distance = i16::try_from(length - index - 1)
                    .unwrap_or_default()
                    .to_le_bytes();
                check[2..4].copy_from_slice(&distance);
            }
            check
        });
    resolved.chain(answer).collect()
}

/// `BPF_PROG_LOAD` and its part of `union bpf_attr`.
const PROG_LOAD: libc::c_long = 5;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;

#[repr(C)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// `BPF_PROG_ATTACH` and its part of `union bpf_attr`.
const PROG_ATTACH: libc::c_long = 8;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

#[repr(C)]
struct AttachAttributes {
    target_fd: i32,
    attach_bpf_fd: i32,
    attach_type: u32,
    attach_flags: u32,
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let attributes = LoadAttributes {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    let mut attempt = 1;
    let fd = loop {
        match bpf(PROG_LOAD, &attributes) {
            // The kernel's verifier gives up for a signal, a child's end for example.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempt < LOAD_ATTEMPTS => {
                attempt += 1;
            }
            result => break result?,
        }
    };
    // SAFETY: BPF_PROG_LOAD has made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(path: &Path, program: &OwnedFd) -> io::Result<()> {
    let group = File::open(path)?;
    let attributes = AttachAttributes {
        target_fd: group.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    bpf(PROG_ATTACH, &attributes).map(drop)
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads as many bytes as it is told, and what the addresses among them point
    // to, which the callers keep alive; it writes nothing, since there is no log.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer: the few instructions that are used, interpreted.
    fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [(access << 16) | kind, major, minor];
        let mut registers = [0_i32; 6];
        let mut at = 0;
        loop {
            let code = program[at];
            let (to, from) = (usize::from(code[1] & 15), usize::from(code[1] >> 4));
            let offset = i16::from_le_bytes([code[2], code[3]]);
            let immediate = i32::from_le_bytes([code[4], code[5], code[6], code[7]]);
            let jump = usize::try_from(offset).unwrap();
            at += 1;
            match code[0] {
                op::LOAD_WORD => registers[to] = context[jump / 4],
                op::AND => registers[to] &= immediate,
                op::SHIFT_RIGHT => registers[to] >>= immediate,
                op::MOVE => registers[to] = immediate,
                op::MOVE_REGISTER => registers[to] = registers[from],
                op::JUMP_IF_NOT if registers[to] != immediate => at += jump,
                op::JUMP_IF_NOT_REGISTER if registers[to] != registers[from] => at += jump,
                op::JUMP_IF_NOT | op::JUMP_IF_NOT_REGISTER => {}
                op::EXIT => return registers[0] == 1,
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    fn rules(json: &str) -> Vec<Rule> {
        let spec: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
        spec.iter().map(|rule| translate(rule).unwrap()).collect()
    }

    #[test]
    fn nothing_is_allowed_without_a_rule() {
        assert!(!run(&compile(&[]), TYPE_CHAR, ACCESS_READ, 1, 3));
    }

    #[test]
    fn the_last_matching_rule_decides() {
        let all_but = r#"[{"allow":true,"access":"rwm"},
                          {"allow":false,"type":"b","major":254,"access":"rwm"}]"#;
        let program = compile(&rules(all_but));
        assert!(run(&program, TYPE_CHAR, ACCESS_READ, 254, 0));
        assert!(run(&program, TYPE_BLOCK, ACCESS_READ, 8, 0));
        assert!(!run(&program, TYPE_BLOCK, ACCESS_READ, 254, 16));
    }

    #[test]
    fn an_access_must_be_allowed_whole() {
        let read = r#"[{"allow":false,"access":"rwm"},
                       {"allow":true,"type":"c","major":10,"minor":200,"access":"r"}]"#;
        let program = compile(&rules(read));
        assert!(run(&program, TYPE_CHAR, ACCESS_READ, 10, 200));
        assert!(!run(
            &program,
            TYPE_CHAR,
            ACCESS_READ | ACCESS_WRITE,
            10,
            200
        ));
        assert!(!run(&program, TYPE_CHAR, ACCESS_READ, 10, 201));
        assert!(!run(&program, TYPE_BLOCK, ACCESS_READ, 10, 200));
    }

    #[test]
    fn standard_devices_can_be_used_and_any_node_be_made() {
        let program = compile(&standard_rules().collect::<Vec<_>>());
        assert!(run(&program, TYPE_CHAR, ACCESS_READ | ACCESS_WRITE, 1, 3));
        assert!(run(&program, TYPE_CHAR, ACCESS_READ | ACCESS_WRITE, 136, 7));
        assert!(run(&program, TYPE_BLOCK, ACCESS_MKNOD, 254, 0));
        assert!(!run(&program, TYPE_BLOCK, ACCESS_READ, 254, 0));
        assert!(!run(&program, TYPE_CHAR, ACCESS_READ, 1, 1));
    }

    #[test]
    fn rules_that_no_device_can_match_are_refused() {
        for bad in [
            r#"{"allow":true,"type":"p","access":"r"}"#,
            r#"{"allow":true,"access":"x"}"#,
            r#"{"allow":true,"access":"r","major":-7}"#,
            r#"{"allow":true,"access":"r","minor":9999999999}"#,
        ] {
            let rule: LinuxDeviceCgroup = serde_json::from_str(bad).unwrap();
            assert!(translate(&rule).is_err(), "{bad}");
        }
    }
}
