"""Entry point of `python -m hesspec` and of the command `hesspec`."""

import os
import sys

INTERRUPTED = 130  # by convention 128 + the number of the signal, SIGINT


def main() -> None:
    """Run the command line. Ctrl-C ends it with one line, even while it is being imported."""
    try:
        from hesspec.backend.extras import require  # noqa: PLC0415 - inside of the try

        require("The command hesspec", "hesspec[study]", "typer")
        from hesspec.cli.app import main as run  # noqa: PLC0415 - inside of the try
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. All files written so far are complete.\n")
        sys.exit(INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit(f"Error: {error}")
    run()


if __name__ == "__main__":
    # `python -m` looks for all modules in the current directory first; the command `hesspec` only for the user's own.
    if sys.path[0] == os.getcwd() and not sys.flags.safe_path:  # noqa: PTH109 - as Python writes it
        del sys.path[0]
    main()
