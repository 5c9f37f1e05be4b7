"""The loss along directions through the weights, next to the quadratic that it should follow."""

__all__: list[str] = []
