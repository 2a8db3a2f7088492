"""The program at a commit."""

from __future__ import annotations

import os
import shutil

# Seconds for one build from nothing, on a busy machine.
PATIENCE = 3600.0


class CannotBuild(Exception):
    """What went wrong, for people."""


class Builds:
    """Programs under target/compare. One that is there already is not built again.

    Both commits share a folder for what cargo builds, because most of that is dependencies.
    """

    def __init__(self, root, processes, profile):
        self._root = root
        self._processes = processes
        self._profile = profile
        target = os.environ.get("CARGO_TARGET_DIR") or "target"
        self._folder = (root / target / "compare").resolve()

    def commit(self, name):
        """The full hash of what `name` stands for."""
        done = self._run(["git", "-C", self._root, "rev-parse", "--verify", f"{name}^{{commit}}"])
        if done.status != 0:
            raise CannotBuild(f"`{name}` is no commit")
        return done.output.strip()

    def program(self, commit):
        """The path of the program at `commit`, which is a full hash."""
        program = self._folder / "programs" / f"{commit}-{self._profile}"
        if program.exists():
            return program
        source = self._folder / "source" / commit
        self._remove(source)
        self._must(
            ["git", "-C", self._root, "worktree", "add", "--detach", "--force", source, commit]
        )
        try:
            self._must(
                [
                    *["cargo", "build", "--profile", self._profile, "--package", "flashtile-cli"],
                    *["--manifest-path", source / "Cargo.toml"],
                    *["--target-dir", self._folder / "build"],
                ]
            )
            program.parent.mkdir(parents=True, exist_ok=True)
            # It gets its name only when it is complete.
            partial = program.with_suffix(".partial")
            # Cargo names the folder of this one profile differently.
            folder = "debug" if self._profile == "dev" else self._profile
            shutil.copy2(self._folder / "build" / folder / "flashtile", partial)
            partial.rename(program)
        finally:
            self._remove(source)
        return program

    def _remove(self, source):
        self._run(["git", "-C", self._root, "worktree", "remove", "--force", source])
        shutil.rmtree(source, ignore_errors=True)
        self._run(["git", "-C", self._root, "worktree", "prune"])

    def _must(self, command):
        done = self._run(command)
        if done.status != 0:
            command = " ".join(map(str, command))
            raise CannotBuild(f"{command}: {done.why()}\n{done.output[-3000:]}")

    def _run(self, command):
        return self._processes.run([str(part) for part in command], PATIENCE)
