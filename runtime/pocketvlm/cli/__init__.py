"""The `pocketvlm` command. It imports little here, so that Ctrl-C while the rest is loaded ends it quietly, too."""

from __future__ import annotations

import errno
import os
import sys
import warnings

_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def interrupted(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused `error`. An extension module that it interrupts while loading raises ImportError."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def main() -> None:
    """Run the command. Exit codes: 0 done, 1 a check failed, 2 wrong use or input, 130 interrupted."""
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # None if the shell closed it (`>&-`)
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    warnings.filterwarnings("ignore", module="PIL")  # broken pictures are reported by our own errors
    try:
        from pocketvlm.cli.commands import run

        run()
    except BrokenPipeError:  # the reader has ended (pocketvlm ... | head)
        sys.exit(0)
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS:
            raise
        sys.stderr.write(f"error: the output cannot be written: {error.strerror}\n")
        sys.exit(2)
    except (KeyboardInterrupt, ImportError) as error:
        if not interrupted(error):
            raise
        sys.exit(130)
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # the rest of the buffer cannot be written
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
