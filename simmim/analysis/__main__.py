"""`python -m simmim.analysis`: looks inside an encoder, and leaves pictures and tables."""

from simmim.command_line import run_command


def main() -> None:
    """Entry point."""
    run_command("analysis")


if __name__ == "__main__":
    main()
