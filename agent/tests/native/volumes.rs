//! Folders, files and images that containers see beside their roots.

use std::fs;

use serde_json::{Value, json};
use ttrpc::Code;

use crate::harness::{request, spec, status, with_agent};

/// A shell script's spec with these mounts behind the usual ones.
fn mounting(script: &str, mounts: Vec<Value>) -> Value {
    let mut spec = spec(&["sh", "-c", script]);
    let list = spec["mounts"].as_array_mut().unwrap();
    list.extend(mounts);
    spec
}

fn mount(kind: &str, source: &str, destination: &str, access: &str) -> Value {
    json!({"destination": destination, "type": kind, "source": source,
           "options": ["rbind", "rprivate", access]})
}

#[test]
fn a_volume_is_a_folder_or_a_file_and_what_is_written_stays() {
    with_agent(|agent| async move {
        let (folder, file) = (agent.disks().join("v1"), agent.disks().join("v2"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("in"), "from outside").unwrap();
        fs::write(&file, "one line\n").unwrap();
        let script =
            "cat /data/in /etc/hosts && echo inside > /data/out && echo more >> /etc/hosts";
        let mounts = vec![
            mount("volume", "v1", "/data", "rw"),
            mount("volume", "v2", "/etc/hosts", "rw"),
        ];
        let (code, output) = agent.outcome("c1", &mounting(script, mounts)).await;
        assert_eq!(code, 0, "{output:?}");
        assert_eq!(output.stdout, "from outsideone line\n");
        assert_eq!(fs::read(folder.join("out")).unwrap(), b"inside\n");
        assert_eq!(fs::read(&file).unwrap(), b"one line\nmore\n");
    });
}

#[test]
fn a_read_only_volume_cannot_be_written() {
    with_agent(|agent| async move {
        fs::create_dir(agent.disks().join("v1")).unwrap();
        let mounts = vec![mount("volume", "v1", "/data", "ro")];
        let script = "touch /data/x 2>&1; mount -o remount,rw /data 2>/dev/null || echo kept";
        let (_, output) = agent.outcome("c1", &mounting(script, mounts)).await;
        assert!(
            output.stdout.contains("Read-only file system"),
            "{output:?}"
        );
        assert!(output.stdout.ends_with("kept\n"), "{output:?}");
    });
}

#[test]
fn a_part_of_an_image_is_found_inside_the_image() {
    with_agent(|agent| async move {
        let image = agent.disks().join("i1");
        fs::create_dir_all(image.join("real/deep")).unwrap();
        fs::write(image.join("real/deep/file"), "part").unwrap();
        // Absolute in the image, whose own root it means.
        std::os::unix::fs::symlink("/real", image.join("link")).unwrap();
        let mounts = vec![mount("image", "i1/link/deep", "/data", "ro")];
        let (_, output) = agent
            .outcome("c1", &mounting("cat /data/file", mounts))
            .await;
        assert_eq!(output.stdout, "part");
        let before = agent.settled_possessions().await;
        let mounts = vec![mount("image", "i1/nowhere", "/data", "ro")];
        let refused = agent.create("c2", &mounting("true", mounts)).await;
        let (code, message) = status(refused);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(message.contains("/nowhere in the image"), "{message}");
        agent.assert_possessions(&before, "after a refusal").await;
    });
}

#[test]
fn a_folder_of_its_own_stays_writable_below_a_read_only_root() {
    with_agent(|agent| async move {
        let script = "touch /x 2>/dev/null || echo root is read-only; echo kept > /home/web/x && \
                      cat /home/web/x; touch /made/for/it/x && echo made";
        let mounts = vec![
            mount("own", "", "/home/web", "rw"),
            mount("own", "", "/made/for/it", "rw"),
        ];
        let mut request = request("c1", &mounting(script, mounts));
        request.rootfs.as_mut().unwrap().read_only = true;
        agent.create_with(request).await.unwrap();
        agent.start_container("c1").await.unwrap();
        let output = agent.output("c1", "").await;
        assert_eq!(
            output.stdout, "root is read-only\nkept\nmade\n",
            "{output:?}"
        );
    });
}

#[test]
fn a_hundred_mounts_in_one_container_come_and_go() {
    with_agent(|agent| async move {
        agent.outcome("c0", &spec(&["true"])).await;
        let before = agent.settled_possessions().await;
        let mut mounts = Vec::new();
        for number in 0..100 {
            let name = format!("v{number}");
            fs::create_dir(agent.disks().join(&name)).unwrap();
            fs::write(agent.disks().join(&name).join("n"), format!("{number}\n")).unwrap();
            mounts.push(mount("volume", &name, &format!("/data/{number}"), "ro"));
        }
        let script = "cat /data/*/n | wc -l; grep -c ' /data/' /proc/mounts";
        let (_, output) = agent.outcome("c1", &mounting(script, mounts)).await;
        assert_eq!(output.stdout, "100\n100\n", "{output:?}");
        agent.assert_possessions(&before, "afterwards").await;
    });
}

#[test]
fn a_volume_that_is_not_there_is_named() {
    with_agent(|agent| async move {
        let before = agent.settled_possessions().await;
        let mounts = vec![mount("volume", "missing", "/data", "rw")];
        let (code, message) = status(agent.create("c1", &mounting("true", mounts)).await);
        assert_eq!(code, Code::NOT_FOUND);
        assert!(message.contains("missing"), "{message}");
        let mounts = vec![mount("volume", "../../etc", "/data", "rw")];
        let (code, _) = status(agent.create("c1", &mounting("true", mounts)).await);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        agent.assert_possessions(&before, "afterwards").await;
    });
}
