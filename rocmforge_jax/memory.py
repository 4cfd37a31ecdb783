"""Reports the available memory of this machine. Does not import JAX."""

MEMINFO = "/proc/meminfo"


def available_bytes() -> int | None:
    """Returns the memory available to programs in bytes, or None if it is unknown."""
    try:
        with open(MEMINFO) as lines:
            kib = next(
                (line.split()[1] for line in lines if line.startswith("MemAvailable:")), None
            )
    except OSError:
        return None
    return None if kib is None else int(kib) * 1024
