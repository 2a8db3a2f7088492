"""Child processes that cannot outlive their time."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass

# Seconds between asking a process to end and killing it, and then between that and giving it up:
# a process that waits inside a driver cannot be killed.
GRACE = 5.0


class RunIsOver(Exception):
    """No process is started any more."""


class Deadline:
    """The moment at which something has to be over."""

    def __init__(self, seconds, within=None):
        """`within`: another deadline that this one must not exceed."""
        self.end = time.monotonic() + seconds
        if within is not None:
            self.end = min(self.end, within.end)

    def left(self):
        """Seconds until then, never negative."""
        return max(0.0, self.end - time.monotonic())


@dataclass
class Finished:
    """A process that ended, or was ended."""

    status: int  # as subprocess has it: negative for a signal, 127 if it could not start
    output: str
    timed_out: bool = False

    def why(self):
        """Why it did not succeed, in a few words; empty if it did."""
        if self.timed_out:
            return "it reached its time limit"
        return ending(self.status) if self.status else ""


def ending(status):
    """How a process with this status ended."""
    return f"it died of signal {-status}" if status < 0 else f"exit status {status}"


class Processes:
    """Every process of this run. Each is the leader of a group, so that it ends with its children.

    Safe to use from several threads.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._running = set()
        self._closed = False

    def start(self, command, **options):
        """A running `subprocess.Popen`, without input unless `options` say otherwise."""
        options.setdefault("stdin", subprocess.DEVNULL)
        with self._lock:
            if self._closed:
                raise RunIsOver
            process = subprocess.Popen(command, start_new_session=True, **options)
            self._running.add(process)
        return process

    def run(self, command, seconds, env=None, with_errors=True):
        """Waits for a process for at most `seconds`; its output comes with stderr, or without."""
        # A file and no pipe: a pipe stays open for as long as any grandchild holds it.
        with tempfile.TemporaryFile() as output:
            errors = subprocess.STDOUT if with_errors else subprocess.DEVNULL
            try:
                process = self.start(command, stdout=output, stderr=errors, env=env)
            except OSError as error:
                return Finished(127, f"{command[0]}: {error.strerror}\n")
            timed_out = False
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:
                self.stop(process)
            output.seek(0)
            text = output.read().decode(errors="replace")
        status = process.returncode if process.returncode is not None else -signal.SIGKILL
        return Finished(status, text, timed_out)

    def stop(self, process):
        """Ends a process and whatever it started, if any of it still runs."""
        for stop_signal in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, stop_signal)
            except (ProcessLookupError, PermissionError):
                break
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                continue
        process.poll()
        with self._lock:
            self._running.discard(process)

    def close(self):
        """Ends all of them, and starts no more."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            self.stop(process)
