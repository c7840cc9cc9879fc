"""`python -m simmim.analysis`: analyses an encoder and writes figures and tables."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("analysis")


if __name__ == "__main__":
    main()
