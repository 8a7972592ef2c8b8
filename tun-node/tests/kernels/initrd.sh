#!/bin/bash
# Makes an initial file system for a Debian cloud kernel: busybox, iproute2, the tunnel modules and an
# init that obeys what it reads from the console.
#
#   initrd.sh KERNEL_DIRECTORY OUTPUT     prints the kernel image's path
#
# KERNEL_DIRECTORY is where linux-image-*-cloud-amd64 was unpacked, or / where it is installed.
set -eu
kernel=${1%/} output=$2
image=$(ls "$kernel"/boot/vmlinuz-*-cloud-amd64 | tail -n 1)
version=${image##*/vmlinuz-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,sbin,proc,sys,dev,run,tmp,"lib/modules/$version"} "$work/kernel/lib/modules"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in sh mount modprobe insmod cat ping ping6 poweroff sleep grep tail nc httpd dd sha1sum stty head mkdir timeout wc; do
    ln -s busybox "$root/bin/$applet"
done
ip=$(readlink -f "$(command -v ip)")
cp "$ip" "$root/bin/ip"
ldd "$ip" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -Ln "$library" "$root$library"
done
cp -rs "$(readlink -f "$kernel/lib/modules/$version")" "$work/kernel/lib/modules/$version"
depmod -b "$work/kernel" "$version"
cp "$work/kernel/lib/modules/$version"/modules.* "$root/lib/modules/$version/"
for module in virtio_net virtio_pci ipip sit fou geneve vxlan; do
    modprobe -d "$work/kernel" -S "$version" --show-depends "$module" | awk '/^insmod/ { print $2 }' |
        while read -r file; do
            to=$root/lib/modules/$version/${file#*"/modules/$version/"}
            mkdir -p "$(dirname "$to")"
            cp -Ln "$file" "$to"
        done
done
cat >"$root/init" <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev; mount -t tmpfs t /run
stty -echo
for m in virtio_pci virtio_net ipip sit fou geneve vxlan; do modprobe $m; done
LINK=eth0
. /obey
INIT
cp "$(dirname "$0")/obey.sh" "$root/obey"
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$output"
echo "$image"
