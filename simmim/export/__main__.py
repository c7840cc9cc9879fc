"""`python -m simmim.export`: a trained model in the form that another program loads."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("export")


if __name__ == "__main__":
    main()
