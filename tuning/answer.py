"""How a command answers and ends: with --json, by one JSON object on stdout, however it ends.

Nothing else is written to stdout then: output of Python, C libraries and child processes (Ray prints there) goes to
stderr.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO

import click

from engine.errors import KeyholeError

BUG, MISTAKE, INTERRUPTED = 1, KeyholeError.exit_code, 130
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""OSErrors that a user can resolve."""


class Answer:
    """The answer of one command.

    Args:
        asked: Whether an object is expected (--json).
        stream: Where it is written; None where the process has no stdout.
    """

    def __init__(self, asked: bool, stream: TextIO | None = None) -> None:
        self.asked, self.stream = asked, stream
        self.given = False

    def give(self, facts: Mapping[str, Any]) -> None:
        """Write the object. Raises KeyholeError where it cannot be written."""
        assert self.asked and not self.given, "a command answers once, if asked to"
        self.given = True
        try:
            if self.stream is not None:
                print(json.dumps(_plain(facts), allow_nan=False), file=self.stream, flush=True)
        except OSError as error:
            assert self.stream is not None
            _to_nowhere(self.stream)
            raise KeyholeError(f"the object could not be written to stdout: {error.strerror}") from error

    def fail(self, message: str, code: int) -> int:
        """Report why the command failed, in its object or on stderr, and return the exit code."""
        if self.asked and not self.given:
            try:
                self.give({"error": message})
                return code
            except KeyholeError as error:
                message = f"{message} ({error})"
        click.echo(f"error: {message}", err=True)
        return code

    def run(self, command: Callable[[], Any]) -> int:
        """Run a command and return its exit code, after reporting a failure.

        Exceptions that are no user's mistake propagate where no object is expected.
        """
        stdout = sys.stdout
        try:
            code = command()
            if sys.stdout is not None:
                sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except click.exceptions.Exit as error:
            return error.exit_code
        except (KeyboardInterrupt, click.Abort):
            return self.fail("interrupted", INTERRUPTED)
        except click.ClickException as error:
            message = " ".join(error.format_message().split())
            if isinstance(error, click.UsageError) and error.ctx is not None:
                message += f"{'' if message.endswith(('.', '?')) else '.'} See {error.ctx.command_path} --help."
            return self.fail(message, MISTAKE)
        except KeyholeError as error:
            return self.fail(str(error), error.exit_code)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else BUG
            if not code or sys.stdout is not stdout:  # click replaced it: the reader has gone
                return code
            return self.fail(f"ended with exit code {code}; stderr may say why", code)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK:
                if error.filename is None and sys.stdout is not None and not self.asked:
                    _to_nowhere(sys.stdout)  # stdout itself may have failed, and is flushed at exit
                return self.fail(f"{error.filename or 'output'}: {error.strerror}; make room or name another", MISTAKE)
            if not self.asked:
                raise
            traceback.print_exc()
            return self.fail(f"{type(error).__name__}: {error} (a bug in Keyhole; see the traceback on stderr)", BUG)


@contextmanager
def answering(as_json: bool, *, process: bool) -> Iterator[Answer]:
    """The answer of a command.

    Args:
        as_json: Whether stdout is reserved for one object.
        process: Whether the process ends with the command: its file descriptor 1 then becomes that of stderr
            permanently. Otherwise only `sys.stdout` is replaced, for the length of the block.
    """
    if not as_json:
        yield Answer(asked=False)
        return
    stream = _own_stdout() if process else sys.stdout
    with redirect_stdout(sys.stderr):
        yield Answer(asked=True, stream=stream)


@contextmanager
def interruptible(
    promise: str = "finishing this round, then writing the checkpoint ...",
) -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM end the run after the current round; a second one ends it at once."""
    asked = threading.Event()

    def ask(number: int, _frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        # On a terminal a bar, and the terminal's own ^C, stand on the line.
        click.echo(("\n" if sys.stderr.isatty() else "") + promise, err=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _own_stdout() -> TextIO | None:
    """Stdout on a new file descriptor, with 1 redirected to stderr; None where the process has no stdout."""
    try:
        stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    except OSError:
        return None
    with suppress(OSError):  # no stderr
        os.dup2(2, 1)
    return stream


def _to_nowhere(stream: TextIO) -> None:
    """Discard what a broken stream has not written yet, without another error."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _plain(value: Any) -> Any:
    """The value with null for NaN and infinities, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
