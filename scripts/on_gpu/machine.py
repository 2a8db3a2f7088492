"""The GPU, its drivers, and the environment that flashtile runs in."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

# Seconds for a question to a driver's own tools. They answer within one, or hang.
PATIENCE = 30.0

# Containers are given the driver here, and neither the linker nor the shell may know about it.
NVIDIA = Path("/usr/local/nvidia")

# What nvidia-smi is asked about the GPU: none of it changes during a run.
GPU_VALUES = ["pci.bus_id", "driver_version", "memory.total", "power.limit", "clocks.max.sm"]

# Where NVIDIA's installers and container tools put the manifest of its Vulkan driver.
MANIFESTS = [
    "/etc/vulkan/icd.d",
    "/usr/share/vulkan/icd.d",
    "/usr/local/share/vulkan/icd.d",
    "/usr/local/nvidia/share/vulkan/icd.d",
    "/run/opengl-driver/share/vulkan/icd.d",
]


class Machine:
    """What this machine has. Everything else asks here and nowhere else."""

    def __init__(self, bundle, work, processes):
        self.bundle = bundle
        self.work = work
        self.processes = processes
        self._gpu_values = None
        self._linker_cache = None
        self.system = dict(os.environ)  # for programs that bring their own libraries: torch
        # One GPU of several, the same for all competitors. nvidia-smi counts by bus address.
        self.gpu = self.system.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
        self.system.update(CUDA_DEVICE_ORDER="PCI_BUS_ID", CUDA_VISIBLE_DEVICES=self.gpu)
        self._find_driver()
        self.has_nvidia_gpu = any(
            line.startswith("GPU ") for line in self._ask_nvidia("-L").splitlines()
        )
        self.own = dict(self.system)  # for flashtile and the conformance tests
        self._lend_libraries()
        self.vulkan_driver, self.devices = self._choose_vulkan_driver()

    def environment(self, **more):
        """Environment variables for flashtile, with `more`."""
        return dict(self.own, **more)

    def first(self, backend):
        """The backend's first device as `flashtile devices --json` describes it, or None."""
        return next((d for d in self.devices if d.get("backend") == backend), None)

    def adapter(self, backend):
        """The number of the device to measure: for wgpu the same GPU as for CUDA."""
        adapters = [device for device in self.devices if device.get("backend") == backend]
        wanted = pci_address(self.gpu_value("pci.bus_id")) if backend == "wgpu" else None
        for device in adapters:
            if wanted is not None and pci_address(device.get("bus", "")) == wanted:
                return device["index"]
        return adapters[0]["index"] if adapters else 0

    def gpu_value(self, name):
        """One of GPU_VALUES, with its unit; empty if nvidia-smi does not say."""
        if self._gpu_values is None:
            query = f"--query-gpu={','.join(GPU_VALUES)}"
            answer = self._ask_nvidia("-i", self.gpu, query, "--format=csv,noheader")
            values = [value.strip() for value in answer.split("\n")[0].split(",")]
            self._gpu_values = dict(zip(GPU_VALUES, values))
        return self._gpu_values.get(name, "")

    def list_devices(self, env):
        """The devices that flashtile sees; none if the program fails."""
        program = self.bundle / "bin/flashtile"
        finished = self.processes.run(
            [str(program), "devices", "--json"], PATIENCE, env=env, with_errors=False
        )
        return json_objects(finished.output) if finished.status == 0 else []

    # ---- Finding ----------------------------------------------------------------------------

    def _ask_nvidia(self, *arguments):
        """What nvidia-smi prints; empty if there is none, or if it fails."""
        program = shutil.which("nvidia-smi", path=self.system.get("PATH"))
        if program is None:
            return ""
        finished = self.processes.run(
            [program, *arguments], PATIENCE, env=self.system, with_errors=False
        )
        return finished.output if finished.status == 0 else ""

    def _find_driver(self):
        prepend(self.system, "PATH", [NVIDIA / "bin"], last=True)
        if not all(map(self._system_has, ("libcuda.so.1", "libGLX_nvidia.so.0"))):
            prepend(self.system, "LD_LIBRARY_PATH", [NVIDIA / "lib64", NVIDIA / "lib"])

    def _system_has(self, library):
        """Whether the dynamic linker finds a library by its name."""
        if self._linker_cache is None:
            # Debian keeps ldconfig off the PATH of ordinary users.
            tool = shutil.which("ldconfig") or "/sbin/ldconfig"
            cache = self.processes.run([tool, "-p"], PATIENCE, with_errors=False).output
            self._linker_cache = {line.split()[0] for line in cache.splitlines() if "=>" in line}
        folders = self.system.get("LD_LIBRARY_PATH", "").split(":")
        return library in self._linker_cache or any(
            folder and os.path.exists(os.path.join(folder, library)) for folder in folders
        )

    def _lend_libraries(self):
        """Adds NVRTC, the Vulkan loader and what NVIDIA's Vulkan driver is linked with.

        Libraries that the system has are better than ours: they were made for its drivers.
        """
        lent = self.work / "lent"
        lent.mkdir()
        for library in sorted((self.bundle / "lib/system").glob("*")):
            if not self._system_has(library.name):
                (lent / library.name).symlink_to(library)
        prepend(self.own, "LD_LIBRARY_PATH", [lent])
        # Named exactly: flashtile prefers the newest NVRTC that it finds, and torch brings another.
        ours = sorted((self.bundle / "lib/nvrtc").glob("libnvrtc.so.*"))
        if ours and not self.own.get("FLASHTILE_NVRTC"):
            self.own["FLASHTILE_NVRTC"] = str(ours[0])
        # What one step compiles serves the next ones, and is thrown away with the folder.
        self.own.setdefault("FLASHTILE_CACHE_DIR", str(self.work / "cache"))

    def _choose_vulkan_driver(self):
        """NVIDIA's own driver alone, so that wgpu runs on the GPU and on nothing else.

        Containers without a display often lack its manifest, or keep it where no loader looks.
        Returns the manifest, and the devices that flashtile sees with it.
        """
        named = self.own.get("VK_DRIVER_FILES")
        if self.has_nvidia_gpu and not named:
            for manifest in self._manifests():
                files = {"VK_DRIVER_FILES": str(manifest), "VK_ICD_FILENAMES": str(manifest)}
                found = self.list_devices(self.environment(**files))
                if any(device.get("backend") == "wgpu" for device in found):
                    self.own.update(files)
                    return str(manifest), found
        return named or "what the loader finds", self.list_devices(self.own)

    def _manifests(self):
        for folder in MANIFESTS:
            yield from sorted(Path(folder).glob("nvidia*.json"))
        for library in ("GLX", "EGL"):
            manifest = self.work / f"{library}.json"
            driver = {"library_path": f"lib{library}_nvidia.so.0", "api_version": "1.3.0"}
            manifest.write_text(json.dumps({"file_format_version": "1.0.1", "ICD": driver}))
            yield manifest


def prepend(environment, variable, folders, last=False):
    """Puts those of `folders` that exist in front of a search path, or behind it with `last`."""
    found = [str(folder) for folder in folders if folder.is_dir()]
    before = [environment[variable]] if environment.get(variable) else []
    parts = before + found if last else found + before
    if parts:
        environment[variable] = ":".join(parts)


def json_objects(text):
    """The lines of `text` that are JSON objects; libraries print other lines between them."""
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def pci_address(text):
    """`00000000:3B:00.0` and `0000:3b:00.0` as the same numbers; None if it is no address."""
    match = re.fullmatch(
        r"(?:([0-9a-f]+):)?([0-9a-f]+):([0-9a-f]+)\.([0-9a-f]+)", text.strip().lower()
    )
    return tuple(int(part or "0", 16) for part in match.groups()) if match else None
