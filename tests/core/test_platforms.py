"""Other systems, simulated: Windows gets one line, a Mac does without what only Linux has."""

import os
import platform
import resource
import sys
from pathlib import Path

import pytest
from helpers import python

from exam.core import environment
from exam.pipelines import doctor

WINDOWS = "exam runs on Linux and macOS; on Windows, run it in WSL (wsl --install).\n"
LACKING = {
    "resource": "import sys; sys.modules['resource'] = None",
    "SIGALRM": "import signal; del signal.SIGALRM",
}
COMMANDS = [
    "import exam.cli",
    "import runpy; runpy.run_path('train.py', run_name='__main__')",
    "import runpy; runpy.run_module('exam', run_name='__main__')",
]


@pytest.mark.parametrize("lacking", LACKING)
@pytest.mark.parametrize("command", COMMANDS)
def test_windows_gets_one_line(lacking, command):
    done = python("-c", f"{LACKING[lacking]}\n{command}")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", WINDOWS)


@pytest.fixture
def mac(monkeypatch):
    """A system without /proc and glibc, which counts memory in bytes."""
    for name in ("read_text", "write_text"):
        known = getattr(Path, name)

        def without_proc(path, *given, known=known, **more):
            if path.parts[:2] == ("/", "proc"):
                raise FileNotFoundError(2, os.strerror(2), str(path))
            return known(path, *given, **more)

        monkeypatch.setattr(Path, name, without_proc)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))


def test_a_mac_measures_its_peak_memory_in_bytes(mac):
    environment.reset_peak_memory()
    environment.tune_malloc()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert environment.peak_memory_mib() == pytest.approx(peak / 2**20)


def test_the_doctor_copes_with_unknown_figures(mac, monkeypatch):
    def sysconf(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", sysconf)
    lines = doctor.describe_machine()
    assert "memory      unknown" in lines
    assert "gpu         no NVIDIA driver" in lines
