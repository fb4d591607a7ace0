"""`python -m pevl_cli` is the command `pevl`."""

from pevl_cli.cli.app import main

if __name__ == "__main__":
    main()
