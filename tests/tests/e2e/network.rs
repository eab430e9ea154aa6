//! Pods on a network: Debian's CNI plugins outside, virtio-net inside. Each test is a node with a
//! network of its own, in which only the test and its pods are.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isopod_proto::cri::{DnsConfig, PortMapping, Protocol};
use isopod_tests::network::{Cni, isolated, output, run};
use isopod_tests::node::{self, Node, Options, pod_config, shell};
use isopod_tests::process::{Child, command};
use isopod_tests::wait::wait_for;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How long anything on the network may take: the lab is slow.
const LIMIT: Duration = Duration::from_secs(120);

/// Busybox, whose ping this machine always has.
const BUSYBOX: &str = "/bin/busybox";

/// A pod of the network with a container that waits.
struct Pod {
    id: String,
    container: String,
    ips: Vec<IpAddr>,
    netns: String,
}

impl Pod {
    fn start(node: &Node, name: &str) -> Result<Self> {
        let id = node.busybox_pod(name)?;
        Self::of(node, id)
    }

    fn of(node: &Node, id: String) -> Result<Self> {
        let container = node.start(&id, shell("main", "sleep 10000"))?;
        let status = node.cri().pod_status(&id)?;
        let network = status.status.and_then(|status| status.network);
        let network = network.context("no network status")?;
        let mut ips = vec![network.ip.parse()?];
        for more in network.additional_ips {
            ips.push(more.ip.parse()?);
        }
        let info: Value = serde_json::from_str(&status.info["info"])?;
        let told = info["cniResult"]["ips"].as_array().map(Vec::len);
        ensure!(told == Some(ips.len()), "{info}");
        let netns = info["network"]["netns"].as_str().context("no namespace")?;
        Ok(Self {
            id,
            container,
            ips,
            netns: netns.trim_start_matches("/run/netns/").to_owned(),
        })
    }

