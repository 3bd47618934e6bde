"""The `pocketvlm` command. Little is imported here: Ctrl-C while its parts are loaded must end it quietly too."""

from __future__ import annotations

import errno
import os
import sys
import warnings

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def interrupted(error: BaseException | None) -> bool:
    """Whether it came of Ctrl-C: an extension module makes an ImportError of one that comes while it is loaded."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def main() -> None:
    """Exit codes: 0 done, 1 a check failed, 2 wrong use or input, 130 interrupted."""
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # `>&-` leaves none
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    warnings.filterwarnings("ignore", module="PIL")  # a broken picture is our error, told once
    try:
        from pocketvlm.cli.commands import run

        run()
    except BrokenPipeError:  # the reader went away (pocketvlm ... | head)
        sys.exit(0)
    except OSError as error:
        if error.errno not in _NO_ROOM:
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
        except OSError:  # what is still buffered has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
