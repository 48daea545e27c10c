"""When, on which machine and of which code something was measured."""

import os
import platform
import re
import subprocess
import time
from functools import cache
from pathlib import Path


@cache
def circumstances(code: str = ":/") -> dict[str, str]:
    """The time when the run began, the commit, and the machine.

    Args:
        code: What is measured, as git names paths: changes there are noted.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", code], capture_output=True, check=False)
    state = commit.stdout.strip() + ("+changes" if changed.returncode else "")
    cpu = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (model := re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE)):
        cpu = model[1]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB"
    return {"begun": time.strftime("%Y-%m-%d %H:%M"), "commit": state, "machine": machine}
