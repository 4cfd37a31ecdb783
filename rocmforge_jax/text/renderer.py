"""Renders chat templates in a separate process, with limits on time, memory and output.

A template is a program from an untrusted file. Jinja's sandbox protects the interpreter, but not
against expensive single operations: a multiplied string, a list nested in itself, `10 ** 10 ** 8`
or a width in a format. Each is one call into C that nothing inside the interpreter can interrupt.
The kernel can limit a process, and the parent can kill it.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

START_LIMIT = 60.0  # seconds; long enough for a busy machine


class RenderError(Exception):
    """Raised if a rendering fails; the message is meant for the user."""


class Renderer:
    """The rendering process, started on first use and restarted after it was killed.

    A lock lets only one thread at a time use it.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._owner = 0  # a forked process must not use its parent's pipes

    def render(self, template: str, variables: dict, time_limit: float) -> str:
        """Returns the rendered text.

        Args:
            template: The template's text.
            variables: Its variables, as JSON data.
            time_limit: The time limit in seconds.

        Raises:
            RenderError: The template fails or exceeds the time limit.
        """
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
        """Ends the process."""
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
            start_new_session=True,  # so that Ctrl-C reaches only the caller
        )
        self._owner = os.getpid()
        self._exchange(json.dumps({"template": "", "variables": {}}), START_LIMIT)

    def _exchange(self, request: str, time_limit: float) -> dict:
        """Sends a request and returns its reply. A process without a reply is stopped."""
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
