"""The script itself, on a repository that is made up."""

import os
import shutil
import subprocess
import sys

from on_gpu.tests.fakes import SCRIPTS, Scene, program

# Builds a program that takes the time which the file `ms` of the commit says. Counts the builds.
CARGO = """
    import pathlib, sys
    arguments = dict(zip(sys.argv[1:], sys.argv[2:]))
    source = pathlib.Path(arguments["--manifest-path"]).parent
    with open(pathlib.Path(__file__).parent / "builds", "a") as builds:
        builds.write(source.name + "\\n")
    ms = (source / "ms").read_text().strip()
    if ms == "broken":
        sys.exit("error: it does not compile")
    folder = {"dev": "debug", "release": "release"}[arguments["--profile"]]
    folder = pathlib.Path(arguments["--target-dir"]) / folder
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "flashtile"
    file.write_text(
        "#!/bin/sh\\n"
        "while [ $1 != --shape ]; do shift; done\\n"
        f'echo "{{\\\\"case\\\\":\\\\"$2\\\\",\\\\"ms\\\\":{ms}}}"\\n'
    )
    file.chmod(0o755)
"""


class RunTest(Scene):
    def setUp(self):
        super().setUp()
        self.root = self.folder / "repository"
        scripts = self.root / "scripts"
        ignored = shutil.ignore_patterns("tests", "__pycache__")
        for package in ("compare_commits", "on_gpu"):
            shutil.copytree(SCRIPTS / package, scripts / package, ignore=ignored)
        shutil.copy(SCRIPTS / "compare-commits", scripts)
        program(scripts / "with-vulkan", 'exec "$@"', "/bin/sh")
        program(self.folder / "path/cargo", CARGO)
        self.git("init", "--quiet")
        for ms in ("8.0", "4.0", "5.0", "broken"):
            (self.root / "ms").write_text(ms)
            self.git("add", "ms")
            self.git("commit", "--quiet", "--message", ms)
            self.git("tag", f"takes-{ms}")

    def git(self, *arguments):
        identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.com"]
        command = ["git", "-C", str(self.root), *identity, *arguments]
        return subprocess.check_output(command, encoding="utf-8", stderr=subprocess.STDOUT)

    def compare(self, *arguments):
        command = [sys.executable, str(self.root / "scripts/compare-commits"), *arguments]
        return subprocess.run(
            command,
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def builds(self):
        return (self.folder / "path/builds").read_text().splitlines()

    def test_two_commits_are_built_once_and_compared(self):
        for _ in range(2):
            done = self.compare("takes-8.0", "takes-4.0", "--pairs", "2", "--floor", "1.9")
            self.assertEqual(done.returncode, 0, done.stdout)
        rows = [line for line in done.stdout.splitlines() if "2.000 to 2.000" in line]
        self.assertGreater(len(rows), 5)
        hashes = [self.git("rev-parse", tag).strip() for tag in ("takes-8.0", "takes-4.0")]
        self.assertEqual(self.builds(), hashes)
        self.assertIn(f"A: {hashes[0]}", done.stdout)
        # Only the repository's own worktree is left.
        self.assertEqual(len(self.git("worktree", "list").splitlines()), 1)

    def test_profiles_are_kept_apart(self):
        for profile in ("release", "dev", "dev"):
            done = self.compare("takes-8.0", "takes-4.0", "--profile", profile, "--pairs", "1")
            self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(len(self.builds()), 4)

    def test_below_the_floor_it_fails(self):
        case = ["--case", "1x2x3x4,f32"]
        done = self.compare("takes-4.0", "takes-5.0", "--floor", "0.9", *case)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("below the floor", done.stdout)
        done = self.compare("takes-4.0", "takes-5.0", "--floor", "0.8", *case)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_what_cannot_be_built_is_said(self):
        done = self.compare("takes-4.0", "takes-broken")
        self.assertEqual(done.returncode, 2)
        self.assertIn("it does not compile", done.stdout)
        self.assertEqual(len(self.git("worktree", "list").splitlines()), 1)
        done = self.compare("takes-4.0", "no-such-commit")
        self.assertEqual(done.returncode, 2)
        self.assertIn("`no-such-commit` is no commit", done.stdout)

    def test_wrong_arguments(self):
        for arguments in (["A"], ["A", "B", "--pairs", "0"], ["A", "B", "--case", "1x2,f32"]):
            self.assertEqual(self.compare(*arguments).returncode, 2, arguments)
        self.assertEqual(self.compare("--help").returncode, 0)
