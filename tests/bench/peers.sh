# shellcheck shell=bash
# The filesystems that are compared. `up PEER` mounts $tmp/dir/PEER on $tmp/mnt/PEER with new processes on
# both sides, `down` ends them. Read by `run`, which sets tmp and bin.
#
#     ours     spiderweb-fs-node and spiderweb-fs-mount
#     old      the same node and mount over the base protocol: no extensions, JSON
#     bare     sshfs to a bare sftp-server over TCP: no encryption
#     sshfs    sshfs with its defaults, to an sshd of its own on loopback
#     local    the exported directory itself: a yardstick

sftp_server=/usr/lib/openssh/sftp-server
sshd=$(PATH=$PATH:/usr/sbin:/sbin command -v sshd || true)

# What runs now: name and pid.
declare -A running=()
mounted=

# start NAME COMMAND... - in the background, with a log.
start() {
    local name=$1
    shift
    # Before the process: who waits for its words must not find those of the last one.
    : >"$tmp/log/$name"
    "$@" >>"$tmp/log/$name" 2>&1 </dev/null &
    running[$name]=$!
}

# wait_for COMMAND... - until it succeeds; 10 s.
wait_for() {
    local i
    for ((i = 0; i < 500; i++)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.02
    done
    echo "bench: waited in vain for: $*" >&2
    return 1
}

is_mounted() { timeout 5 mountpoint -q "$tmp/mnt/$1"; }
accepts() { (exec 3<>"/dev/tcp/127.0.0.1/$1"); }
ended() { ! kill -0 "$1"; }

# A port that nobody listens on.
free_port() {
    local port
    for _ in {1..50}; do
        port=$((20000 + RANDOM % 12000))
        accepts "$port" 2>/dev/null || { echo "$port" && return; }
    done
    return 1
}

up() {
    mkdir -p "$tmp/dir/$1" "$tmp/mnt" "$tmp/log"
    if [ "$1" = local ]; then
        ln -sfn "$tmp/dir/local" "$tmp/mnt/local"
        return
    fi
    mkdir -p "$tmp/mnt/$1"
    mounted=$1
    "up_$1" && wait_for is_mounted "$1"
}

down() {
    local name
    if [ -n "$mounted" ] && is_mounted "$mounted"; then
        timeout 10 fusermount3 -u "$tmp/mnt/$mounted" 2>/dev/null ||
            timeout 10 fusermount3 -uz "$tmp/mnt/$mounted" || true
    fi
    mounted=
    for name in "${!running[@]}"; do
        kill "${running[$name]}" 2>/dev/null || true
        wait_for ended "${running[$name]}" || kill -9 "${running[$name]}" 2>/dev/null || true
        wait "${running[$name]}" 2>/dev/null || true
    done
    running=()
}

# far PORT - where to dial to reach it: behind a line of LINE_MS each way, if there is to be one.
far() {
    dial=$1
    [ "${LINE_MS:-0}" -gt 0 ] || return 0
    dial=$(free_port)
    start line "$BENCH" relay "127.0.0.1:$dial" "127.0.0.1:$1" "$LINE_MS"
    wait_for accepts "$dial"
}

up_node() {
    start node "$bin/spiderweb-fs-node" --port 0 --export "work=$tmp/dir/$1"
    wait_for grep -q 'listening at ws:' "$tmp/log/node"
    far "$(sed -n 's|.*listening at ws://[^ /]*:\([0-9]*\)/.*|\1|p' "$tmp/log/node")"
    url=ws://127.0.0.1:$dial/v2/fs
}

up_ours() {
    up_node ours
    start mount "$bin/spiderweb-fs-mount" --endpoint "a=$url#work@/" mount "$tmp/mnt/ours"
}

up_old() {
    up_node old
    start mount "$bin/examples/bench" mount-old "$url" "$tmp/mnt/old"
}

up_bare() {
    local port
    port=$(free_port)
    start sftp socat "TCP-LISTEN:$port,bind=127.0.0.1,fork,reuseaddr,nodelay" "EXEC:$sftp_server"
    wait_for accepts "$port"
    far "$port"
    start mount sshfs -f -o "directport=$dial" "127.0.0.1:$tmp/dir/bare" "$tmp/mnt/bare"
}

up_sshfs() {
    local port
    port=$(free_port)
    sshd_files
    start sshd "$sshd" -D -e -f "$tmp/ssh/config" -p "$port"
    wait_for accepts "$port"
    far "$port"
    start mount sshfs -f -p "$dial" -F "$tmp/ssh/client" "127.0.0.1:$tmp/dir/sshfs" "$tmp/mnt/sshfs"
}

# Keys and settings that are thrown away; the system's stay as they are.
sshd_files() {
    [ -e "$tmp/ssh" ] && return
    mkdir -m 700 "$tmp/ssh"
    ssh-keygen -q -t ed25519 -N '' -f "$tmp/ssh/host"
    ssh-keygen -q -t ed25519 -N '' -f "$tmp/ssh/user"
    cat >"$tmp/ssh/config" <<END
ListenAddress 127.0.0.1
HostKey $tmp/ssh/host
AuthorizedKeysFile $tmp/ssh/user.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
Subsystem sftp $sftp_server
END
    cat >"$tmp/ssh/client" <<END
IdentityFile $tmp/ssh/user
IdentitiesOnly yes
UserKnownHostsFile /dev/null
StrictHostKeyChecking no
LogLevel ERROR
END
    # sshd as root insists on this directory.
    if [ "$(id -u)" = 0 ] && [ ! -e /run/sshd ]; then
        mkdir -m 755 /run/sshd
        made_run_sshd=yes
    fi
}

# unable PEER TEST - the base protocol has no words for modes and times.
unable() { [ "$*" = "old untar" ]; }

# The peers that this machine can run, of those in PEERS.
available() {
    local peer missing
    for peer in ${PEERS:-ours old bare sshfs local}; do
        missing=
        case $peer in
            bare) missing=$(lacking sshfs socat "$sftp_server") ;;
            sshfs) missing=$(lacking sshfs ssh ssh-keygen "$sftp_server" "${sshd:-sshd}") ;;
        esac
        if [ -z "$missing" ]; then
            echo "$peer"
        else
            echo "bench: $peer is left out, for want of:$missing" >&2
        fi
    done
}

lacking() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null 2>&1 || printf ' %s' "$program"
    done
}
