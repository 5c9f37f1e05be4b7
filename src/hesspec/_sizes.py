"""Numbers of bytes as text."""

__all__ = ["in_words"]


def in_words(size: float) -> str:
    """A number of bytes with a unit, in powers of 1000: "1.23 GB"."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB" if size < 1000 else f"{size:,.0f} GB"
