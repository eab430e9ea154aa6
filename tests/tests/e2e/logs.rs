//! Container logs: CRI's format, partial lines, rotation.

use std::fs;

use anyhow::Result;
use isopod_tests::log::{Line, MAX_TEXT, Stream, parse, texts};
use isopod_tests::node::{self, Options, assert_refused, shell};
use tonic::Code;

#[test]
fn both_streams_are_logged_in_order_with_times() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("logs")?;
        let script = "echo one; sleep 0.2; echo two >&2; sleep 0.2; echo; printf 'no newline'";
        let (_, log) = node.run_script(&pod, "c", script)?;
        assert_eq!(texts(&log, Stream::Stdout), ["one", "", "no newline"]);
        assert_eq!(texts(&log, Stream::Stderr), ["two"]);
        assert_eq!(log[1].stream, Stream::Stderr, "{log:?}");
        assert!(
            log.windows(2).all(|pair| pair[0].time <= pair[1].time),
            "{log:?}"
        );
        let year: u32 = log[0].time[..4].parse()?;
        assert!(
            year >= 2024,
            "the guest has the host's clock: {}",
            log[0].time
        );
        Ok(())
    })
}

#[test]
fn long_lines_are_cut_into_tagged_parts_and_lose_no_byte() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("long")?;
        let script = "head -c 100000 /dev/zero | tr '\\0' x; echo; \
                      head -c 16384 /dev/zero | tr '\\0' y; echo; echo end";
        let (_, log) = node.run_script(&pod, "c", script)?;
        let joined = texts(&log, Stream::Stdout);
        assert_eq!(
            joined,
            ["x".repeat(100_000), "y".repeat(16_384), "end".to_owned()]
        );
        let parts: Vec<&Line> = log.iter().filter(|line| line.partial).collect();
        assert!(parts.len() >= 6, "{} partial lines", parts.len());
        assert!(parts.iter().all(|line| line.text.len() == MAX_TEXT));
        Ok(())
    })
}

#[test]
fn bytes_that_are_no_text_arrive_unchanged() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("bytes")?;
        let (_, log) = node.run_script(&pod, "c", "printf 'a\\377\\000\\r\\033b\\nsecond\\n'")?;
        assert_eq!(log[0].text, b"a\xff\x00\r\x1bb");
        assert_eq!(log[1].text, b"second");
        Ok(())
    })
}

#[test]
fn much_output_arrives_whole() -> Result<()> {
    const LINES: usize = 50_000;
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("much")?;
        let (_, log) = node.run_script(&pod, "c", &format!("seq 1 {LINES}"))?;
        let lines = texts(&log, Stream::Stdout);
        assert_eq!(lines.len(), LINES);
        assert!(
            lines
                .iter()
                .enumerate()
                .all(|(index, line)| *line == (index + 1).to_string())
        );
        Ok(())
    })
}

#[test]
fn a_rotated_log_goes_on_in_the_new_file_at_a_lines_beginning() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("rotate")?;
        let script = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i; usleep 10000; done";
        let id = node.start(&pod, shell("c", script))?;
        node.wait_logged(&id, "line 20")?;
        let path = node.cri().container_status(&id)?.log_path;
        let rotated = format!("{path}.1");
        fs::rename(&path, &rotated)?;
        node.cri().reopen_log(&id)?;
        node.wait_exited(&id)?;
        let (old, new) = (parse(&fs::read(&rotated)?)?, parse(&fs::read(&path)?)?);
        assert!(!old.is_empty() && !new.is_empty());
        let all = texts(&[old, new].concat(), Stream::Stdout);
        let wanted: Vec<String> = (1..=400).map(|number| format!("line {number}")).collect();
        assert_eq!(all, wanted);
        Ok(())
    })
}

#[test]
fn the_log_of_a_container_that_does_not_run_cannot_be_reopened() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("reopen")?;
        let (status, _) = node.run_script(&pod, "c", "echo over")?;
        assert_refused(
            node.cri().reopen_log(&status.id),
            Code::FailedPrecondition,
            &status.id,
        );
        Ok(())
    })
}

#[test]
fn a_removed_container_leaves_its_log_to_the_kubelet() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("kept")?;
        let (status, _) = node.run_script(&pod, "c", "echo kept")?;
        let path = node.cri().container_status(&status.id)?.log_path;
        node.cri().remove(&status.id)?;
        assert_eq!(texts(&parse(&fs::read(path)?)?, Stream::Stdout), ["kept"]);
        Ok(())
    })
}
