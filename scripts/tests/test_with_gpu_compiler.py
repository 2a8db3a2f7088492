"""scripts/with-gpu-compiler, with a stand-in for the dynamic loader that prints its arguments."""

import os
import pathlib
import subprocess
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "with-gpu-compiler"

LOADER = """#!/bin/sh
echo "arguments: $*"
env | grep -E '^(VK_|AMDGPU|NOUVEAU|FD_|MESA|FLASHTILE_GPU_COMPILER=)' | sort
"""

DRIVERS = ["radeon", "nouveau", "asahi", "freedreno", "lvp"]
STAND_INS = ["amdgpu", "nouveau", "asahi", "freedreno"]


class WithGpuCompilerTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.libraries = self.folder / "files/usr/lib/x86_64-linux-gnu"
        manifests = self.folder / "files/usr/share/vulkan/icd.d"
        self.libraries.mkdir(parents=True)
        manifests.mkdir(parents=True)
        loader = self.libraries / "ld-linux-x86-64.so.2"
        loader.write_text(LOADER)
        loader.chmod(0o755)
        for driver in DRIVERS:
            library = f'{{"ICD": {{"library_path": "libvulkan_{driver}.so"}}}}\n'
            (manifests / f"{driver}_icd.json").write_text(library)
        for stand_in in STAND_INS:
            (self.libraries / f"lib{stand_in}_noop_drm_shim.so").touch()

    def run_script(self, *arguments, **environment):
        environment = {"FLASHTILE_GPU_COMPILERS": str(self.folder)} | environment
        return subprocess.run(
            [SCRIPT, *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def test_each_gpu_has_its_driver_and_its_stand_in(self):
        for gpu, driver, stand_in, variable in [
            ("rdna2", "radeon", "amdgpu", "AMDGPU_GPU_ID=navi21"),
            ("rdna3", "radeon", "amdgpu", "AMDGPU_GPU_ID=navi31"),
            ("rdna4", "radeon", "amdgpu", "AMDGPU_GPU_ID=gfx1201"),
            ("turing", "nouveau", "nouveau", "NOUVEAU_CHIPSET=164"),
            ("ampere", "nouveau", "nouveau", "NOUVEAU_CHIPSET=172"),
            ("ada", "nouveau", "nouveau", "NOUVEAU_CHIPSET=192"),
            ("blackwell", "nouveau", "nouveau", "NOUVEAU_CHIPSET=1b2"),
            ("m1", "asahi", "asahi", None),
            ("adreno6", "freedreno", "freedreno", "FD_GPU_ID=630"),
            ("adreno7", "freedreno", "freedreno", "FD_GPU_ID=750"),
            ("lavapipe", "lvp", None, None),
        ]:
            with self.subTest(gpu):
                result = self.run_script(gpu, "sh", "-c", "a b")
                self.assertEqual(result.returncode, 0, result.stderr)
                arguments, *variables = result.stdout.splitlines()
                self.assertIn(f"--library-path {self.libraries}", arguments)
                self.assertTrue(arguments.endswith("/sh -c a b"), arguments)
                preload = f"--preload {self.libraries}/lib{stand_in}_noop_drm_shim.so"
                self.assertEqual(preload in arguments, stand_in is not None)
                manifest = self.folder / f"{driver}.json"
                self.assertIn(f"VK_DRIVER_FILES={manifest}", variables)
                self.assertIn(f"FLASHTILE_GPU_COMPILER={gpu}", variables)
                self.assertIn("MESA_SHADER_CACHE_DISABLE=true", variables)
                self.assertTrue(variable is None or variable in variables, variables)
                library = f'"library_path": "{self.libraries}/libvulkan_{driver}.so"'
                self.assertIn(library, manifest.read_text())

    def test_wrong_use_is_refused(self):
        for arguments in [(), ("rdna9", "true"), ("rdna3",), ("--folder", "rdna3")]:
            with self.subTest(arguments):
                result = self.run_script(*arguments)
                self.assertEqual(result.returncode, 2)
                self.assertIn("rdna4 turing ampere", result.stderr)

    def test_the_folder_is_printed(self):
        result = self.run_script("--folder")
        self.assertEqual((result.returncode, result.stdout), (0, f"{self.folder}\n"))

    def test_what_is_missing_is_named(self):
        program = self.run_script("rdna3", "no-such-program")
        self.assertEqual(program.returncode, 1)
        self.assertIn("no-such-program", program.stderr)
        folder = self.run_script("rdna3", "sh", FLASHTILE_GPU_COMPILERS="/no/such/folder")
        self.assertEqual(folder.returncode, 1)
        self.assertIn("/no/such/folder", folder.stderr)

    def test_a_machine_without_apt_says_so(self):
        tools = self.folder / "bin"
        tools.mkdir()
        for tool in ["bash", "dirname", "uname"]:
            path = subprocess.run(
                ["sh", "-c", f"command -v {tool}"], capture_output=True, text=True, check=True
            )
            (tools / tool).symlink_to(path.stdout.strip())
        target = self.folder / "target"
        result = self.run_script(
            "--folder", PATH=str(tools), FLASHTILE_GPU_COMPILERS="", CARGO_TARGET_DIR=str(target)
        )
        self.assertEqual(result.returncode, 1)
        self.assertIn("this machine has no apt-get", result.stderr)
        self.assertFalse((target / "tools/gpu-compilers").exists())


if __name__ == "__main__":
    unittest.main()
