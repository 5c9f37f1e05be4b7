"""`python -m hesspec`."""

from hesspec.cli import main

if __name__ == "__main__":
    main()
