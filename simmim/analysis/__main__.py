"""`python -m simmim.analysis`: looks inside an encoder, and leaves pictures and tables."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("analysis")


if __name__ == "__main__":
    main()
