#!/bin/busybox sh
# The first process of a guest (see mod.rs): loads the modules that the guest was given, runs its script, and reports
# on the second serial port. `say WORDS` is the script's word to the host.
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ LC_ALL=C
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp
stty -F /dev/ttyS1 raw -echo
say() { echo "say $*" >/dev/ttyS1; }
end() {
    # A change of settings waits until the console has sent what it has: the host looks there for reasons.
    stty -F /dev/ttyS0 -echo
    echo "end $1" >/dev/ttyS1
    # QEMU is ended by the host, which has read it; if not, the machine ends by itself.
    sleep 5
    poweroff -f
}
while read -r file arguments; do
    insmod "/modules/$file" $arguments || end "module $file"
done </modules.list
read -r up _ </proc/uptime
say "begins after $up s"
(
    set -e
    . /script
)
end "status $?"
