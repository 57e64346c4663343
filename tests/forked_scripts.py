"""Scripts run in forks of one process that has imported what they share, where that takes longer than they do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SERVER = """
import importlib, json, os, runpy, socket, sys, traceback

path, folder, *names = sys.argv[1:]
sys.path.insert(0, folder)
for name in names:
    importlib.import_module(name)

def run(argv, environment, files):
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    data, files, *_ = socket.recv_fds(connection, 1 << 20, 3)
    if os.fork() == 0:
        listener.close()
        code = run(*json.loads(data), files)
        sys.stdout.flush()
        connection.send(bytes([code]))
        os._exit(code)
    for file in files:
        os.close(file)
    connection.close()
"""
"""Must have no threads: with ``OMP_NUM_THREADS`` at 1, imports start none."""

STAND_IN = """
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({path!r})
    request = json.dumps([[{script!r}, *sys.argv[1:]], dict(os.environ)])
    socket.send_fds(connection, [request.encode()], [0, 1, 2])
    sys.exit(ord(connection.recv(1) or bytes([1])))
"""
"""Hands its arguments, environment and files to the server, and ends as the fork does."""


@contextmanager
def forked_scripts(scripts: Sequence[Path], imports: Sequence[str], folder: Path) -> Iterator[None]:
    """Within, ``folder`` has a stand-in for each of the scripts, of one folder, that runs it in a fork."""
    with tempfile.TemporaryDirectory() as short:  # a socket's path has 107 characters at most
        path = str(Path(short, "socket"))
        for script in scripts:
            (folder / script.name).write_text(STAND_IN.format(path=path, script=str(script)))
        command = [sys.executable, "-c", SERVER, path, str(scripts[0].parent), *imports]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == "ready\n"
                yield
            finally:
                server.kill()
