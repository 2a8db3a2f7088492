"""scripts/quickstart, with stand-ins for cargo and for scripts/with-vulkan."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "quickstart"


class QuickstartTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        (self.folder / "scripts").mkdir()
        self.script = self.folder / "scripts/quickstart"
        shutil.copy(SCRIPT, self.script)
        self.program("scripts/with-vulkan", 'echo "a driver" && exec "$@"')
        self.program("path/cargo", 'echo "cargo $*"')

    def program(self, name, body):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run_script(self, *arguments):
        path = f"{self.folder / 'path'}:{os.environ['PATH']}"
        done = subprocess.run(
            [str(self.script), *arguments],
            env={"PATH": path},
            check=True,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        return done.stdout.splitlines()

    def test_no_driver_is_fetched_for_what_the_cpu_serves(self):
        for arguments in ([], ["--backend", "cpu"], ["--backend=reference"], ["--threads", "2"]):
            with self.subTest(arguments):
                [line] = self.run_script(*arguments)
                self.assertTrue(line.startswith("cargo run "), line)
                self.assertIn(" --verify", line)
                self.assertTrue(line.endswith(" ".join(arguments)), line)

    def test_a_driver_is_fetched_for_what_needs_an_adapter(self):
        for arguments in (
            ["--backend", "wgpu"],
            ["--backend=wgpu"],
            ["--kernel", "unfused"],
            ["--adapter", "0"],
        ):
            with self.subTest(arguments):
                driver, line = self.run_script(*arguments)
                self.assertEqual(driver, "a driver")
                self.assertTrue(line.startswith("cargo run "), line)


if __name__ == "__main__":
    unittest.main()
