//! What POSIX says of files, in a volume: errors, locks, and contents after many random changes.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use isopod_proto::cri::{ContainerConfig, Mount};
use isopod_tests::node::{self, Node, Options, container_config, image, pod_config};

/// A pod, and a folder of the host for its volume.
fn pod_with_volume(node: &Node, name: &str) -> Result<(String, PathBuf)> {
    node.cri().pull(&image("perl"))?;
    let pod = node.cri().run_pod(pod_config(node, name))?;
    let folder = node.folder().join("volumes").join(name);
    fs::create_dir_all(&folder)?;
    Ok((pod, folder))
}

/// A container with perl and the volume at `/v`.
fn with_perl(name: &str, folder: &std::path::Path) -> ContainerConfig {
    let mut config = container_config(name, "perl", &["/bin/sh", "-c", "exec sleep 100000"]);
    config.mounts = vec![Mount {
        host_path: folder.display().to_string(),
        container_path: "/v".to_owned(),
        ..Mount::default()
    }];
    config
}

/// What a perl script prints.
fn perl(node: &Node, id: &str, script: &str) -> Result<String> {
    let answer = node.cri().exec(id, &["/usr/bin/perl", "-e", script], 0)?;
    ensure!(
        answer.exit_code == 0,
        "perl exited with {}: {}",
        answer.exit_code,
        String::from_utf8_lossy(&answer.stderr)
    );
    Ok(String::from_utf8(answer.stdout)?.trim().to_owned())
}

/// What is tried, in this order, and what comes of it: `E` is what it failed with, 0 if it did not.
const CALLS: &[(&str, &str, &str)] = &[
    ("a directory", "mkdir '/v/d' or E", "0"),
    ("a directory that is there", "mkdir '/v/d' or E", "17"),
    ("a file", "sysopen(F, '/v/f', 0101) or E", "0"),
    ("only a new file", "sysopen(F, '/v/f', 0301) or E", "17"),
    ("writing to a directory", "sysopen(F, '/v/d', 1) or E", "21"),
    ("a file as a directory", "mkdir '/v/f/x' or E", "20"),
    ("no such file", "sysopen(F, '/v/none', 0) or E", "2"),
    ("no such directory", "mkdir '/v/none/x' or E", "2"),
    ("a name of 255 bytes", "mkdir '/v/' . 'n' x 255 or E", "0"),
    ("a name of 256 bytes", "mkdir '/v/' . 'n' x 256 or E", "36"),
    ("a hard link", "link '/v/f', '/v/l' or E", "0"),
    (
        "a hard link to a directory",
        "link '/v/d', '/v/x' or E",
        "1",
    ),
    (
        "a hard link that is there",
        "link '/v/f', '/v/l' or E",
        "17",
    ),
    ("a link to itself", "symlink 'loop', '/v/loop' or E", "0"),
    ("an endless link", "sysopen(F, '/v/loop', 0) or E", "40"),
    (
        "a link not to be followed",
        "sysopen(F, '/v/loop', 0400000) or E",
        "40",
    ),
    (
        "a dangling link",
        "symlink 'nothing', '/v/dangling' or E",
        "0",
    ),
    (
        "through a dangling link",
        "sysopen(F, '/v/dangling', 0101) or E",
        "0",
    ),
    (
        "what the link made",
        "print +(-e '/v/nothing') ? 'made' : 'not'",
        "made",
    ),
    (
        "a directory over a file",
        "rename '/v/d', '/v/f' or E",
        "20",
    ),
    (
        "a file over a directory",
        "rename '/v/f', '/v/d' or E",
        "21",
    ),
    ("a directory in a directory", "mkdir '/v/d/e' or E", "0"),
    ("into itself", "rename '/v/d', '/v/d/e/x' or E", "22"),
    (
        "over a full directory",
        "mkdir '/v/g'; rename '/v/g', '/v/d' or E",
        "39",
    ),
    (
        "over an empty directory",
        "rename '/v/g', '/v/d/e' or E",
        "0",
    ),
    ("removing a full directory", "rmdir '/v/d' or E", "39"),
    ("removing a file as a directory", "rmdir '/v/f' or E", "20"),
    ("links of a file", "print +(stat '/v/f')[3]", "2"),
    ("links of a directory", "print +(stat '/v/d')[3]", "3"),
    (
        "a change of a directory shows in its time",
        "utime 1, 1, '/v/d'; mkdir '/v/d/h'; print +(stat '/v/d')[9] > 1e9 ? 'new' : 'old'",
        "new",
    ),
    (
        "a change of the mode shows in the time of change",
        "$b = (stat '/v/f')[10]; sleep 1; chmod 0600, '/v/f'; \
         print +(stat '/v/f')[10] > $b ? 'later' : 'not'",
        "later",
    ),
    (
        "a hole reads as zeros",
        "open F, '+>', '/v/hole'; sysseek F, 1 << 20, 0; syswrite F, 'x'; \
         sysseek F, 4095, 0; sysread F, $d, 10000; \
         print length $d, ' ', $d =~ tr/\\0//, ' ', (stat F)[12] < 2048 ? 'sparse' : 'full'",
        "10000 10000 sparse",
    ),
    (
        "who appends does not overwrite",
        "open A, '>>', '/v/log'; open B, '>>', '/v/log'; \
         for (1 .. 50) { syswrite A, 'a'; syswrite B, 'b' } print -s '/v/log'",
        "100",
    ),
    (
        "a file that is shorter while it is open",
        "open A, '+>', '/v/cut'; syswrite A, 'x' x 9000; open B, '+<', '/v/cut'; \
         truncate B, 10; sysseek A, 0, 0; print sysread(A, $d, 9000), ' ', -s A",
        "10 10",
    ),
    (
        "a directory that is read while it changes",
        "mkdir '/v/many'; for (1 .. 200) { open F, '>', \"/v/many/$_\" } opendir D, '/v/many'; \
         while (defined($n = readdir D)) { next if $n =~ /^\\./; unlink \"/v/many/$n\"; $c++ } \
         rewinddir D; @left = grep !/^\\./, readdir D; print \"$c \" . @left",
        "200 0",
    ),
    (
        "in a sticky directory only the owner removes",
        "mkdir '/v/tmp'; chmod 01777, '/v/tmp'; open F, '>', '/v/tmp/roots'; \
         $) = '1000 1000'; $> = 1000; unlink '/v/tmp/roots' or E",
        "1",
    ),
    (
        "another user's mode",
        "$) = '1000 1000'; $> = 1000; chmod 0777, '/v/f' or E",
        "1",
    ),
    (
        "another user's owner",
        "$) = '1000 1000'; $> = 1000; chown 1000, 1000, '/v/f' or E",
        "1",
    ),
];

