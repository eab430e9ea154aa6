//! Sandboxes whose containers' root is nobody outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use isopod_proto::agent::{
    CreateContainerRequest, IdRange, SetUpSandboxRequest, User, UserNamespace,
};
use protobuf::MessageField;
use serde_json::{Value, json};
use ttrpc::Code;

use crate::harness::{Agent, request, spec, status, with_agent, with_sandbox};

const FIRST_UID: u32 = 200_000;
const FIRST_GID: u32 = 300_000;
const LENGTH: u32 = 65_536;

fn with_users<F: Future<Output = ()>>(test: impl FnOnce(Agent) -> F) {
    let range = |first| IdRange {
        first,
        length: LENGTH,
        ..Default::default()
    };
    let users = UserNamespace {
        uids: MessageField::some(range(FIRST_UID)),
        gids: MessageField::some(range(FIRST_GID)),
        ..Default::default()
    };
    let set_up = SetUpSandboxRequest {
        user_namespace: MessageField::some(users),
        sysctls: [("kernel.shmmni".to_owned(), "77".to_owned())].into(),
        ..Default::default()
    };
    with_sandbox(set_up, test);
}

fn mapping(first: u32) -> Value {
    json!([{"containerID": 0, "hostID": first, "size": LENGTH}])
}

/// A shell script's spec in the sandbox's user namespace, with these mounts behind the usual ones.
fn mapped(script: &str, mounts: Vec<Value>) -> Value {
    let mut spec = spec(&["sh", "-c", script]);
    let linux = &mut spec["linux"];
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    linux["uidMappings"] = mapping(FIRST_UID);
    linux["gidMappings"] = mapping(FIRST_GID);
    let list = spec["mounts"].as_array_mut().unwrap();
    // The kernel has no new one for whoever does not own the network.
    let sys = list.iter_mut().find(|mount| mount["type"] == "sysfs");
    *sys.unwrap() = json!({"destination": "/sys", "type": "bind", "source": "/sys",
        "options": ["rbind", "rprivate", "nosuid", "noexec", "nodev", "rro"]});
    list.push(
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
        "options": ["nosuid", "noexec", "nodev"]}),
    );
    list.extend(mounts);
    spec
}

fn volume(name: &str, destination: &str) -> Value {
    json!({"destination": destination, "type": "volume", "source": name,
           "options": ["rbind", "rprivate", "rw"],
           "uidMappings": mapping(FIRST_UID), "gidMappings": mapping(FIRST_GID)})
}

fn owner(path: &Path) -> (u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.uid(), metadata.gid())
}

#[test]
fn root_inside_is_nobody_outside_and_owns_what_the_image_gave_it() {
    with_users(|agent| async move {
        let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g; \
             stat -c '%u:%g %n' /bin/busybox /home/web /etc/hosts; \
             echo new > /new && chown 1000:1001 /new && stat -c '%u:%g %n' /new; \
             echo more >> /etc/passwd && rm -r /home && echo written; \
             cat /proc/sys/kernel/shmmni; sleep 1000";
        chown(
            agent.disks().join("busybox/home/web"),
            Some(1000),
            Some(1001),
        )
        .unwrap();
        agent
            .create("c1", &mapped(script, Vec::new()))
            .await
            .unwrap();
        agent.start_container("c1").await.unwrap();
        let mut stream = agent
            .open(
                "c1",
                "",
                isopod_proto::agent::StreamRole::STREAM_ROLE_PRIMARY,
            )
            .await;
        let output = stream.until("\n77\n").await;
        let words: Vec<_> = output.split_whitespace().collect();
        assert_eq!(
            words[..6],
            ["0", "200000", "65536", "0", "300000", "65536"],
            "{output}"
        );
        let rest = "\n0\n0\n0:0 /bin/busybox\n1000:1001 /home/web\n0:0 /etc/hosts\n1000:1001 /new\n\
                    written\n77\n";
        assert!(output.ends_with(rest), "{output}");
        // On the disk they are what they are inside.
        let upper = agent.disks().join("scratch/c1/upper");
        assert_eq!(owner(&upper.join("new")), (1000, 1001));
        assert_eq!(owner(&upper.join("etc/passwd")), (0, 0));
        // And the process is nobody.
        let agent_pid = agent.agent_pid();
        let children = format!("/proc/{agent_pid}/task/{agent_pid}/children");
        let children = fs::read_to_string(children).unwrap();
        let of_root = children.split_whitespace().filter(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.contains("Uid:\t200000\t200000")
        });
        assert_eq!(of_root.count(), 1);
    });
}

