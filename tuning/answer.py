"""How a command answers and ends: one JSON object on stdout where that was asked for, whichever way it ends.

With --json the object has stdout to itself. Whatever else is written there, by Python, by a C library or by a process
that this one starts (Ray prints there), goes to stderr.
Knows nothing of what commands do.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

import click

from engine.errors import KeyholeError

BUG, MISTAKE, INTERRUPTED = 1, KeyholeError.exit_code, 130
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""What an OSError is about that a user can mend."""


class Answer:
    """Of one command. `stream` is where its object goes: None where nobody asked for one."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.given = False

    def give(self, facts: Mapping[str, Any]) -> None:
        """Write the object."""
        assert self.stream is not None and not self.given, "a command answers once, if asked to"
        self.given = True
        print(json.dumps(_plain(facts), allow_nan=False), file=self.stream, flush=True)

    def fail(self, message: str, code: int) -> int:
        """Say on one line why the command ended, as its object or on stderr; returns the exit code."""
        message = " ".join(message.split("\n"))
        if self.stream is None:
            click.echo(f"error: {message}", err=True)
        elif not self.given:
            self.give({"error": message})
        return code

    def run(self, command: Callable[[], Any]) -> int:
        """Run a command; its exit code, after saying why where it failed."""
        stream = self.stream or sys.stdout
        try:
            code = self._run(command)
            if stream is not None:
                stream.flush()
            return code
        except OSError as error:
            if not _is_lost(stream):
                raise
            return _lost(stream, error)

    def _run(self, command: Callable[[], Any]) -> int:
        try:
            code = command()
            return code if isinstance(code, int) else 0
        except click.exceptions.Exit as error:
            return error.exit_code
        except (KeyboardInterrupt, click.Abort):
            return self.fail("interrupted", INTERRUPTED)
        except click.ClickException as error:
            return self.fail(" ".join(error.format_message().split()), MISTAKE)
        except KeyholeError as error:
            return self.fail(str(error), error.exit_code)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else BUG
            return self.fail(f"ended with {error.code}", code) if code else 0
        except Exception as error:
            if _is_lost(self.stream or sys.stdout):
                raise
            if isinstance(error, OSError) and error.errno in DISK:
                return self.fail(f"{error.filename or 'a file'}: {error.strerror}; free or name another place", MISTAKE)
            if self.stream is None:
                raise
            traceback.print_exc()
            return self.fail(f"{type(error).__name__}: {error} (a bug in Keyhole; see the traceback on stderr)", BUG)


@contextmanager
def answering(as_json: bool, *, process: bool) -> Iterator[Answer]:
    """The answer of a command.

    Args:
        as_json: whether stdout is for one object alone.
        process: whether the process ends with the command: its file descriptor 1 then becomes stderr's, for good.
            Otherwise `sys.stdout` alone is another in the meantime.
    """
    if not as_json:
        yield Answer(None)
        return
    stream = _own_stdout() if process else sys.stdout
    with redirect_stdout(sys.stderr):
        yield Answer(stream or open(os.devnull, "w", encoding="utf-8"))


def _own_stdout() -> TextIO | None:
    """Stdout by a file descriptor of its own, with 1 led to stderr; None where the process was given no stdout."""
    try:
        stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    except OSError:
        return None
    try:
        os.dup2(2, 1)
    except OSError:  # no stderr either
        _to_nowhere(1)
    return stream


def _is_lost(stream: TextIO | None) -> bool:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return True
    return False


def _lost(stream: TextIO | None, error: OSError) -> int:
    """The end of a command whose reader has gone, or whose stdout is full: the exit code."""
    if stream is not None:
        _to_nowhere(stream.fileno())  # Python flushes at exit, and would fail once more
    if not isinstance(error, BrokenPipeError):  # then nobody reads on, which is no error
        click.echo(f"error: the output could not be written to stdout: {error.strerror}", err=True)
    return BUG


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
