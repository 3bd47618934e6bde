#!/usr/bin/env bash
# Cross-builds the native libraries for arm64, puts them with the Python runtime into an arm64 Debian root, and has iota
# answer there under qemu-user, beside its answers here. As root, on Debian or Ubuntu with
#   apt install debootstrap qemu-user-static g++-aarch64-linux-gnu cmake
# Everything lies in build/ and is made once. ARM_CPU is the processor to pretend (qemu-aarch64-static -cpu help), FIRST how
# many questions to ask: an emulator is slow.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-$PWD/.venv/bin/python}
PRESET=aarch64-linux
WORK=$PWD/build/aarch64
ROOT=$WORK/root
WHEELS=$WORK/wheels
ANSWERS=$WORK/answers
LLAMA=$(sed -n 's/^\(llama-cpp-python==[^ ]*\).*/\1/p' cmake/llama-cpp-python.txt)
ARM_CPU=${ARM_CPU:-cortex-a76} # of a Raspberry Pi 5
FIRST=${FIRST:-24}

say() { echo "== $*"; }
missing=$(for tool in debootstrap qemu-aarch64-static aarch64-linux-gnu-g++ cmake; do command -v $tool >/dev/null || echo $tool; done)
[ -z "$missing" ] || { echo "missing:" $missing; exit 2; }
[ "$(id -u)" = 0 ] || { echo "run it as root: it makes a root file system and enters it"; exit 2; }
mkdir -p "$WORK"

say "libraries"
cmake --preset $PRESET ${CMAKE_ARGS:-}
cmake --build --preset $PRESET

if [ ! -e "$ROOT/.done" ]; then
    say "an arm64 root"
    rm -rf "$ROOT"
    # The packages are for another processor: they are unpacked, not configured.
    debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,libgomp1,libstdc++6 bookworm "$ROOT" >"$WORK/root.log"
    for package in "$ROOT"/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$ROOT"; done
    cp "$(command -v qemu-aarch64-static)" "$ROOT/usr/bin/"
    touch "$ROOT/.done"
fi

say "the runtime and its dependencies, as wheels for arm64"
mkdir -p "$WHEELS"
rm -f "$WHEELS"/pocketvlm-*.whl
# The accelerator would be for this processor; the libraries above have one.
POCKETVLM_ACCELERATOR=off "$PYTHON" -m pip wheel -q --no-deps -w "$WHEELS" .
if [ ! -e "$WHEELS/.done" ]; then
    # llama-cpp-python has no wheels. Its Python side alone holds no machine code, so it is built here.
    CMAKE_ARGS=-DLLAMA_BUILD=OFF "$PYTHON" -m pip wheel -q --no-deps --no-binary llama-cpp-python -w "$WHEELS" "$LLAMA"
    "$PYTHON" - "$WHEELS"/*.whl >"$WORK/requirements.txt" <<'END'
import sys, zipfile
for path in sys.argv[1:]:
    with zipfile.ZipFile(path) as wheel:
        metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        for line in wheel.read(metadata).decode().splitlines():
            if line.startswith("Requires-Dist: ") and "extra ==" not in line and "llama-cpp-python" not in line:
                print(line.removeprefix("Requires-Dist: "))
END
    version=$(basename "$(ls -d "$ROOT"/usr/lib/python3.[0-9]*)")
    platforms=(--platform manylinux2014_aarch64)
    for glibc in $(seq 17 36); do platforms+=(--platform "manylinux_2_${glibc}_aarch64"); done
    "$PYTHON" -m pip download -q --only-binary=:all: "${platforms[@]}" --python-version "${version#python}" \
        -d "$WHEELS" -r "$WORK/requirements.txt"
    touch "$WHEELS/.done"
fi

say "all of it in the root"
rm -rf "$ROOT/opt/pocketvlm" "$ROOT/usr/lib/pocketvlm"
mkdir -p "$ROOT/opt/pocketvlm"
for wheel in "$WHEELS"/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$ROOT/opt/pocketvlm"; done
DESTDIR=$ROOT cmake --install build/$PRESET --prefix /usr >/dev/null

say "iota's answers here"
PYTHONPATH=runtime:models POCKETVLM_NATIVE=llama-cpp-python "$PYTHON" tests/native/answers.py write "$ANSWERS"

say "iota's answers on arm64 ($ARM_CPU)"
cp -r "$ANSWERS" tests/native/answers.py docs/sample.png "$ROOT/opt/"
arm() {
    env -i PATH="$PATH" HOME=/tmp PYTHONPATH=/opt/pocketvlm QEMU_CPU="$ARM_CPU" COLUMNS=120 \
        chroot "$ROOT" /usr/bin/qemu-aarch64-static /usr/bin/python3 "$@"
}
arm -m pocketvlm doctor
arm -m pocketvlm chat "What is in the picture?" -i /opt/sample.png
arm /opt/answers.py compare /opt/answers --first "$FIRST"
