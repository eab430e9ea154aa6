//! Interfaces of a network namespace of the test's own. Needs root.

use std::process::Command;

use isopod_proto::agent::{Address, Neighbour, Route};
use nix::sched::{CloneFlags, unshare};

use super::*;

/// Runs a test on a thread with a network of its own, if this machine can.
fn isolated<F: Future<Output = ()> + 'static>(test: fn() -> F) {
    if !nix::unistd::geteuid().is_root() {
        return isopod_tests::skip("needs root, for a network namespace");
    }
    let thread = std::thread::Builder::new().spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    });
    thread.unwrap().join().unwrap();
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// An interface whose other end is up, too.
fn add_link(name: &str, mac: &str) {
    ip(&format!(
        "link add {name} address {mac} type veth peer name {name}-peer"
    ));
    ip(&format!("link set {name}-peer up"));
}

fn interface(name: &str, last: u8) -> Interface {
    Interface {
        name: name.into(),
        mac: vec![2, 0, 0, 0, 0, last],
        mtu: 1400,
        addresses: vec![Address {
            ip: vec![10, last, 0, 2],
            prefix_len: 24,
            ..Default::default()
        }],
        queues: 1,
        ..Default::default()
    }
}

fn route(destination: &[u8], prefix_len: u32, gateway: &[u8]) -> Route {
    Route {
        destination: destination.into(),
        prefix_len,
        gateway: gateway.into(),
        ipv6: destination.len() == 16 || gateway.len() == 16,
        ..Default::default()
    }
}

async fn set_up_all(interfaces: &[Interface]) -> Result<(), NetworkError> {
    set_up(&check(interfaces)?, || Ok(())).await
}

#[test]
fn an_interface_gets_all_that_belongs_to_it_and_nothing_else() {
    isolated(|| async {
        add_link("eth0", "02:00:00:00:00:01");
        let v6 = |last: u8| [&[0xfd, 7][..], &[0; 13], &[last]].concat();
        let mut wanted = interface("eth0", 1);
        wanted.addresses.push(Address {
            ip: v6(2),
            prefix_len: 64,
            ..Default::default()
        });
        wanted.routes = vec![
            Route {
                scope: 253,
                source: vec![10, 1, 0, 2],
                ..route(&[10, 1, 0, 0], 24, &[])
            },
            Route {
                mtu: 1300,
                ..route(&[], 0, &[10, 1, 0, 1])
            },
            Route {
                on_link: true,
                priority: 7,
                ..route(&[192, 0, 2, 0], 24, &[169, 254, 1, 1])
            },
            route(&v6(0), 64, &[]),
            route(&[], 0, &v6(1)),
        ];
        wanted.neighbours = vec![Neighbour {
            ip: vec![169, 254, 1, 1],
            mac: vec![0xee; 6],
            ..Default::default()
        }];
        set_up_all(&[wanted]).await.unwrap();

        assert!(ip("link show eth0").contains("mtu 1400"));
        let addresses = ip("address show eth0");
        for wanted in [
            "inet 10.1.0.2/24 brd 10.1.0.255",
            "inet6 fd07::2/64",
            "noprefixroute",
        ] {
            assert!(addresses.contains(wanted), "{wanted}: {addresses}");
        }
        let routes: Vec<_> = ip("route")
            .lines()
            .map(|line| line.trim().to_owned())
            .collect();
        assert_eq!(
            routes,
            [
                "default via 10.1.0.1 dev eth0 proto static mtu 1300",
                "10.1.0.0/24 dev eth0 proto static scope link src 10.1.0.2",
                "192.0.2.0/24 via 169.254.1.1 dev eth0 proto static metric 7 onlink",
            ]
        );
        let routes = ip("-6 route");
        for wanted in ["fd07::/64 dev eth0", "default via fd07::1 dev eth0"] {
            assert!(routes.contains(wanted), "{routes}");
        }
        assert!(
            ip("neighbour").contains("169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT")
        );
    });
}

#[test]
fn interfaces_are_told_apart_by_their_addresses_whatever_their_names_are() {
    isolated(|| async {
        add_link("eth0", "02:00:00:00:00:02");
        add_link("eth1", "02:00:00:00:00:01");
        let wanted = [interface("eth0", 1), interface("eth1", 2)];
        set_up_all(&wanted).await.unwrap();
        assert!(ip("link show eth0").contains("02:00:00:00:00:01"));
        assert!(ip("address show eth0").contains("10.1.0.2"));
        assert!(ip("link show eth1").contains("02:00:00:00:00:02"));
    });
}

#[test]
fn a_point_to_point_address_has_its_peer() {
    isolated(|| async {
        add_link("eth0", "02:00:00:00:00:01");
        let mut wanted = interface("eth0", 1);
        wanted.addresses[0].prefix_len = 32;
        wanted.addresses[0].peer = vec![10, 1, 0, 1];
        set_up_all(&[wanted]).await.unwrap();
        let addresses = ip("address show eth0");
        assert!(
            addresses.contains("inet 10.1.0.2 peer 10.1.0.1/32"),
            "{addresses}"
        );
    });
}

#[test]
fn an_interface_may_appear_when_the_bus_is_searched() {
    isolated(|| async {
        let search = || {
            add_link("late", "02:00:00:00:00:01");
            Ok(())
        };
        let wanted = check(&[interface("eth0", 1)]).unwrap();
        set_up(&wanted, search).await.unwrap();
        assert!(ip("address show eth0").contains("10.1.0.2"));
    });
}

#[test]
fn an_interface_that_does_not_appear_is_named() {
    isolated(|| async {
        let error = set_up_all(&[interface("eth0", 1)]).await.unwrap_err();
        let named = matches!(&error, NetworkError::NotFound { name, .. } if name == "eth0");
        assert!(named, "{error}");
    });
}
