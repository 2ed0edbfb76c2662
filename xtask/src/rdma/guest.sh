#!/bin/sh
# What the emulated machine does: it makes an RDMA device out of a network device, runs the checks, and ends.
# `cargo xtask rdma` reads the lines that begin with @@ from the serial console.
export PATH=/bin SHOAL_HOME=/tmp/home SHOAL_ISA=scalar RUST_BACKTRACE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mkdir -p /tmp/home

# The shell has one of its own, which cannot do all of this.
ip() { /bin/ip "$@"; }

# Runs a check and tells how it went.
check() {
    echo "@@ begin $1"
    "$1"
    echo "@@ end $1 $?"
}

fail() {
    echo "$*"
    return 1
}

# Waits until a command succeeds, for a minute at most.
eventually() {
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || fail "never: $*" || return
        sleep 0.1
    done
}

device() {
    for module in $(cat /modules/order); do
        insmod "/modules/$module" || return
    done
    ip link set lo up &&
        ip link add va type veth peer name vb &&
        ip addr add 10.9.0.1/24 dev va &&
        ip link set va up && ip link set vb up &&
        rdma link add rxe_a type rxe netdev va &&
        ibv_devices | grep rxe_a
}

# Runs a suite over one kind of connection; a world that has no device fails it.
suite() {
    SHOAL_TEST_RDMA=$2 timeout 600 "/opt/$1" --test-threads=2
}

lanes_reliable() { suite lanes rc; }
lanes_unreliable() { suite lanes uc; }
conformance_reliable() { suite conformance rc; }
conformance_unreliable() { suite conformance uc; }
collectives_reliable() { suite collectives rc; }
collectives_unreliable() { suite collectives uc; }

# Tests links, and looks for what carried the bytes. The status is of no use: nothing is fast enough here to be called healthy.
links() {
    transport=$1
    carrier=$2
    shift 2
    SHOAL_TRANSPORT=$transport timeout 600 /opt/shoal --log debug fabric test --sizes 4K,64K,1M --rounds 2 "$@" >/tmp/links 2>&1
    cat /tmp/links
    grep -q "^2 ranks .*, $carrier, connected" /tmp/links && grep -q '^data .*every byte is right' /tmp/links
}

# Sums of the sweep, which lie in a region, go out without being copied.
over_one() {
    links "$1" rdma --nodes 2 && grep "rxe_a, $2 connection" /tmp/links && grep 'uncopied_bytes=[1-9]' /tmp/links
}

links_reliable() { over_one rdma reliable; }
links_unreliable() { over_one rdma-unreliable unreliable; }

generate() {
    SHOAL_TRANSPORT=$1 timeout 600 /opt/shoal run --raw --temperature 0 --max-tokens 6 --nodes 2 \
        --model /opt/tiny.gguf abc 2>/tmp/progress
}

tokens_as_over_tcp() {
    generate tcp >/tmp/tcp && [ -s /tmp/tcp ] || fail "over TCP: $(cat /tmp/progress)" || return
    for transport in rdma rdma-unreliable; do
        generate $transport >/tmp/tokens || fail "over $transport: $(cat /tmp/progress)" || return
        cmp /tmp/tcp /tmp/tokens || return
    done
}

# Starts a node that serves the folder `$1`, as process $node.
start_node() {
    mkdir -p "$1"
    echo secret >/tmp/token
    chmod 600 /tmp/token
    SHOAL_TRANSPORT=rdma /opt/shoal node --listen 127.0.0.1:7070 --token-file /tmp/token --root "$1" >/tmp/node 2>&1 &
    node=$!
    eventually grep -q waiting /tmp/node
}

# Copies with SHOAL_TRANSPORT=$1, and looks for what carried the bytes.
copy_over() {
    transport=$1
    carrier=$2
    shift 2
    SHOAL_TRANSPORT=$transport timeout 600 /opt/shoal --log info cp --json --token-file /tmp/token "$@" >/tmp/copied 2>/tmp/progress
    cat /tmp/copied /tmp/progress
    grep -q '"ok":true' /tmp/copied && grep -q "\"transport\":\"$carrier\"" /tmp/copied
}

is_device_held() { rdma resource show qp | grep -q 'type [RU]C'; }
is_device_free() { ! is_device_held; }

copy_to_a_node() {
    mkdir -p /tmp/tree/below
    head -c 3000000 /opt/shoal >/tmp/tree/large
    echo small >/tmp/tree/below/small
    : >/tmp/tree/empty
    to=127.0.0.1:7070
    start_node /tmp/served &&
        copy_over auto rdma --transport rdma /tmp/tree $to:copied/ && diff -r /tmp/tree /tmp/served/copied/tree &&
        grep 'lanes up.*through rxe_a, reliable' /tmp/node &&
        copy_over auto rdma --verify $to:copied/tree /tmp/back && diff -r /tmp/tree /tmp/back &&
        copy_over rdma-unreliable rdma /tmp/tree $to:unreliable/ && diff -r /tmp/tree /tmp/served/unreliable/tree &&
        copy_over auto rdma /tmp/tree $to:copied/ && grep '"bytes_received":0' /tmp/copied &&
        copy_over auto tcp --transport tcp /tmp/tree $to:tcp/ && diff -r /tmp/tree /tmp/served/tcp/tree &&
        copy_over tcp tcp /tmp/tree $to:tcp/ &&
        eventually is_device_free
    status=$?
    # A rank of the node uses the device as well.
    links rdma rdma --peer 127.0.0.1:7070 --token-file /tmp/token || status=1
    kill $node
    return $status
}

