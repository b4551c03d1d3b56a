def ceil_div(a: int, b: int) -> int:
    """a / b rounded up to a whole number, for b > 0."""
    return -(-a // b)
