"""``python -m flmgrow`` is the ``flmgrow`` command."""

from flmgrow.cli import main

if __name__ == "__main__":
    main()
