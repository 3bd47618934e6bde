"""Compile the accelerator of prompts while pip builds the wheel; without a compiler, make the wheel without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "libpocketvlm_accelerator.so"
PLACE = Path("pocketvlm") / "native" / LIBRARY
OFF = os.environ.get("POCKETVLM_ACCELERATOR") == "off"


def _cmake_works() -> bool:
    """Whether there is a CMake that is new enough. A script of another environment does not run in pip's own."""
    try:
        shown = subprocess.run(["cmake", "--version"], check=True, capture_output=True, text=True).stdout
        major, minor = shown.split()[2].split(".")[:2]
        return (int(major), int(minor)) >= (3, 21)
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        return False


class AcceleratorHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Name what pip has to install for the build. llama-cpp-python's own build asks for CMake in the same way."""
        return [] if OFF or _cmake_works() else ["cmake>=3.21"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library to the wheel, or put it next to the sources for an editable install."""
        editable = Path(self.root) / "runtime" / PLACE
        if version == "editable":
            with suppress(OSError):  # where the sources may not be written, there is none
                editable.unlink(missing_ok=True)
        if OFF:
            return
        self._folder = tempfile.TemporaryDirectory(prefix="pocketvlm-")  # until `finalize`: the wheel reads from it
        library = self._compile(Path(self._folder.name))
        if library is None:
            return
        if version == "editable":
            try:
                shutil.copy2(library, editable)
            except OSError as error:
                self.app.display_warning(f"The accelerator of prompts is left out, it cannot be written: {error}")
            return
        build_data["force_include"][str(library)] = str(PLACE)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, *_: Any) -> None:
        """Remove the files of the build."""
        if not OFF:
            self._folder.cleanup()

    def _compile(self, folder: Path) -> Path | None:
        source = Path(self.root) / "runtime" / "native"
        try:
            for command in (["cmake", "-S", source, "-B", folder], ["cmake", "--build", folder, "--parallel"]):
                subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            output = getattr(error, "stdout", None) or str(error)
            self.app.display_warning(f"The accelerator of prompts is left out, it could not be compiled:\n{output}")
            return None
        library = folder / LIBRARY
        if not library.exists():
            self.app.display_warning("The accelerator of prompts is left out: it is not for this system.")
            return None
        return library
