"""How every command ends: 0, or one line on stderr and exit code 2 for what the user can mend."""

import sys
from collections.abc import Callable

from shards.errors import AlignDistilError


def run_command(main: Callable[[], None]) -> None:
    """Run a command's main; an AlignDistilError becomes one line and exit code 2, any other error a traceback."""
    try:
        main()
    except AlignDistilError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
