# What `cargo xtask demo` runs where KVM is. In the environment: BINARIES, KERNEL, AGENT_IMAGE, IMAGES, and CRICTL if there
# is one.
set -euo pipefail
say() { printf '\n==> %s\n' "$*"; }
dir=$(mktemp -d /var/tmp/isopod-demo.XXXXXX)
pids=()
clean_up() {
  for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null && wait "$pid" 2> /dev/null || true; done
  rm -rf "$dir"
}
trap clean_up EXIT

cat > "$dir/registry.yml" << END
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: $IMAGES}
  maintenance: {readonly: {enabled: true}}
http: {addr: '127.0.0.1:0'}
END
port=$((20000 + RANDOM % 10000))
sed -i "s/127.0.0.1:0/127.0.0.1:$port/" "$dir/registry.yml"
docker-registry serve "$dir/registry.yml" > "$dir/registry.log" 2>&1 &
pids+=($!)

cat > "$dir/config.toml" << END
socket = "$dir/isopod.sock"
root_dir = "$dir/root"
state_dir = "$dir/state"
[vm]
vmm = "$BINARIES/isopod-vmm"
kernel = "$KERNEL"
agent_image = "$AGENT_IMAGE"
start_timeout_ms = 120000
[cni]
enabled = false
[registry.mirrors]
"registry.test" = [{ host = "127.0.0.1:$port", plain_http = true }]
END
mkdir -p "$dir/root" "$dir/state"
"$BINARIES/isopod" --config "$dir/config.toml" serve > "$dir/isopod.log" 2>&1 &
pids+=($!)
for _ in $(seq 300); do
  if [ -S "$dir/isopod.sock" ]; then break; fi
  sleep 0.1
done
if [ ! -S "$dir/isopod.sock" ]; then
  echo "the daemon did not start:" >&2
  cat "$dir/isopod.log" >&2
  exit 1
fi

image=registry.test/busybox:1
hello='echo "Hello from $(uname -n), Linux $(uname -r), in a microVM of its own."; grep MemTotal /proc/meminfo'
say "isopod run $image"
"$BINARIES/isopod" --config "$dir/config.toml" run --timings "$image" sh -c "$hello"

if [ -z "${CRICTL:-}" ]; then exit 0; fi
say 'The same through crictl, step by step'
cat > "$dir/sandbox.json" << END
{"metadata": {"name": "demo", "namespace": "default", "uid": "demo", "attempt": 0}, "hostname": "demo",
 "log_directory": "$dir/logs", "linux": {}}
END
cat > "$dir/container.json" << END
{"metadata": {"name": "hello"}, "image": {"image": "$image"}, "log_path": "hello.log", "linux": {},
 "labels": {"io.kubernetes.pod.name": "demo", "io.kubernetes.pod.namespace": "default"},
 "command": ["sh", "-c", $(printf '%s; sleep 600' "$hello" | sed 's/\\/\\\\/g; s/"/\\"/g; s/^/"/; s/$/"/')]}
END
printf 'runtime-endpoint: unix://%s\nimage-endpoint: unix://%s\ntimeout: 120\n' \
  "$dir/isopod.sock" "$dir/isopod.sock" > "$dir/crictl.yaml"
cri() {
  printf '$ crictl %s\n' "$*" >&2
  "$CRICTL" --config "$dir/crictl.yaml" "$@"
}
cri pull "$image"
pod=$(cri runp --runtime isopod "$dir/sandbox.json" 2> /dev/null)
container=$(cri create "$pod" "$dir/container.json" "$dir/sandbox.json" 2> /dev/null)
cri start "$container"
cri pods
cri ps
cri exec -s "$container" ps
cri logs "$container"
cri stop -t 0 "$container"
cri rm "$container"
cri stopp "$pod"
cri rmp "$pod"
