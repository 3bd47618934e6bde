"""Peak anonymous memory of a conversion: SmolVLM-256M shapes, random bfloat16 weights, about 500 MB.

The limit is twice the largest tensor + 300 MB. Mapped files are not counted (RssAnon of /proc/PID/status, the
converting process and its children together), because the system can drop their pages at any time. Linux only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkpoint import write_checkpoint


def anonymous_kb(pid: int) -> int:
    """RssAnon of a process and of its children."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # the process has ended
        return 0
    own = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)
    return own + sum(anonymous_kb(int(child)) for child in children)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="pocketvlm-bench-") as name:
        folder = Path(name) / "checkpoint"
        folder.mkdir()
        largest = write_checkpoint(folder)
        size = (folder / "model.safetensors").stat().st_size
        call = "import sys; from pocketvlm_converters.convert import convert; convert(*sys.argv[1:], verify=False)"
        began, peak = time.perf_counter(), 0
        with subprocess.Popen([sys.executable, "-c", call, str(folder), str(Path(name) / "bundle")]) as process:
            while process.poll() is None:
                peak = max(peak, anonymous_kb(process.pid))
                time.sleep(0.01)
        seconds = time.perf_counter() - began
        if process.returncode:
            return process.returncode
    limit = 2 * largest / 1e6 + 300
    peak_mb = peak * 1024 / 1e6
    print(f"checkpoint {size / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB, converted in {seconds:.0f} s")
    print(f"peak anonymous memory {peak_mb:.0f} MB, limit {limit:.0f} MB, ratio {peak_mb / limit:.2f}")
    return int(peak_mb >= limit)


if __name__ == "__main__":
    sys.exit(main())
