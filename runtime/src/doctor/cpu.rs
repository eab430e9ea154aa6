//! The processor: can it virtualise, and is it itself virtual.

use std::fs;

use super::{Check, Host};

const NAME: &str = "cpu";

/// What `/proc/cpuinfo` says of the first processor.
#[derive(Debug, Default, PartialEq, Eq)]
struct CpuInfo {
    model: String,
    flags: Vec<String>,
}

impl CpuInfo {
    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let value = |line: &str| {
                Some(
                    line.strip_prefix(name)?
                        .trim_start()
                        .strip_prefix(':')?
                        .trim()
                        .to_owned(),
                )
            };
            text.lines().find_map(value).unwrap_or_default()
        };
        Self {
            model: field("model name"),
            flags: field("flags")
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|found| found == flag)
    }
}

/// Whether the processor shows that it can run an unmodified guest: AMD's SVM or Intel's VMX.
pub(super) fn virtualises(host: &Host) -> bool {
    let text = fs::read_to_string(host.path("/proc/cpuinfo")).unwrap_or_default();
    let cpu = CpuInfo::parse(&text);
    cpu.has("svm") || cpu.has("vmx")
}

/// The CPU flag, and where it may be lost.
pub(super) fn cpu(host: &Host) -> Check {
    let text = match fs::read_to_string(host.path("/proc/cpuinfo")) {
        Ok(text) => text,
        Err(error) => {
            return Check::fail(NAME, format!("/proc/cpuinfo: {error}"), "mount /proc");
        }
    };
    let cpu = CpuInfo::parse(&text);
    let model = if cpu.model.is_empty() {
        "unknown model"
    } else {
        &cpu.model
    };
    let flag = ["svm", "vmx"].into_iter().find(|flag| cpu.has(flag));
    match (flag, cpu.has("hypervisor")) {
        (Some(flag), false) => Check::ok(NAME, format!("{model}, {flag}")),
        (Some(flag), true) => Check::ok(
            NAME,
            format!("{model}, {flag}, itself in a virtual machine (nested)"),
        ),
        (None, true) => Check::fail(
            NAME,
            format!("{model} in a virtual machine, without svm or vmx"),
            "turn on nested virtualisation for this machine where it is hosted, or use another",
        ),
        (None, false) => Check::fail(
            NAME,
            format!("{model}, without svm or vmx"),
            "turn on AMD-V or VT-x in the firmware's settings",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn check(cpuinfo: &str) -> Check {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("proc")).unwrap();
        fs::write(root.path().join("proc/cpuinfo"), cpuinfo).unwrap();
        cpu(&Host {
            root: root.path().into(),
        })
    }

    #[test]
    fn svm_and_vmx_are_found_among_the_flags() {
        for flag in ["svm", "vmx"] {
            let check = check(&format!("model name\t: A B\nflags\t\t: fpu {flag} sse\n"));
            assert_eq!(check.verdict, Verdict::Ok);
            assert_eq!(check.found, format!("A B, {flag}"));
        }
    }

    #[test]
    fn virtual_machine_without_nesting_fails_and_says_so() {
        let check = check("flags\t\t: fpu hypervisor svm_lock\n");
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.advice.contains("nested"), "{check:?}");
    }

    #[test]
    fn processor_without_the_flag_is_for_the_firmware() {
        let check = check("flags : fpu\nvmx flags : vnmi\n");
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.advice.contains("firmware"), "{check:?}");
    }

    #[test]
    fn missing_proc_fails() {
        let root = tempfile::tempdir().unwrap();
        let check = cpu(&Host {
            root: root.path().into(),
        });
        assert_eq!(check.verdict, Verdict::Fail);
    }
}
