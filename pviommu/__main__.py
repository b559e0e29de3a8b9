# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry point of the ``pviommu`` command and of ``python -m pviommu``.

Exit status: 0 clean, 1 a fault was found, 2 wrong usage (unwritable output included), 3 a fault of this program, 130
interrupted, 141 the reader of our output went away.  Errors end in one line, never in a traceback;
``PVIOMMU_TRACEBACK=1`` in the environment shows the traceback of an internal error after all.

The commands are imported inside :func:`main`, so that an interrupt while they load is an interrupt like any other.
"""

import errno
import os
import signal
import sys
from typing import Final

CLEAN: Final = 0
USAGE: Final = 2
FOUND: Final = 1
INTERNAL: Final = 3
INTERRUPTED: Final = 130
NO_READER: Final = 141
"""128 + SIGPIPE, what a shell shows for a program that died of it."""


def main() -> None:
    """Run the command line and exit."""
    try:
        status = _run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except SystemExit as stop:  # what typer and rich do when the reader of a pipe is gone
        status = NO_READER if _is_broken_pipe(stop.__context__) else stop.code if isinstance(stop.code, int) else CLEAN
    except OSError as error:
        if _is_broken_pipe(error):
            status = NO_READER
        else:
            _complain(f"{error.filename or 'output'}: {error.strerror or error}")
            status = USAGE
    if status == INTERRUPTED:
        _complain("interrupted")
    _leave(status)


def _run() -> int:
    _write_whatever_the_encoding()
    import typer
    from typer.exceptions import TyperException

    from hypervisor.errors import HostStopped

    try:
        from pviommu.cli import app

        status = app(standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return INTERRUPTED
    except TyperException as error:
        message = error.format_message().replace("Value error, ", "")
        if message.startswith("Usage:"):  # a command group without a command: its help
            print(message, file=sys.stderr)
        else:
            _complain(message)
        return USAGE
    except (KeyboardInterrupt, OSError):
        raise
    except HostStopped as stop:
        _complain(f"the host stopped: {type(stop).__name__}: {stop}")
        return FOUND
    except Exception as error:
        if os.environ.get("PVIOMMU_TRACEBACK"):
            raise
        _complain(
            f"internal error: {type(error).__name__}: {error} "
            "(PVIOMMU_TRACEBACK=1 shows where; please report it with the command line)"
        )
        return INTERNAL
    return status if isinstance(status, int) else CLEAN


def _write_whatever_the_encoding() -> None:
    """Show what the user's encoding lacks as question marks.

    Interrupts wait meanwhile: one inside ``reconfigure`` leaves a stream without an encoder, which can say no more.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_broken_pipe(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _complain(text: str) -> None:
    """One line on standard error, if there is one."""
    if sys.stderr is not None:
        print(f"pviommu: {text}", file=sys.stderr)


def _leave(status: int) -> None:
    """Exit without a second attempt to write what could not be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


if __name__ == "__main__":
    main()
