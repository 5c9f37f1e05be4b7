"""Results as their files give them back."""

from dataclasses import fields, replace

import numpy as np
import pytest

import hesspec


def check_saved(result, folder):
    """A result is read as it was saved, whether its kind is known or not: its class, every field and its text."""
    file = folder / "result.nc"
    result.save(file)
    for read in (hesspec.load(file), type(result).load(file)):
        assert type(read) is type(result)
        for item in fields(result):
            given, found = getattr(result, item.name), getattr(read, item.name)
            np.testing.assert_array_equal(found, given)
            if isinstance(given, np.ndarray) and given.dtype.kind != "U":  # the length of texts is that of the longest
                assert found.dtype == given.dtype, item.name
        assert repr(read) == repr(result)


def check_refused(result, message, **changes):
    """A result with impossible values is not read."""
    broken = replace(result, **changes)
    with pytest.raises(ValueError, match=message):
        type(broken).from_dataset(broken.to_dataset())
