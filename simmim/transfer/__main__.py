"""`python -m simmim.transfer`: a classifier carried to another image and window size."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("transfer")


if __name__ == "__main__":
    main()
