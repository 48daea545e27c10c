"""Runs ``heterosis`` command lines, one line of JSON each, in forks of one process that has loaded torch.

A fork reads its environment afresh, as a new process would: the Hub's client reads it when it is imported, and
that happens in the fork alone.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import heterosis.merge.api
from heterosis import cli


def run(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+b") as out, tempfile.TemporaryFile("w+b") as err:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(request["cwd"])
                os.environ.update(request["env"])
                sys.argv = ["heterosis", *request["arguments"]]
                cli.main()
                code = 0
            except SystemExit as exit_:
                code = int(exit_.code or 0)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return {"code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}


if __name__ == "__main__":
    assert Path(heterosis.merge.api.__file__).exists()
    assert "huggingface_hub" not in sys.modules, "merging local folders must not load the Hub's client"
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)
