"""Access to the machine: memory, files, processes. Independent of spectra."""
