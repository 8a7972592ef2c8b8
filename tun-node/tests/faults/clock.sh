# Sourced by the init of a user-mode Linux, with PROGRAM and CONFIGS (a directory with 1.toml and
# 2.toml) set: two daemons in two namespaces, and a wall clock that is set while packets flow. Says
# what it saw as lines that begin with @@.
ip link set lo up
for node in 1 2; do ip netns add n$node; done
ip -n n1 link add wire type veth peer name wire netns n2
for node in 1 2; do
    ip -n n$node link set lo up
    ip -n n$node link set wire addrgenmode none up
    ip -n n$node addr add 192.0.2.$node/24 dev wire
    ip -n n$node addr add 2001:db8:99::$node/64 dev wire nodad
    ip netns exec n$node $PROGRAM run --log info --config $CONFIGS/$node.toml 2>/run/log$node &
done
ask() { # node, command
    $PROGRAM $2 --socket /run/run$1/n$1.sock --json
}
ready() {
    ask 1 status | grep -q '"ready": *true' && ask 2 status | grep -q '"ready": *true'
}
# The guest's time is the only one there is to wait by.
for _ in $(seq 600); do
    ready 2>/dev/null && break
    sleep 0.1
done
ready && echo "@@READY"
ping_while() { # what to do meanwhile
    ip netns exec n1 busybox ping -c 12 10.244.2.1 >/run/ping &
    local ping=$!
    sleep 3
    eval "$1"
    wait $ping
    echo "@@PING $1: $(grep received /run/ping)"
    ready && echo "@@READY after $1"
    ask 1 peers | tr -d ' \n' | sed 's/^/@@PEERS /'
    echo
    ip -n n1 route show | grep -c 'proto 87' | sed 's/^/@@ROUTES /'
}
YEAR=31536000
ping_while "true"
ping_while "date -s @$(($(date +%s) + YEAR)) >/dev/null"
ping_while "date -s @$(($(date +%s) - 2 * YEAR)) >/dev/null"
for node in 1 2; do
    grep -c . /run/log$node | sed "s/^/@@LINES $node: /"
    sed "s/^/@@LOG $node: /" /run/log$node
done
echo "@@END"
