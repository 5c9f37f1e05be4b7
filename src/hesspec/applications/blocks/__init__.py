"""Spectra of the diagonal blocks of a matrix: by layer, head, module or parameter; see `hesspec.by_block`."""
