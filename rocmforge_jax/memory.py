"""How much memory this machine has left. Imports no jax."""

MEMINFO = "/proc/meminfo"


def available_bytes() -> int | None:
    """Returns the memory that programs can still take, None where the system does not say."""
    try:
        with open(MEMINFO) as lines:
            kib = next(
                (line.split()[1] for line in lines if line.startswith("MemAvailable:")), None
            )
    except OSError:
        return None
    return None if kib is None else int(kib) * 1024