#[test]
fn the_kernels_file_systems_are_there_and_what_is_the_guests_stays_its_own() {
    with_users(|agent| async move {
        let script = "for d in proc dev dev/pts dev/mqueue sys sys/fs/cgroup; do \
               grep -q \" /$d \" /proc/mounts && echo $d; done; \
             echo x > /dev/null; head -c 1 /dev/zero | wc -c; touch /dev/mqueue/q && echo queue; \
             ls /sys/class/net | grep -x lo; cat /sys/fs/cgroup/cgroup.controllers > /dev/null && echo cgroup; \
             hostname; \
             (echo 1 > /proc/sys/kernel/printk) 2>/dev/null || echo kept; \
             (echo 1 > /sys/kernel/mm/ksm/run) 2>/dev/null || echo kept; \
             mknod /tmp/d b 1 1 2>/dev/null || echo no node; \
             grep -E '^Cap(Eff|Bnd)' /proc/self/status";
        let (code, output) = agent.outcome("c1", &mapped(script, Vec::new())).await;
        assert_eq!(code, 0, "{output:?}");
        assert_eq!(
            output.stdout,
            "proc\ndev\ndev/pts\ndev/mqueue\nsys\nsys/fs/cgroup\n1\nqueue\nlo\ncgroup\ntest-pod\n\
             kept\nkept\nno node\nCapEff:\t00000000080000e1\nCapBnd:\t00000000080000e1\n",
            "{output:?}"
        );
    });
}

#[test]
fn a_mapped_volume_has_the_same_ids_on_both_sides() {
    with_users(|agent| async move {
        let folder = agent.disks().join("v1");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("roots"), "x").unwrap();
        fs::write(folder.join("webs"), "x").unwrap();
        chown(folder.join("webs"), Some(1000), Some(1001)).unwrap();
        fs::write(agent.disks().join("v2"), "one file\n").unwrap();
        let plain = json!({"destination": "/plain", "type": "volume", "source": "v1",
                           "options": ["rbind", "rprivate", "rw"]});
        let script = "cd /data && stat -c '%u:%g' roots webs && echo new > new && \
             mkdir d && chown 7:8 d && cat /file; stat -c '%u:%g' /plain/roots; \
             touch /plain/x 2>/dev/null || echo denied";
        let mounts = vec![volume("v1", "/data"), volume("v2", "/file"), plain];
        let before = agent.settled_possessions().await;
        let (_, output) = agent.outcome("c1", &mapped(script, mounts)).await;
        assert_eq!(
            output.stdout, "0:0\n1000:1001\none file\n65534:65534\ndenied\n",
            "{output:?}"
        );
        assert_eq!(owner(&folder.join("new")), (0, 0));
        assert_eq!(owner(&folder.join("d")), (7, 8));
        agent.assert_possessions(&before, "afterwards").await;
    });
}

#[test]
fn containers_share_the_users_their_pids_and_their_ipc() {
    with_users(|agent| async move {
        let on = |id: &str, disk: &str, script: &str| {
            let mut request = request(id, &mapped(script, Vec::new()));
            request.rootfs.mut_or_insert_default().disk_serial = disk.to_owned();
            request.sandbox_pid_namespace = true;
            request
        };
        let start = async |request: CreateContainerRequest| {
            let id = request.container_id.clone();
            agent.create_with(request).await.unwrap();
            agent.start_container(&id).await.unwrap();
        };
        start(on(
            "c1",
            "busybox1",
            "touch /dev/mqueue/shared; exec sleep 1234",
        ))
        .await;
        let script = "until [ -e /dev/mqueue/shared ]; do sleep 0.1; done; ps -o user,args; \
             ls /proc/1/root/ 2>&1; P=$(pidof sleep); cat /proc/$P/uid_map; kill $P && echo ended";
        start(on("c2", "busybox2", script)).await;
        let output = agent.output("c2", "").await.stdout;
        assert!(output.contains("sleep 1234"), "{output}");
        assert!(
            output.contains("65534    pause") || output.contains("pause"),
            "{output}"
        );
        assert!(output.contains("Permission denied"), "{output}");
        assert!(output.contains("200000      65536"), "{output}");
        assert!(output.ends_with("ended\n"), "{output}");
        assert_eq!(agent.wait("c1", "").await.unwrap().exit_code, 143);
    });
}

