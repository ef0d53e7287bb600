"""``python -m promptmill.cli``: the command line, wherever its script is."""

from promptmill.cli.main import main

if __name__ == "__main__":
    main()
