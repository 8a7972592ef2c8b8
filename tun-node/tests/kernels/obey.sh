# Sourced by the init of either guest, with LINK set: brings the underlay up, then obeys the console.
IP=/bin/ip
[ -x /usr/sbin/ip ] && IP=/usr/sbin/ip
[ -x /sbin/ip ] && IP=/sbin/ip
$IP link set lo up
$IP addr add 192.0.2.2/24 dev $LINK
$IP link set $LINK up
$IP addr add 10.244.2.1/32 dev lo
$IP addr add fd00:10:244:2::1/128 dev lo
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
mkdir -p /run/www
dd if=/dev/urandom of=/run/www/file bs=1024 count=1024 2>/dev/null
busybox httpd -p 80 -h /run/www
busybox httpd -p '[::]:81' -h /run/www
# Routes to the other side through device $1.
via() {
    $IP link set "$1" up
    $IP route replace 10.244.1.0/24 dev "$1" src 10.244.2.1
    $IP -6 route replace fd00:10:244:1::/64 dev "${2:-$1}" src fd00:10:244:2::1
}
# The same through an Ethernet device whose neighbours nobody answers for.
via_ethernet() {
    $IP link set "$1" address 02:00:00:00:00:02 up
    $IP neigh replace 10.244.1.1 lladdr 02:00:00:00:00:01 dev "$1"
    $IP neigh replace fd00:10:244:1::1 lladdr 02:00:00:00:00:01 dev "$1"
    $IP route replace 10.244.1.0/24 via 10.244.1.1 dev "$1" onlink src 10.244.2.1
    $IP -6 route replace fd00:10:244:1::/64 via fd00:10:244:1::1 dev "$1" onlink src fd00:10:244:2::1
}
echo "@@READY $(cat /proc/sys/kernel/osrelease)"
while read -r line; do
    eval "$line"
    echo "@@DONE $?"
done
