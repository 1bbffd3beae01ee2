"""Runs before a frozen application's first line: a child of the engine's is the engine, and no application."""


def _become_the_child() -> None:
    from zephyr_local.child_process import freeze_support

    freeze_support()


# The application's __main__ is this very namespace: nothing is left in it.
_become_the_child()
del _become_the_child
