"""The command `pevl`: a file for each subcommand. Only this folder knows typer and rich."""