    fn exec(&self, node: &Node, script: &str) -> Result<String> {
        let output = node.exec(&self.container, script)?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// A file in `/sys/class/net/eth0`.
    fn link(&self, node: &Node, file: &str) -> Result<String> {
        let text = self.exec(node, &format!("cat /sys/class/net/eth0/{file}"))?;
        Ok(text.trim().to_owned())
    }

    /// Serves a file's digest and the file itself over HTTP, on port 80 of all addresses.
    fn serve(&self, node: &Node, mib: u32) -> Result<String> {
        self.exec(
            node,
            &format!(
                "mkdir -p /tmp/www && cd /tmp/www && dd if=/dev/urandom of=big bs=1M count={mib} \
                 2> /dev/null && echo hello > small && httpd -p [::]:80 -h /tmp/www"
            ),
        )?;
        let digest = self.exec(node, "sha256sum /tmp/www/big")?;
        Ok(digest.split(' ').next().unwrap_or_default().to_owned())
    }
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn url(ip: IpAddr, file: &str) -> String {
    format!("http://{}/{file}", at(ip, 80))
}

fn ping_from_host(ip: IpAddr, more: &[&str]) -> Result<()> {
    let ip = ip.to_string();
    let mut arguments = vec!["ping", "-c", "2", "-W", "20"];
    arguments.extend(more);
    arguments.push(&ip);
    let output = output(BUSYBOX, &arguments)?;
    ensure!(output.status.success(), "ping {ip}: {output:?}");
    Ok(())
}

/// GET over a connection of the test's own; the body.
fn get(address: SocketAddr, file: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET /{file} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    Ok(answer.split_off(end.context("no header")? + 4))
}

/// Gives whoever asks first a small file, and returns who that was (RFC 1350).
fn answer_tftp(socket: &UdpSocket, file: &[u8]) -> std::io::Result<IpAddr> {
    const DATA: [u8; 4] = [0, 3, 0, 1];
    const ACK: [u8; 4] = [0, 4, 0, 1];
    socket.set_read_timeout(Some(LIMIT))?;
    let mut packet = [0; 512];
    let mut peer = socket.recv_from(&mut packet)?.1;
    loop {
        socket.send_to(&[&DATA, file].concat(), peer)?;
        let (length, from) = socket.recv_from(&mut packet)?;
        if packet[..length] == ACK {
            return Ok(from.ip());
        }
        // Asked once more, because the answer took long.
        peer = from;
    }
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// What the kernel says of the pod's interface outside.
fn outside(pod: &Pod, arguments: &[&str]) -> Result<Value> {
    let mut all = vec!["-n", &pod.netns, "-j"];
    all.extend(arguments);
    Ok(serde_json::from_str(&run("ip", &all)?)?)
}

fn dual_stack(cni: &Cni) -> Value {
    cni.bridge(&["10.7.0.0/24", "fd07::/64"])
}

#[test]
fn two_pods_and_the_host_reach_each_other() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        cni.plugins(&[dual_stack(&cni)])?;
        node::run(Options::kvm().network(&cni), |node| {
            let (web, client) = (Pod::start(node, "web")?, Pod::start(node, "client")?);
            let gateways: [IpAddr; 2] = ["10.7.0.1".parse()?, "fd07::1".parse()?];
            web.serve(node, 1)?;
            for (version, ip) in web.ips.iter().enumerate() {
                let gateway = gateways[version];
                // ICMP, each way.
                ping_from_host(*ip, &[])?;
                client.exec(node, &format!("ping -c 2 -W 20 {ip}"))?;
                client.exec(node, &format!("ping -c 2 -W 20 {gateway}"))?;
                // TCP: the host and the other pod to the pod.
                assert_eq!(get(at(*ip, 80), "small")?, b"hello\n");
                let fetched = client.exec(node, &format!("wget -q -O - {}", url(*ip, "small")))?;
                assert_eq!(fetched, "hello\n");
                // TCP: the pod to the host.
                let listener = TcpListener::bind(at(gateway, 8000))?;
                let accepting = std::thread::Builder::new().spawn(move || {
                    let (mut stream, peer) = listener.accept()?;
                    stream.write_all(b"from the host\n")?;
                    std::io::Result::Ok(peer.ip())
                })?;
                let heard = client.exec(node, &format!("nc -w 20 {gateway} 8000 < /dev/null"))?;
                assert_eq!(heard, "from the host\n");
                let peer = accepting.join().expect("no panic")?;
                assert_eq!(peer, client.ips[version], "no address was translated");
                // UDP: the pod to the host, and an answer.
                let socket = UdpSocket::bind(at(gateway, 6900))?;
                let answering =
                    std::thread::Builder::new().spawn(move || answer_tftp(&socket, b"datagram"))?;
                let fetch = format!("cd /tmp && tftp -g -r file {gateway} 6900 && cat file");
                assert_eq!(client.exec(node, &fetch)?, "datagram");
                let peer = answering.join().expect("no panic")?;
                assert_eq!(peer, client.ips[version]);
                // UDP: the host to the pod, whose kernel says that nobody listens.
                let socket = UdpSocket::bind(at(gateway, 0))?;
                socket.connect(at(*ip, 9))?;
                socket.set_read_timeout(Some(LIMIT))?;
                socket.send(b"anybody?")?;
                let refused = socket.recv(&mut [0; 8]).unwrap_err();
                assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            }
            // UDP: a pod to the other.
            let hops = client.exec(
                node,
                &format!("traceroute -n -q 1 -m 2 -w 20 {}", web.ips[0]),
            )?;
            assert!(hops.contains(&format!(" 1  {}", web.ips[0])), "{hops}");
            Ok(())
        })
    })
}

