#!/usr/bin/env bash
# Debian 12's Vulkan headers are older than ggml's Vulkan backend needs. Fetches Debian 13's with apt, installs nothing, and
# prints the argument that CMake then needs; prints nothing where the installed headers are new enough.
set -euo pipefail
if grep -qs LayerSettingEXT /usr/include/vulkan/vulkan_handles.hpp; then exit 0; fi

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/build/vulkan-headers
if [ ! -d "$folder/usr/include/vulkan" ]; then
    mkdir -p "$folder"/apt/lists/partial "$folder"/apt/cache/archives/partial
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -1)
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$folder/apt/sources.list"
    cat >"$folder/apt/apt.conf" <<END
Dir::Etc::SourceList "$folder/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$folder/apt/lists";
Dir::Cache "$folder/apt/cache";
END
    (
        cd "$folder"
        export APT_CONFIG=$folder/apt/apt.conf
        apt-get -qq update
        apt-get -qq download libvulkan-dev
    ) >&2
    dpkg -x "$folder"/libvulkan-dev_*.deb "$folder"
fi
echo "-DVulkan_INCLUDE_DIR=$folder/usr/include"