#[test]
fn a_container_joins_the_pids_of_another_one() {
    with_users(|agent| async move {
        agent
            .create("c1", &mapped("exec sleep 1234", Vec::new()))
            .await
            .unwrap();
        agent.start_container("c1").await.unwrap();
        let script = "cat /proc/1/uid_map; ls /proc/1/root/bin/sh";
        let mut spec = mapped(script, Vec::new());
        // As a debugging container has it.
        for set in ["bounding", "effective", "permitted"] {
            let set = spec["process"]["capabilities"][set].as_array_mut().unwrap();
            set.push("CAP_SYS_PTRACE".into());
        }
        let mut create = request("c2", &spec);
        create.rootfs.mut_or_insert_default().disk_serial = "busybox2".to_owned();
        create.target_container_id = "c1".to_owned();
        agent.create_with(create).await.unwrap();
        agent.start_container("c2").await.unwrap();
        let output = agent.output("c2", "").await.stdout;
        let words: Vec<_> = output.split_whitespace().collect();
        assert_eq!(words, ["0", "200000", "65536", "/proc/1/root/bin/sh"]);
    });
}

#[test]
fn an_exec_joins_and_so_does_one_with_a_terminal() {
    with_users(|agent| async move {
        let mut create = request("c1", &mapped("sleep 1000", Vec::new()));
        create.user = MessageField::some(User {
            name: "web".to_owned(),
            supplemental_groups: vec![1234],
            ..Default::default()
        });
        let created = agent.create_with(create).await.unwrap();
        assert_eq!((created.uid, created.gid), (1000, 1001));
        agent.start_container("c1").await.unwrap();
        let script = "id -u; id -G; cat /proc/self/uid_map; echo again > /dev/stdout; \
                      echo mine > /tmp/mine && stat -c %u:%g /tmp/mine";
        agent.exec("c1", "e1", &["sh", "-c", script]).await.unwrap();
        let output = agent.output("c1", "e1").await;
        let words: Vec<_> = output.stdout.split_whitespace().collect();
        let expected = [
            "1000",
            "1001",
            "1002",
            "1234",
            "0",
            "200000",
            "65536",
            "again",
            "1000:1001",
        ];
        assert_eq!(words, expected, "{output:?}");
        let mut terminal = isopod_proto::agent::ExecProcessRequest {
            container_id: "c1".to_owned(),
            exec_id: "e2".to_owned(),
            terminal: true,
            ..Default::default()
        };
        let script = "tty; test -w $(tty) && stat -c %u $(tty); echo to it > $(tty)";
        terminal.args = ["sh", "-c", script].map(str::to_owned).to_vec();
        agent
            .client
            .exec_process(crate::harness::context(), &terminal)
            .await
            .unwrap();
        let output = agent.output("c1", "e2").await.stdout;
        assert_eq!(output, "/dev/pts/0\r\n1000\r\nto it\r\n");
    });
}

#[test]
fn an_exec_may_do_what_its_container_may_and_no_more() {
    with_users(|agent| async move {
        for (id, disk, no_new_privileges) in [("c1", "busybox1", false), ("c2", "busybox2", true)] {
            let mut spec = mapped("sleep 1000", Vec::new());
            spec["process"]["noNewPrivileges"] = no_new_privileges.into();
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["sync"], "action": "SCMP_ACT_ERRNO"}]
            });
            let mut create = request(id, &spec);
            create.rootfs.mut_or_insert_default().disk_serial = disk.to_owned();
            agent.create_with(create).await.unwrap();
            agent.start_container(id).await.unwrap();
            let script = "grep -E '^(Cap(Eff|Prm|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status; \
                          cat /proc/self/uid_map; touch /tmp/x && stat -c %u /tmp/x";
            agent.exec(id, "e1", &["sh", "-c", script]).await.unwrap();
            let output = agent.output(id, "e1").await;
            let words: Vec<_> = output.stdout.split_whitespace().collect();
            let same = "00000000080000e1";
            let expected = [
                ["CapPrm:", same, "CapEff:", same, "CapBnd:", same],
                [
                    "CapAmb:",
                    "0000000000000000",
                    "NoNewPrivs:",
                    if no_new_privileges { "1" } else { "0" },
                    "Seccomp:",
                    "2",
                ],
            ];
            assert_eq!(words[..12], expected.concat(), "{output:?}");
            assert_eq!(words[12..], ["0", "200000", "65536", "0"], "{output:?}");
        }
    });
}

