"""`python -m simmim.evaluate`: how good a classifier is, or an encoder that was never fine-tuned."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("evaluate")


if __name__ == "__main__":
    main()