# Begins a copy over RDMA that takes longer than what is done to it, as process $copy.
begin_copy() {
    head -c 3000000 /opt/shoal >/tmp/large
    timeout 60 /opt/shoal cp --json --transport rdma --limit-rate 200K --token-file /tmp/token /tmp/large 127.0.0.1:7070: >/tmp/copied 2>&1 &
    copy=$!
    eventually test -s "$1/.large.shoal-part" && is_device_held || { cat /tmp/copied /tmp/node; return 1; }
}

copy_killed() {
    start_node /tmp/cut && begin_copy /tmp/cut || return
    kill -9 $node
    wait $copy
    status=$?
    cat /tmp/copied
    [ $status -eq 1 ] && grep -q '"ok":false' /tmp/copied && is_device_free || return

    start_node /tmp/other && begin_copy /tmp/other || return
    kill -9 $copy
    eventually grep 'copy stopped' /tmp/node && eventually is_device_free &&
        copy_over auto rdma --transport rdma /tmp/large 127.0.0.1:7070: && cmp /tmp/large /tmp/other/large
    status=$?
    kill $node
    return $status
}

# Runs a test without end over `$1`, does `$2` to it once bytes flow, and wants an error that names a rank.
disturbed() {
    : >/tmp/err
    SHOAL_TRANSPORT=$1 timeout 600 /opt/shoal fabric test --nodes 2 --sizes 4K --rounds 2 --stress --seconds 600 --verbose >/tmp/out 2>/tmp/err &
    test=$!
    eventually grep -q 'stress:' /tmp/err || { cat /tmp/err; return 1; }
    "$2" || kill $test
    wait $test
    status=$?
    cat /tmp/out /tmp/err
    # The outcome, not the news on the way; and not that the time was over.
    [ $status -eq 1 ] && grep "^error: .*$3" /tmp/err && ! grep -q interrupted /tmp/err
}

rank_1() {
    sed -n 's/.*rank 1 is process \([0-9]*\).*/\1/p' /tmp/err
}

kill_rank_1() {
    kill -9 "$(rank_1)"
}

take_link_down() {
    ip link set va down
}

# Rank 0 has nothing to send then, and hears nothing: all that it can learn is the state of the port.
take_link_down_in_silence() {
    kill -STOP "$(rank_1)" && sleep 1 && take_link_down
}

# Packets that a device has sent.
packets() { cat "/sys/class/infiniband/$1/ports/1/hw_counters/sent_pkts"; }

# Does something while there is a second device, over which some of the bytes have to go: a tenth of all packets at least.
over_two() {
    ip link add vc type veth peer name vd &&
        ip addr add 10.9.1.1/24 dev vc &&
        ip link set vc up && ip link set vd up &&
        rdma link add rxe_b type rxe netdev vc || return
    a=$(packets rxe_a)
    b=$(packets rxe_b)
    export SHOAL_TEST_RDMA_DEVICES=2
    "$@"
    status=$?
    unset SHOAL_TEST_RDMA_DEVICES
    a=$(($(packets rxe_a) - a))
    b=$(($(packets rxe_b) - b))
    echo "packets sent: $a by rxe_a, $b by rxe_b"
    rdma link delete rxe_b
    ip link delete vc
    [ $a -gt $((b / 9)) ] && [ $b -gt $((a / 9)) ] && return $status
}

both_carry() { links "$1" rdma --nodes 2 && grep 'rdma over 2 devices: rxe_a, rxe_b' /tmp/links; }

links_over_two_reliable() { over_two both_carry rdma; }
links_over_two_unreliable() { over_two both_carry rdma-unreliable; }
lanes_over_two_reliable() { over_two suite lanes rc; }
conformance_over_two_reliable() { over_two suite conformance rc; }

take_second_down() {
    ip link set vc down
}

# The end of one device is the end of the link, and the error names it.
one_of_two_down() { over_two disturbed rdma take_second_down 'rank [01].* on rxe_b'; }

peer_killed_reliable() { disturbed rdma kill_rank_1 'rank 1'; }
peer_killed_unreliable() { disturbed rdma-unreliable kill_rank_1 'rank 1'; }

# Takes the link up again after a check that took it down.
for_a_while() {
    "$@"
    status=$?
    ip link set va up
    eventually grep -q ACTIVE /sys/class/infiniband/rxe_a/ports/1/state && return $status
}

link_down_unheard() { for_a_while disturbed rdma-unreliable take_link_down_in_silence 'rank 1.* port DOWN on rxe_a'; }
link_down_unreliable() { for_a_while disturbed rdma-unreliable take_link_down 'rank [01]'; }
link_down_reliable() { disturbed rdma take_link_down 'rank [01]'; }

# A port that is down is a reason, and no error where TCP is allowed.
port_down() {
    take_link_down
    eventually grep -q DOWN /sys/class/infiniband/rxe_a/ports/1/state || return
    links rdma,tcp tcp --nodes 2 || return
    if SHOAL_TRANSPORT=rdma timeout 600 /opt/shoal fabric test --nodes 2 --quick >/tmp/links 2>&1; then
        fail "there should be no links without a port"
        return
    fi
    cat /tmp/links
    grep -q 'port DOWN on rxe_a' /tmp/links
}

# Machines with a slow and lossy network between them: most hosts' kernels have nothing to make one with.
slow_network() {
    mkdir -p "$BUILT_IN" && ln -s /opt/shoal "$BUILT_IN/shoal" || return
    SHOAL_TRANSPORT=tcp SHOAL_REQUIRE_NETNS=1 SHOAL_REQUIRE_NETEM=1 timeout 600 /opt/namespaces --test-threads=1 held_back delay_and_loss
}

for name in $CHECKS; do
    check "$name"
done
echo "@@ over"
poweroff -f
