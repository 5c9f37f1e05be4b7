"""The command line: the program `hesspec`."""
