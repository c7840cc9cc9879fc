"""`python -m simmim.export`: writes a trained model in a format that another program loads."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("export")


if __name__ == "__main__":
    main()