#[test]
fn calls_on_a_volume_fail_as_posix_says() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let (pod, folder) = pod_with_volume(node, "calls")?;
        let id = node.start(&pod, with_perl("main", &folder))?;
        // One process for each, and one exec for all.
        let mut script =
            "sub E { print $! + 0; $failed = 1 } sub t { my ($s) = @_; my $p = fork; \
                 if (!$p) { $| = 1; $failed = 0; eval $s; print $@ if $@; \
                 print 0 if !$failed && $s =~ /or E$/; exit } waitpid $p, 0; print \"\\n\" } $| = 1;"
                .to_owned();
        for (_, call, _) in CALLS {
            let quoted = call.replace('\\', "\\\\").replace('\'', "\\'");
            script.push_str(&format!("t('{quoted}');"));
        }
        let told = perl(node, &id, &script)?;
        let told: Vec<&str> = told.lines().collect();
        assert_eq!(told.len(), CALLS.len(), "{told:?}");
        for ((what, _, expected), told) in CALLS.iter().zip(told) {
            assert_eq!(told, *expected, "{what}");
        }
        Ok(())
    })
}

/// Changes a file in random places and reads it, and keeps what must be in it. At the end it prints
/// the length and the sum of the bytes.
const EXERCISE: &str = r#"
    srand 42; my ($model, $max) = ('', 200_000); open my $f, '+>', '/v/x' or die "open: $!";
    for my $step (1 .. 2000) {
        my ($what, $at, $n) = (int rand 8, int rand $max, 1 + int rand 20_000);
        if ($what < 3) {
            $n = $max - $at if $at + $n > $max;
            my $data = join '', map { chr(($step + $_) & 255) } 1 .. $n;
            sysseek $f, $at, 0; syswrite($f, $data) == $n or die "write: $!";
            $model .= "\0" x ($at - length $model) if $at > length $model;
            substr($model, $at, $n > length($model) - $at ? length($model) - $at : $n) = $data;
        } elsif ($what < 6) {
            sysseek $f, $at, 0; defined sysread($f, my $got, $n) or die "read: $!";
            my $want = $at < length $model ? substr($model, $at, $n) : '';
            $got eq $want or die "step $step: other bytes at $at";
        } elsif ($what == 6) {
            truncate $f, $at or die "truncate: $!";
            $model = $at < length $model ? substr($model, 0, $at) : $model . "\0" x ($at - length $model);
        } else {
            close $f or die "close: $!";
            rename '/v/x', '/v/y' or die; rename '/v/y', '/v/x' or die;
            open $f, '+<', '/v/x' or die "open again: $!";
        }
        -s $f == length $model or die "step $step: " . (-s $f) . ' bytes, not ' . length $model;
    }
    close $f; print length $model, ' ', unpack '%32C*', $model;
