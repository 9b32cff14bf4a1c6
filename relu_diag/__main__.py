"""``python -m relu_diag`` is ``relu-diag``."""

from relu_diag.cli import main

if __name__ == "__main__":
    main()
