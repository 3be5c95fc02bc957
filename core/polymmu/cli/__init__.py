"""The command line: one module per subcommand, each with ``add`` (its arguments) and ``run``."""