#[test]
fn a_terminal_belongs_to_the_containers_user() {
    with_users(|agent| async move {
        let mut spec = mapped("tty; stat -c %u:%t $(tty); ls -l /dev/console", Vec::new());
        spec["process"]["terminal"] = true.into();
        let (code, output) = agent.outcome("c1", &spec).await;
        assert_eq!(code, 0, "{output:?}");
        assert!(output.stdout.contains("0:88"), "{output:?}");
    });
}

#[test]
fn a_folder_of_its_own_is_made_by_its_root_and_stays_writable() {
    with_users(|agent| async move {
        let own = |path: &str| {
            json!({"destination": path, "type": "own", "source": "",
                   "options": ["rbind", "rprivate", "rw"]})
        };
        let web = agent.disks().join("busybox/home/web");
        chown(&web, Some(1000), Some(1001)).unwrap();
        let script = "touch /x 2>/dev/null || echo read-only; touch /made/for/it/x && \
             stat -c %u:%g /made/for/it /home/web/made";
        let mounts = vec![own("/made/for/it"), own("/home/web/made")];
        let mut request = request("c1", &mapped(script, mounts));
        request.rootfs.as_mut().unwrap().read_only = true;
        agent.create_with(request).await.unwrap();
        agent.start_container("c1").await.unwrap();
        let output = agent.output("c1", "").await;
        assert_eq!(output.stdout, "read-only\n0:0\n0:0\n", "{output:?}");
    });
}

#[test]
fn what_belongs_to_an_id_beyond_the_range_is_nobodys() {
    with_users(|agent| async move {
        let file = agent.disks().join("busybox/etc/secret");
        fs::write(&file, "of user 70000").unwrap();
        chown(&file, Some(70_000), Some(70_000)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let script = "stat -c %u:%g /etc/secret; cat /etc/secret 2>/dev/null || echo denied; \
                      chown 0 /etc/secret 2>/dev/null || echo kept; \
                      touch /mine && chown 70000 /mine 2>/dev/null || echo no such user";
        let (_, output) = agent.outcome("c1", &mapped(script, Vec::new())).await;
        assert_eq!(
            output.stdout, "65534:65534\ndenied\nkept\nno such user\n",
            "{output:?}"
        );
    });
}

#[test]
fn other_ids_than_the_sandboxes_are_refused_and_leave_nothing() {
    with_users(|agent| async move {
        fs::create_dir(agent.disks().join("v1")).unwrap();
        let before = agent.settled_possessions().await;
        let refused = async |spec: &Value, word: &str| {
            let (code, message) = status(agent.create("c1", spec).await);
            assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
            assert!(message.contains(word), "{message}");
        };
        refused(&spec(&["true"]), "user namespace").await;
        let mut other = mapped("true", Vec::new());
        other["linux"]["uidMappings"] = mapping(400_000);
        refused(&other, "user namespace").await;
        let mut joins = mapped("true", Vec::new());
        joins["linux"]["namespaces"].as_array_mut().unwrap().pop();
        let path = json!({"type": "user", "path": "/proc/1/ns/user"});
        joins["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(path);
        refused(&joins, "user namespace").await;
        let mut wrong = volume("v1", "/data");
        wrong["gidMappings"] = mapping(1);
        refused(&mapped("true", vec![wrong]), "id mapping").await;
        let mut tmpfs = volume("v1", "/data");
        tmpfs["type"] = "tmpfs".into();
        refused(&mapped("true", vec![tmpfs]), "id mapping").await;
        let mut devices = mapped("true", Vec::new());
        devices["linux"]["devices"] =
            json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]);
        refused(&devices, "devices").await;
        let mut create = request("c1", &mapped("true", Vec::new()));
        create.user = MessageField::some(User {
            name: "70000".to_owned(),
            ..Default::default()
        });
        let (code, message) = status(agent.create_with(create).await);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(message.contains("user 70000"), "{message}");
        agent.assert_possessions(&before, "after refusals").await;
    });
}

#[test]
fn a_sandbox_without_users_refuses_those_who_bring_their_own() {
    with_agent(|agent| async move {
        let (code, message) = status(agent.create("c1", &mapped("true", Vec::new())).await);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(message.contains("user namespace"), "{message}");
    });
}
