"""The command line ``csrm``: one file per group of commands."""
