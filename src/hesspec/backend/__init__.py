"""The machine: memory, files, processes. Nothing here knows of spectra."""
