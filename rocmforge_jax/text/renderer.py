"""Runs chat templates in a process of their own, with bounds on time, memory and output.

A template is a program from an untrusted file. Jinja's sandbox keeps it from the interpreter, but a
multiplied string, a list nested in itself, `10 ** 10 ** 8` or a width in a format is one call into
C that no hook inside the interpreter can stop. A process can be bounded by the kernel, and killed.
Starting it takes about 0.1 s, once; a render then takes about 0.3 ms.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

START_LIMIT = 60.0  # seconds, also on a machine that is busy


class RenderError(Exception):
    """What went wrong, in words for the user."""


class Renderer:
    """The process, started when it is first needed and again after it was killed.

    Threads take turns.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._owner = 0  # a fork must not talk through its parent's pipes

    def render(self, template: str, variables: dict, time_limit: float) -> str:
        """The text. RenderError where the template fails or exceeds `time_limit` seconds."""
        request = json.dumps({"template": template, "variables": variables})
        with self._lock:
            if not self._is_running():
                self._start()
            reply = self._exchange(request, time_limit)
            if reply.get("spent"):
                self.stop()
        if "error" in reply:
            raise RenderError(reply["error"])
        return reply["text"]

    def stop(self):
        """End the process."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def _is_running(self) -> bool:
        return (
            self._process is not None
            and self._owner == os.getpid()
            and self._process.poll() is None
        )

    def _start(self):
        self.stop()
        program = Path(__file__).with_name("render_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(program), json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the caller
        )
        self._owner = os.getpid()
        self._exchange(json.dumps({"template": "", "variables": {}}), START_LIMIT)

    def _exchange(self, request: str, time_limit: float) -> dict:
        """The reply to one request. A process that did not reply is never used again."""
        process, late = self._process, threading.Event()
        assert process is not None and process.stdin is not None and process.stdout is not None

        def end_it():
            late.set()
            process.kill()

        killer = threading.Timer(time_limit, end_it)
        killer.start()
        try:
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:
            self.stop()
            raise
        finally:
            killer.cancel()
        if line.endswith(b"\n"):
            return json.loads(line)
        self.stop()
        if late.is_set():
            raise RenderError(f"the template did not finish within {time_limit} s")
        raise RenderError(
            f"the process that renders templates died with exit code {process.returncode}"
        )


RENDERER = Renderer()
atexit.register(RENDERER.stop)
