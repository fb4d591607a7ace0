"""`python -m pevl_cli` is the command `pevl`."""

from pevl_cli.cli import main

if __name__ == "__main__":
    main()
