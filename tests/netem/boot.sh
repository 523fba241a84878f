#!/bin/sh
# The first process of a User-mode Linux: runs the tests on its kernel, and ends it. The host's files are its root directory
# (hostfs); REPOSITORY, MODULES, PYTHON, RESULT and ARGUMENTS come from the kernel's command line. What tests write stays in its memory.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs run /run
mkdir -p /run/result /dev/pts /dev/shm
mount -t hostfs none /run/result -o "$RESULT"
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mkdir -p "$REPOSITORY"  # gone if it is in /tmp
mount -t hostfs none "$REPOSITORY" -o "$REPOSITORY"
ip link set lo up
cd "$REPOSITORY" || exit
eval "set -- $ARGUMENTS"
"$PYTHON" -c '
import ctypes, os, pathlib, sys
for name in ("tun", "veth", "sch_netem"):
    module = os.open(next(pathlib.Path(sys.argv[1]).rglob(name + ".ko")), os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).syscall(313, module, b"", 0):  # finit_module(2)
        sys.exit(f"{name}: {os.strerror(ctypes.get_errno())}")
' "$MODULES" && "$PYTHON" -m pytest -p no:cacheprovider tests/netem "$@"
echo $? > /run/result/status
sync
"$PYTHON" -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321FEDC)'  # RB_POWER_OFF, reboot(2)
