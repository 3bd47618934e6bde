#!/usr/bin/env bash
# Tries what `make wheels` has built, in roots without a compiler, a network or this checkout: Debian 12 from the wheels to
# an answer, Debian 11's C library, emulated CPUs of several generations, the steps of service/Containerfile, and arm64 if
# build/wheels has its wheels, and service/systemd if there is systemd-nspawn. As root, on Debian or Ubuntu with
#   apt install debootstrap qemu-user-static systemd-container
# Everything lies in build/wheels-test, and roots are made once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
WHEELS=$PWD/build/wheels
WORK=$PWD/build/wheels-test
LIMIT=${LIMIT:-45} # seconds from the wheels to the first answer, on a machine that does nothing else

say() { echo "== $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
missing=$(for tool in debootstrap qemu-x86_64-static qemu-aarch64-static unshare; do command -v $tool >/dev/null || echo $tool; done)
[ -z "$missing" ] || { echo "missing:" $missing; exit 2; }
[ "$(id -u)" = 0 ] || { echo "run it as root: it makes root file systems and enters them"; exit 2; }
mkdir -p "$WORK"

root() { # NAME SUITE PACKAGES: a root as it comes
    [ -e "$WORK/$1/.done" ] && return
    rm -rf "${WORK:?}/$1"
    debootstrap --variant=minbase --include="$3" "$2" "$WORK/$1" >"$WORK/$1.log"
    touch "$WORK/$1/.done"
}

fresh() { # NAME COPY: a root of its own for one test, with the wheels in it
    rm -rf "${WORK:?}/$2"
    cp -a "$WORK/$1" "$WORK/$2"
    mkdir "$WORK/$2/wheels"
    cp "$WHEELS"/*.whl "$WORK/$2/wheels"
    cp docs/sample.png "$WORK/$2/"
}

within() { # ROOT COMMAND...: without a network
    local folder=$WORK/$1
    shift
    unshare --net --mount --pid --fork --mount-proc="$folder/proc" \
        env -i PATH=/opt/pocketvlm/bin:/usr/local/bin:/usr/bin:/bin:/sbin HOME=/tmp COLUMNS=140 ${EXTRA:-} chroot "$folder" "$@"
}

say "Debian 12: from the wheels to an answer"
root debian12 bookworm python3,python3-pip,python3-venv
fresh debian12 first
began=$(date +%s.%N)
within first pip install -q --break-system-packages --root-user-action ignore --no-index --find-links /wheels pocketvlm
within first pocketvlm chat "What is in the picture?" -i /sample.png | tee "$WORK/answer"
took=$(echo "$(date +%s.%N) $began" | awk '{printf "%.1f", $1 - $2}')
say "$took s"
grep -q "red circle" "$WORK/answer" || fail "another answer"
awk "BEGIN {exit !($took <= $LIMIT)}" || fail "more than $LIMIT s"

say "Debian 11: libraries by ctypes"
root debian11 bullseye python3,libstdc++6
fresh debian11 old
cat >"$WORK/old/load.py" <<'END'
import ctypes, glob, zipfile
[wheel] = glob.glob("/wheels/llama_cpp_python-*_x86_64.whl")
zipfile.ZipFile(wheel).extractall("/opt/wheel")
for name in ("ggml-base", "ggml", "llama", "mtmd", "pocketvlm_accelerator"):
    [path] = glob.glob("/opt/wheel/llama_cpp/lib/lib%s.so" % name)
    library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    print("loaded", name)
    if name == "ggml":
        library.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
        library.ggml_backend_load_all_from_path(b"/opt/wheel/llama_cpp/lib")
        assert library.ggml_backend_dev_count() > 0, "no device"
library.pocketvlm_accelerator_kernel.restype = ctypes.c_char_p
print("kernel", library.pocketvlm_accelerator_kernel(None))
END
within old python3 /load.py

say "CPUs of several generations: the code that is chosen"
cp "$(command -v qemu-x86_64-static)" "$WORK/first/usr/bin/"
while read -r cpu code kernel; do
    # NumPy's OpenBLAS does not know emulated processors.
    EXTRA=OPENBLAS_CORETYPE=Nehalem within first /usr/bin/qemu-x86_64-static -cpu "$cpu" /usr/bin/python3 -W ignore \
        -m pocketvlm doctor >"$WORK/doctor" || { cat "$WORK/doctor"; fail "doctor on $cpu"; }
    grep -E "^(code for the CPU|accelerator)" "$WORK/doctor" | sed "s/^/$cpu: /"
    grep -qE "^code for the CPU +$code:" "$WORK/doctor" || fail "$cpu should use $code"
    grep -qE "^accelerator +$kernel:" "$WORK/doctor" || fail "$cpu should accelerate with $kernel"
done <<'END'
Nehalem sse42 none
SandyBridge,+xsave sandybridge none
IvyBridge,+xsave ivybridge none
Haswell haswell avx2
END

say "service/Containerfile, its steps in a root"
fresh debian12 container
awk '/^RUN/ {on = 1; sub(/^RUN /, "")} on {print} on && !/\\$/ {on = 0}' service/Containerfile |
    sed 's/--mount=[^ ]*//; s/^ *\\$//' >"$WORK/container/steps.sh"
within container sh -eux /steps.sh
within container setpriv --reuid 65532 --regid 65532 --clear-groups /opt/pocketvlm/bin/pocketvlm serve --help >/dev/null

if command -v systemd-nspawn >/dev/null; then
    say "service/systemd in a machine with systemd: a restart while clients ask"
    root machine bookworm python3,python3-pip,python3-venv,systemd,systemd-sysv,dbus
    fresh machine service
    within service sh -euc '
        python3 -m venv /opt/pocketvlm
        /opt/pocketvlm/bin/pip install -q --no-index --find-links /wheels "pocketvlm[server]"
        rm -rf /wheels'
    cp service/systemd/pocketvlm.* "$WORK/service/etc/systemd/system/"
    cp tests/native/restart.py "$WORK/service/"
    mkdir "$WORK/service/etc/systemd/system/pocketvlm.service.d"
    cat >"$WORK/service/etc/systemd/system/pocketvlm.service.d/slow.conf" <<'END'
# The test may run on a busy machine.
[Service]
ExecStart=
ExecStart=/opt/pocketvlm/bin/pocketvlm serve --log-json --offline --grace 300
TimeoutStopSec=310
END
    cat >"$WORK/service/etc/systemd/system/trial.service" <<'END'
[Unit]
After=pocketvlm.service
Wants=pocketvlm.service pocketvlm.socket
[Service]
Type=oneshot
StandardOutput=append:/result
StandardError=append:/result
ExecStart=/usr/bin/python3 /restart.py
ExecStopPost=/bin/sh -c 'systemd-analyze --no-pager security pocketvlm | tail -1; journalctl --no-pager -u pocketvlm -o cat | tail -20; systemctl poweroff --no-block'
[Install]
WantedBy=multi-user.target
END
    ln -sf /etc/systemd/system/trial.service "$WORK/service/etc/systemd/system/multi-user.target.wants/"
    timeout 900 systemd-nspawn -q --register=no --keep-unit --private-network -D "$WORK/service" -b >"$WORK/service.log" 2>&1 || true
    cat "$WORK/service/result"
    grep -q "^restarted in" "$WORK/service/result" && ! grep -q "^failed" "$WORK/service/result" || fail "the restart"
fi

if ls "$WHEELS"/llama_cpp_python-*_aarch64.whl >/dev/null 2>&1; then
    say "arm64, emulated: from the wheels to an answer"
    if [ ! -e "$WORK/arm64/.done" ]; then
        # The packages are for another processor: they are unpacked, not configured.
        rm -rf "$WORK/arm64"
        debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,python3-pip bookworm "$WORK/arm64" >"$WORK/arm64.log"
        for package in "$WORK"/arm64/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$WORK/arm64"; done
        cp "$(command -v qemu-aarch64-static)" "$WORK/arm64/usr/bin/"
        touch "$WORK/arm64/.done"
    fi
    fresh arm64 board
    arm() { EXTRA="QEMU_CPU=$1" within board /usr/bin/qemu-aarch64-static /usr/bin/python3 "${@:2}"; }
    arm max -m pip install -q --break-system-packages --root-user-action ignore --no-index --find-links /wheels pocketvlm
    arm max -W ignore -m pocketvlm chat "What is in the picture?" -i /sample.png | tee "$WORK/answer"
    grep -q "red circle" "$WORK/answer" || fail "another answer"
    while read -r cpu code; do
        arm "$cpu" -W ignore -m pocketvlm doctor >"$WORK/doctor" || { cat "$WORK/doctor"; fail "doctor on $cpu"; }
        grep -E "^(code for the CPU|accelerator)" "$WORK/doctor" | sed "s/^/$cpu: /"
        grep -qE "^code for the CPU +$code:" "$WORK/doctor" || fail "$cpu should use $code"
    done <<'END'
cortex-a72 armv8.0_1
cortex-a76 armv8.2_2
END
fi
say "done"
