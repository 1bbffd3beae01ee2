"""`python -m zephyr_local` is `zephyr-local`."""

from __future__ import annotations

from zephyr_local.cli.main import main

if __name__ == "__main__":
    main()
