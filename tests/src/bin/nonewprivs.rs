//! Tells its effective user: set-user-id in critest's image `nonewprivs`.

fn main() {
    println!("Effective uid: {}", rustix::process::geteuid().as_raw());
}
