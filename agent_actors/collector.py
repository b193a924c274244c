"""Python's collector of cyclic garbage, kept from looking at what stays for a process's life.

A Ray worker has more than 200,000 objects before its first task. By default the collector walks
over all of them again and again while tasks come and go: a third of an actor's CPU time.
"""

import gc

# New containers that have not been freed, before the youngest of them are looked at. A task
# leaves no cycles behind, so there is little to find; 700 is Python's default.
YOUNG_OBJECTS = 10_000


def spare_what_is_there() -> None:
    """Leave what this process has by now to itself, and look less often for garbage."""
    gc.collect()
    gc.freeze()
    _, middle, old = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, middle, old)