#[test]
fn guest_has_what_the_plugins_made() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        cni.plugins(&[dual_stack(&cni)])?;
        node::run(Options::kvm().network(&cni), |node| {
            let mut config = pod_config(node, "guest");
            config.dns_config = Some(DnsConfig {
                servers: vec!["10.0.0.10".into()],
                searches: vec!["default.svc".into()],
                options: vec!["ndots:5".into()],
            });
            node.cri().pull(&node::image("busybox"))?;
            let pod = Pod::of(node, node.cri().run_pod(config)?)?;
            let link = outside(&pod, &["link", "show", "eth0"])?;
            assert_eq!(link[0]["address"], pod.link(node, "address")?);
            assert_eq!(link[0]["mtu"].to_string(), pod.link(node, "mtu")?);
            let addresses = pod.exec(node, "ip address show eth0")?;
            for ip in ["10.7.0.2/24", "fd07::2/64"] {
                assert!(addresses.contains(ip), "{addresses}");
            }
            assert!(!addresses.contains("tentative"), "{addresses}");
            let routes = pod.exec(node, "ip route; ip -6 route")?;
            for route in [
                "default via 10.7.0.1 dev eth0",
                "10.7.0.0/24 dev eth0 scope link  src 10.7.0.2",
                "default via fd07::1 dev eth0",
                "fd07::/64 dev eth0",
            ] {
                assert!(routes.contains(route), "{route}: {routes}");
            }
            let files = pod.exec(node, "cat /etc/resolv.conf /etc/hosts; hostname")?;
            for line in [
                "search default.svc\noptions ndots:5\nnameserver 10.0.0.10\n",
                "10.7.0.2\tguest\n",
            ] {
                assert!(files.contains(line), "{files}");
            }
            assert!(files.ends_with("guest\n"));
            // A queue for each of the two vCPUs, once they are up.
            wait_for("two queues", LIMIT, || {
                let queues = pod.exec(node, "ls /sys/class/net/eth0/queues").ok()?;
                (queues == "rx-0\nrx-1\ntx-0\ntx-1\n").then_some(())
            })?;
            Ok(())
        })
    })
}

#[test]
fn large_transfers_arrive_whole_at_every_mtu() -> Result<()> {
    isolated(|| {
        for mtu in [1500, 9000] {
            let cni = Cni::new()?;
            let mut bridge = dual_stack(&cni);
            bridge["mtu"] = mtu.into();
            bridge["bridge"] = format!("cni{mtu}").into();
            cni.plugins(&[bridge])?;
            node::run(Options::kvm().network(&cni), |node| {
                let (web, client) = (Pod::start(node, "web")?, Pod::start(node, "client")?);
                assert_eq!(web.link(node, "mtu")?, mtu.to_string());
                let expected = web.serve(node, 100)?;
                for ip in &web.ips {
                    // The largest packet that fits, and one that has to be cut up.
                    ping_from_host(*ip, &["-s", &(mtu - 48).to_string()])?;
                    ping_from_host(*ip, &["-s", "20000"])?;
                }
                let begun = Instant::now();
                assert_eq!(digest(&get(at(web.ips[0], 80), "big")?), expected);
                eprintln!("MTU {mtu}: 100 MiB to the host in {:?}", begun.elapsed());
                let part = "cd /tmp/www && dd if=big of=part bs=1M count=16 2> /dev/null && \
                            sha256sum part";
                let part = web.exec(node, part)?;
                let expected = part.split(' ').next().unwrap_or_default();
                let begun = Instant::now();
                let fetch = format!("wget -q -O - {} | sha256sum", url(web.ips[1], "part"));
                let fetched = client.exec(node, &fetch)?;
                assert!(fetched.starts_with(expected), "{fetched}");
                eprintln!("MTU {mtu}: 16 MiB to a pod in {:?}", begun.elapsed());
                Ok(())
            })?;
            run("ip", &["link", "del", &format!("cni{mtu}")])?;
        }
        Ok(())
    })
}

#[test]
fn a_port_of_the_host_leads_to_the_pod_until_it_is_gone() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        let portmap = json!({
            "type": "portmap", "capabilities": { "portMappings": true }, "snat": true,
        });
        cni.plugins(&[cni.bridge(&["10.7.0.0/24"]), portmap])?;
        node::run(Options::kvm().network(&cni), |node| {
            let mut config = pod_config(node, "web");
            config.port_mappings = vec![PortMapping {
                protocol: Protocol::Tcp.into(),
                container_port: 80,
                host_port: 8080,
                host_ip: String::new(),
            }];
            node.cri().pull(&node::image("busybox"))?;
            let pod = Pod::of(node, node.cri().run_pod(config)?)?;
            pod.serve(node, 1)?;
            let port = "127.0.0.1:8080".parse()?;
            assert_eq!(get(port, "small")?, b"hello\n");
            // The pods outlive the daemon, and their ports do, too.
            node.kill_daemon();
            assert_eq!(get(port, "small")?, b"hello\n");
            node.start_daemon()?;
            node.cri().stop_pod(&pod.id)?;
            assert!(get(port, "small").is_err());
            let rules = run("iptables", &["-t", "nat", "-S"])?;
            assert!(!rules.contains("8080"), "{rules}");
            Ok(())
        })
    })
}