"#;

#[test]
fn a_file_holds_what_was_written_after_thousands_of_random_changes() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let (pod, folder) = pod_with_volume(node, "random")?;
        let id = node.start(&pod, with_perl("main", &folder))?;
        let told = perl(node, &id, EXERCISE)?;
        let content = fs::read(folder.join("x"))?;
        let sum: u32 = content.iter().map(|byte| u32::from(*byte)).sum();
        assert_eq!(told, format!("{} {sum}", content.len()));
        Ok(())
    })
}

/// `lock(type, first, length)` with `fcntl`, of the process or, if `$ofd`, of the open file.
const LOCK: &str = "open F, '+<', '/v/db' or die; sub lock_ { my ($how, $type, $at, $n) = @_; \
    my $l = pack 's s x4 q q l x4', $type, 0, $at, $n, 0; fcntl(F, $how, $l) ? 0 : $! + 0 } ";

#[test]
fn containers_of_a_pod_lock_each_other_out_of_a_file() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let (pod, folder) = pod_with_volume(node, "locks")?;
        fs::write(folder.join("db"), "0123456789")?;
        let mut holder = with_perl("holder", &folder);
        // SETLK, write, bytes 0 to 9; OFD_SETLK, write, 50 to 59; flock, exclusive, on another file.
        let script = format!(
            "{LOCK} open G, '+>', '/v/flock'; $r = lock_(6, 1, 0, 10) + lock_(37, 1, 50, 10) \
             + !flock(G, 6); open H, '>', '/v/held'; print H $r; close H; sleep 100000"
        );
        holder.command = vec!["/usr/bin/perl".into(), "-e".into(), script];
        let holder = node.start(&pod, holder)?;
        let other = node.start(&pod, with_perl("other", &folder))?;
        isopod_tests::wait::wait_for("the locks", std::time::Duration::from_secs(120), || {
            (fs::read(folder.join("held")).ok()? == b"0").then_some(())
        })?;
        let tries = format!(
            "{LOCK} open G, '+<', '/v/flock'; print join ' ', lock_(6, 1, 5, 1), \
             lock_(6, 0, 0, 1), lock_(6, 1, 10, 10), lock_(37, 0, 55, 1), lock_(6, 1, 60, 1), \
             flock(G, 6) ? 0 : $! + 0"
        );
        // EAGAIN for what the other container holds, and for nothing else.
        assert_eq!(perl(node, &other, &tries)?, "11 11 0 11 0 11");
        let ask = format!(
            "{LOCK} $l = pack 's s x4 q q l x4', 0, 0, 0, 100, 0; fcntl(F, 5, $l); \
             ($t, $w, $s, $n) = unpack 's s x4 q q', $l; print \"$t $s $n\""
        );
        assert_eq!(
            perl(node, &other, &ask)?,
            "1 0 10",
            "who holds what is told"
        );
        node.cri().remove(&holder)?;
        let after = perl(node, &other, &tries).context("after the holder's end")?;
        assert_eq!(after, "0 0 0 0 0 0");
        Ok(())
    })
}
