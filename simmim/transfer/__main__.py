"""`python -m simmim.transfer`: transfer of a classifier to another image and window size."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("transfer")


if __name__ == "__main__":
    main()