#[test]
fn names_are_resolved_by_the_pods_own_server() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        cni.plugins(&[cni.bridge(&["10.7.0.0/24"])])?;
        node::run(Options::kvm().network(&cni), |node| {
            let mut config = pod_config(node, "asker");
            config.dns_config = Some(DnsConfig {
                servers: vec!["10.7.0.1".into()],
                searches: vec!["example".into()],
                options: Vec::new(),
            });
            node.cri().pull(&node::image("busybox"))?;
            let pod = Pod::of(node, node.cri().run_pod(config)?)?;
            let mut dnsmasq = command("/usr/sbin/dnsmasq");
            dnsmasq
                .args([
                    "--keep-in-foreground",
                    "--no-resolv",
                    "--no-hosts",
                    "--user=root",
                ])
                .args(["--conf-file=/dev/null", "--bind-interfaces", "--pid-file="])
                .args([
                    "--listen-address=10.7.0.1",
                    "--address=/db.example/10.7.0.99",
                ])
                .stdin(Stdio::null());
            let _dnsmasq = Child::new(dnsmasq.spawn().context("starting dnsmasq")?);
            wait_for("an answer", LIMIT, || {
                // It fails for want of an IPv6 address, which it asks for, too.
                let answer = pod.exec(node, "nslookup db.example || true").ok()?;
                answer.contains("10.7.0.99").then_some(())
            })
        })
    })
}

#[test]
fn a_pod_can_have_several_interfaces() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        // As meta-plugins do it: another plugin is run for another interface.
        let mut second = cni.bridge(&["10.8.0.0/24"]);
        second["bridge"] = "cni1".into();
        second["isGateway"] = false.into();
        second["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "10.8.0.1" }]);
        second["name"] = "second".into();
        second["cniVersion"] = "1.0.0".into();
        std::fs::write(cni.folder().join("second.json"), second.to_string())?;
        let script =
            "CNI_IFNAME=net1 /usr/lib/cni/bridge < \"$FOLDER/second.json\" > /dev/null || exit 1
            [ \"$CNI_COMMAND\" = ADD ] && echo '{\"cniVersion\":\"1.0.0\"}'; exit 0";
        cni.script("second", script)?;
        cni.plugins(&[json!({ "type": "second" }), cni.bridge(&["10.7.0.0/24"])])?;
        node::run(Options::kvm().network(&cni), |node| {
            let pod = Pod::start(node, "two")?;
            assert_eq!(pod.ips, ["10.7.0.2".parse::<IpAddr>()?]);
            let addresses = pod.exec(node, "ip -o -4 address; ip route")?;
            for wanted in [
                "eth0    inet 10.7.0.2/24",
                "net1    inet 10.8.0.2/24",
                "192.0.2.0/24 via 10.8.0.1 dev net1",
            ] {
                assert!(addresses.contains(wanted), "{wanted}: {addresses}");
            }
            run("ip", &["address", "add", "10.8.0.1/24", "dev", "cni1"])?;
            ping_from_host("10.8.0.2".parse()?, &[])?;
            ping_from_host("10.7.0.2".parse()?, &[])
        })
    })
}

#[test]
fn bandwidth_annotations_slow_the_pod_down() -> Result<()> {
    isolated(|| {
        // By the plugin, or by the VMM where there is none.
        let plugin = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
        for shapers in [vec![plugin], vec![]] {
            let cni = Cni::new()?;
            let bridge = cni.bridge(&["10.7.0.0/24"]);
            cni.plugins(&[vec![bridge], shapers].concat())?;
            node::run(Options::kvm().network(&cni), |node| {
                let mut config = pod_config(node, "slow");
                let egress = "kubernetes.io/egress-bandwidth".to_owned();
                config.annotations.insert(egress, "4M".into());
                node.cri().pull(&node::image("busybox"))?;
                let pod = Pod::of(node, node.cri().run_pod(config)?)?;
                let expected = pod.serve(node, 3)?;
                let begun = Instant::now();
                assert_eq!(digest(&get(at(pod.ips[0], 80), "big")?), expected);
                // 24 Mibit at 4 Mbit/s, the first second's worth at once.
                let took = begun.elapsed();
                ensure!(took > Duration::from_secs(4), "{took:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}
